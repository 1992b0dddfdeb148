"""A template and a tokenizer that do not fit each other are found before anything is trained."""

from __future__ import annotations

import json

import pytest

from maskpipe import demo_data
from maskpipe.encoder import Encoder
from maskpipe.fit import check_fit
from maskpipe.recipe import Recipe
from maskpipe.rules import RULES
from maskpipe.tokenizer import Tokenizer

FILES = Tokenizer.load(demo_data.tokenizer()).files


def codes(template: str | None, files: dict[str, bytes] = FILES, **recipe: str) -> list[str]:
    encoder = Encoder(Tokenizer(files), Recipe(chat_template=template, **recipe))  # type: ignore[arg-type]
    return [finding.code for finding in check_fit(encoder)]


def chat(header: str, stop: str) -> str:
    return (
        f"{{% for m in messages %}}{header}{{{{ m.role }}}}\n{{{{ m.content }}}}{stop}\n{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{header}assistant\n{{% endif %}}"
    )


def test_a_template_and_its_own_tokenizer_fit() -> None:
    assert codes(None) == []
    assert codes(chat("<|turn|>", "<|done|>")) == []


def test_control_strings_that_are_no_tokens_are_named_once_each() -> None:
    encoder = Encoder(Tokenizer(FILES), Recipe(chat_template=chat("<|im_start|>", "<|done|>")))
    (finding,) = check_fit(encoder)
    assert finding.code == "MP101"
    assert "'<|im_start|>'" in finding.text
    assert "ordinary tokens" in finding.text


def test_a_missing_stop_is_named() -> None:
    assert "MP102" in codes(chat("<|turn|>", ""))
    assert "MP102" in codes(chat("<|turn|>", "<|im_end|>"))


def test_a_stop_that_is_missing_for_want_of_an_eos_token_says_so() -> None:
    files = {"tokenizer.json": FILES["tokenizer.json"]}
    template = chat("<|turn|>", "{{ eos_token }}")
    found = check_fit(Encoder(Tokenizer(files), Recipe(chat_template=template)))
    (finding,) = [finding for finding in found if finding.code == "MP102"]
    assert "it writes eos_token, and the tokenizer's files name none" in finding.text


def test_a_stop_that_the_files_do_not_declare_is_named() -> None:
    settings = json.loads(FILES["tokenizer_config.json"])
    settings["eos_token"] = "<|turn|>"
    files = {**FILES, "tokenizer_config.json": json.dumps(settings).encode()}
    assert codes(chat("<|turn|>", "<|done|>"), files) == ["MP104"]


def test_a_template_that_refuses_every_chat_is_named() -> None:
    assert codes("{{ raise_exception('not for chats') }}") == ["MP105"]


def test_pretraining_without_a_template_needs_no_check() -> None:
    files = {"tokenizer.json": FILES["tokenizer.json"]}
    assert codes(None, files, objective="pretrain") == []


@pytest.mark.parametrize("code", ["MP101", "MP102", "MP103", "MP104", "MP105"])
def test_every_code_has_a_rule_that_says_what_to_do(code: str) -> None:
    rule = RULES[code]
    assert rule.what
    assert rule.why
    assert rule.do


def test_a_stop_that_is_the_next_header_is_named_when_it_is_not_declared() -> None:
    """Where the next turn's header is what ends a turn, inference must know it as a stop."""
    assert codes(chat("<|turn|>", "")) == ["MP102", "MP104"]
