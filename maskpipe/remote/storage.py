"""Where a remote dataset lies, and how its bytes are asked for: one range of one file, once. No retries here.

    location = parse("s3://bucket/chats?region=eu-central-1")      refused: what is not in SCHEMES
    with location.storage(timeout=30).open("part-….arrow") as file:
        file.read(offset, size)

Credentials come from where the storage's own client looks for them, never from a URI.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from maskpipe.errors import UsageError

SCHEMES = ("file", "s3", "gs", "hf", "http", "https")
"""All that a URI may begin with. Others could name programs, or other URIs, to a library that follows them; pass a
filesystem object for those."""
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:::|://)")
_OPTIONS = {
    "s3": ("region", "endpoint_override", "scheme", "anonymous"), "gs": ("endpoint_override", "scheme", "anonymous"),
}  # fmt: skip
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HF_ENDPOINT")
_SECRETS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN",
)  # fmt: skip
_LOOKS_SECRET = (
    (re.compile(r"//[^/@\s]*@"), "//"),
    (
        re.compile(r"([?&](?:[A-Za-z0-9-]*(?:sig|key|token|credential|secret)[A-Za-z0-9-]*))=[^&\s'\"<>]*", re.I),
        r"\1=…",
    ),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}|\bhf_[A-Za-z0-9]{8,}|\bya29\.[\w.-]+"), "…"),
    (re.compile(r"\b(Bearer|Basic|AWS4-HMAC-SHA256)\s+[^\s'\"]+", re.I), r"\1 …"),
    (re.compile(r"<(AWSAccessKeyId|StringToSign|SignatureProvided|CanonicalRequest)>.*?</\1>", re.S), ""),
)
_FINAL = re.compile(
    r"ACCESS_DENIED|AccessDenied|INVALID_ACCESS_KEY|InvalidAccessKeyId|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_(?:KEY|BUCKET)"
    r"|NoSuch(?:Key|Bucket)|RESOURCE_NOT_FOUND|No response body\.?.*404|HTTP status 40[134]"
)


class Refused(Exception):
    """The storage answered, and another try would get the same answer: not there, or not allowed."""


class Reading(Protocol):
    """An open remote file."""

    def read(self, offset: int, size: int) -> bytes:
        """What lies there, fewer bytes where the file ends. OSError or another error of the storage's client."""

    def size(self) -> int: ...


class Storage(Protocol):
    """A directory elsewhere."""

    def open(self, name: str) -> Any:
        """A context manager that gives a Reading."""


@dataclass(frozen=True)
class Location:
    """A remote directory."""

    uri: str
    """Without options; fit for messages and states."""
    scheme: str
    path: str
    """What follows the scheme, without a slash at its end."""
    options: dict[str, str] = field(default_factory=dict)
    filesystem: Any = field(default=None, repr=False)
    """A pyarrow or fsspec filesystem that the caller gave."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def key(self) -> str | None:
        """What names this place among all others, in hexadecimal; None when only the filesystem object knows."""
        if self.filesystem is not None:
            return None
        there = [self.uri, *sorted(self.options.items()), *((name, os.environ.get(name)) for name in _ENDPOINTS)]
        return hashlib.sha256(repr(there).encode()).hexdigest()[:32]

    def storage(self, timeout: float) -> Storage:
        """UsageError when what the scheme needs is not installed or refuses its options."""
        if self.filesystem is not None:
            return _of_object(self.filesystem, self.path)
        if self.scheme in ("http", "https"):
            return HttpStorage(self.uri, timeout)
        if self.scheme == "hf":
            try:
                import fsspec

                return FsspecStorage(fsspec.filesystem("hf"), self.path)
            except ImportError as error:
                raise UsageError(f"{self.uri}: needs fsspec and huggingface-hub: {error}") from None
        return ArrowStorage(self._arrow(timeout), self.path)

    def _arrow(self, timeout: float) -> Any:
        from pyarrow import fs

        options: dict[str, Any] = dict(self.options)
        anonymous = options.pop("anonymous", "false")
        if anonymous not in ("true", "false"):
            raise UsageError(f"{self.uri}: anonymous must be true or false, got {anonymous!r}")
        try:
            if self.scheme == "gs":
                from datetime import timedelta

                limit = timedelta(seconds=max(1, round(timeout)))
                return fs.GcsFileSystem(anonymous=anonymous == "true", retry_time_limit=limit, **options)
            once = fs.AwsStandardS3RetryStrategy(max_attempts=1)  # tries are ours, so that they can be counted
            return fs.S3FileSystem(
                anonymous=anonymous == "true",
                connect_timeout=timeout,
                request_timeout=timeout,
                retry_strategy=once,
                **options,
            )
        except (ImportError, AttributeError):
            raise UsageError(f"{self.uri}: this pyarrow was built without {self.scheme}") from None
        except (OSError, ValueError) as error:
            said = clean(error)
        raise UsageError(f"{self.uri}: {said}")


def is_uri(text: str) -> bool:
    return _URI.match(text) is not None


def parse(text: str) -> Location:
    """UsageError for a scheme that is not in SCHEMES, credentials, options that are not known, chains of URIs. What
    could be a secret is not repeated in it."""
    match = _URI.match(text)
    scheme = match[1].lower() if match else ""
    if match is None or scheme not in SCHEMES or not text.startswith(f"{match[1]}://"):
        raise UsageError(
            f"a URI begins with one of {', '.join(f'{known}://' for known in SCHEMES)}, not {scheme[:20]!r}; for other "
            "storage copy the dataset, or pass its pyarrow or fsspec filesystem object: "
            "maskpipe.open(path, filesystem=…)"
        )
    rest, question, query = text[match.end() :].partition("?")
    if "@" in rest.partition("/")[0] or (scheme in ("http", "https") and question):
        raise UsageError(
            f"{scheme}:// URI: it carries credentials or a query, which would stand in logs and errors; take them out, "
            "and give credentials as the storage's client expects them (its environment variables or files)"
        )
    path = rest.rstrip("/")
    parts = path.split("/")
    if (
        "#" in rest
        or not path.isprintable()
        or " " in path
        or "::" in path
        or {"", ".", ".."} & set(parts[scheme == "file" :])
    ):
        raise UsageError(f"{scheme}:// URI: expected {scheme}://place/directory, without '#', '..', '//' or spaces")
    options = {}
    for key, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        known = _OPTIONS.get(scheme, ())
        if key not in known or key in options:
            raise UsageError(
                f"{scheme}:// URI: after '?' come {', '.join(known) or 'no options'}, each once, not {key[:20]!r}"
            )
        options[key] = value
    return Location(f"{scheme}://{path}", scheme, path, options)


def of_filesystem(path: str, filesystem: Any) -> Location:
    """A directory as a pyarrow or fsspec filesystem object knows it. UsageError for another object."""
    _of_object(filesystem, path)
    clean_path = path.rstrip("/")
    return Location(f"{type(filesystem).__name__}:{clean_path}", "", clean_path, filesystem=filesystem)


def clean(error: BaseException) -> str:
    """What an error says, in one line, without what is or looks like a secret."""
    text = f"{type(error).__name__}: {error}"
    for name in _SECRETS:
        secret = os.environ.get(name, "")
        if len(secret) >= 4:
            text = text.replace(secret, "…")
    for pattern, instead in _LOOKS_SECRET:
        text = pattern.sub(instead, text)
    return " ".join(text.split())[:400]


def is_final(error: BaseException) -> bool:
    """Would another try get the same answer?"""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotImplementedError | Refused):
        return True
    return _FINAL.search(str(error)) is not None


def _of_object(filesystem: Any, path: str) -> Storage:
    from pyarrow import fs

    if isinstance(filesystem, fs.FileSystem):
        return ArrowStorage(filesystem, path.rstrip("/"))
    if callable(getattr(filesystem, "cat_file", None)) and callable(getattr(filesystem, "info", None)):
        return FsspecStorage(filesystem, path.rstrip("/"))
    raise UsageError(f"filesystem: expected one of pyarrow.fs or fsspec, got {type(filesystem).__name__}")


class ArrowStorage:
    """A directory of a pyarrow filesystem. Its threads do not survive a fork."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem, self._path, self._process = filesystem, path, os.getpid()

    @contextmanager
    def open(self, name: str) -> Iterator[Reading]:
        if os.getpid() != self._process:
            raise Refused("it was opened before this process was forked; open the dataset after the fork")
        with self._filesystem.open_input_file(f"{self._path}/{name}") as file:
            yield _ArrowReading(file)


