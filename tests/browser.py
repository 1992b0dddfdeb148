"""Headless Chromium for tests, driven over its DevTools pipe with the standard library alone."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_SECONDS = 60


class Page:
    """One page. `requests`: every URL that it asked for; `problems`: exceptions and console errors."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer = b""
        self._id = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """One DevTools command and its result."""
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, hash: str = "") -> None:
        """Loads a file. width 390 or so: as a phone."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=phone, deviceScaleFactor=1
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._loaded = False
        self.requests.clear()
        self.problems.clear()
        self.call("Page.navigate", url="about:blank")
        self._until_loaded()
        self.requests.clear()
        self.call("Page.navigate", url=path.resolve().as_uri() + hash)
        self._until_loaded()
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 60)))")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, promises awaited. RuntimeError when it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def count(self, selector: str) -> int:
        return int(self.run(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def move(self, selector: str, *, click: bool = False) -> None:
        """The mouse onto the middle of an element that is on the screen."""
        box = self.run(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def key(self, key: str) -> None:
        """A key, pressed and released: a character, or a name such as Enter."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def wait(self, expression: str) -> None:
        """Until a JavaScript expression is true. AssertionError when it does not become so."""
        end = time.monotonic() + _SECONDS
        while not self.run(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _until_loaded(self) -> None:
        end = time.monotonic() + _SECONDS
        while not self._loaded and time.monotonic() < end:
            self._note(self._read_message(end))
        assert self._loaded, "the page did not load"
        self._loaded = False

    def _next(self) -> dict[str, Any]:
        message = self._read_message(time.monotonic() + _SECONDS)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, values = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(values["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.problems.append(values["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {values['message']}")

    def _read_message(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready = select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]
            data = os.read(self._read, 1 << 20) if ready else b""
            if not data:
                raise RuntimeError("Chromium does not answer")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        value: dict[str, Any] = json.loads(message)
        return value


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A page of a browser that is killed at the end. `profile`: an empty directory for what it keeps."""
    assert CHROMIUM is not None
    to_read, to_write = _pipe(), _pipe()
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--no-first-run", "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={profile}",
    ]  # fmt: skip

    def give() -> None:  # the browser reads commands from descriptor 3 and answers on 4
        for source, target in ((to_read[0], 3), (to_write[1], 4)):
            os.dup2(source, target, inheritable=True)

    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=give, close_fds=False, start_new_session=True,
    )  # fmt: skip
    os.close(to_read[0])
    os.close(to_write[1])
    try:
        yield Page(to_write[0], to_read[1])
    finally:
        process.kill()
        process.wait()
        os.close(to_read[1])
        os.close(to_write[0])


def _pipe() -> tuple[int, int]:
    """Two ends above descriptor 4, so that giving 3 and 4 to the child closes none that it still needs."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]