class _ArrowReading:
    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, offset: int, size: int) -> bytes:
        data: bytes = self._file.read_at(size, offset)
        return data

    def size(self) -> int:
        return int(self._file.size())


class FsspecStorage:
    """A directory of an fsspec filesystem."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem, self._path = filesystem, path

    @contextmanager
    def open(self, name: str) -> Iterator[Reading]:
        yield _FsspecReading(self._filesystem, f"{self._path}/{name}")


class _FsspecReading:
    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem, self._path = filesystem, path

    def read(self, offset: int, size: int) -> bytes:
        data: bytes = self._filesystem.cat_file(self._path, start=offset, end=offset + size)
        return data

    def size(self) -> int:
        return int(self._filesystem.info(self._path)["size"])


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Redirects stay with HTTP, and with https where it began so."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if urllib.parse.urlsplit(newurl).scheme not in allowed:
            raise Refused("it redirects to another scheme")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class HttpStorage:
    """A directory of a web server. Ranges are asked for; a server that knows none sends whole files."""

    def __init__(self, base: str, timeout: float) -> None:
        self._base, self._timeout = base, timeout
        self._opener = urllib.request.OpenerDirector()  # nothing but these: no file, ftp or data
        for handler in (
            urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler, _NoDowngrade,
            urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler,
        ):  # fmt: skip
            self._opener.add_handler(handler())

    @contextmanager
    def open(self, name: str) -> Iterator[Reading]:
        yield _HttpReading(self._opener, f"{self._base}/{name}", self._timeout)


class _HttpReading:
    def __init__(self, opener: urllib.request.OpenerDirector, url: str, timeout: float) -> None:
        self._opener, self._url, self._timeout = opener, url, timeout

    def _ask(self, **headers: str) -> Any:
        request = urllib.request.Request(self._url, headers={"Accept-Encoding": "identity", **headers})
        try:
            return self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            code = error.code
            error.close()
        if 400 <= code < 500 and code not in (408, 425, 429):
            raise Refused(f"HTTP status {code}")
        raise OSError(f"HTTP status {code}")

    def read(self, offset: int, size: int) -> bytes:
        with self._ask(Range=f"bytes={offset}-{offset + size - 1}") as answer:
            skip = 0 if answer.status == 206 else offset
            while skip:
                passed = len(answer.read(min(skip, 1 << 20)))
                if not passed:
                    return b""
                skip -= passed
            data: bytes = answer.read(size)
            return data

    def size(self) -> int:
        with self._ask() as answer:
            length = answer.headers.get("Content-Length")
        if length is None or not length.isdigit():
            raise Refused("the server does not say how long the file is")
        return int(length)
