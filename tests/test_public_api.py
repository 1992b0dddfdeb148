"""The names others build on, and their parameters."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import maskpipe


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_all_is_sorted_complete_and_resolves() -> None:
    assert maskpipe.__all__ == sorted(maskpipe.__all__)
    for name in maskpipe.__all__:
        assert getattr(maskpipe, name) is not None
    assert set(maskpipe.__all__) == set(maskpipe._HOME)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prepere'"):
        _ = maskpipe.prepere  # type: ignore[attr-defined]


def test_the_public_signatures() -> None:
    assert parameters(maskpipe.ChatTemplate)[:3] == ["source", "bos_token", "eos_token"]
    assert parameters(maskpipe.ChatTemplate.render) == [
        "self", "messages", "tools", "documents", "add_generation_prompt", "kwargs",
    ]  # fmt: skip
    assert parameters(maskpipe.encode) == ["conversation", "tokenizer", "recipe"]
    assert parameters(maskpipe.prepare)[:4] == ["source", "out", "tokenizer", "recipe"]
    assert parameters(maskpipe.pack.best_fit) == ["lengths", "capacity"]
    assert [*maskpipe.Span._fields][:7] == [
        "start", "end", "role", "part", "message", "sampled", "source",
    ]  # fmt: skip


def test_a_packing_lists_every_document_once() -> None:
    packing = maskpipe.pack.best_fit(np.array([4, 8, 2, 3], np.int32), 10)
    bins = [packing.order[a:b].tolist() for a, b in zip(packing.offsets[:-1], packing.offsets[1:], strict=True)]
    assert bins == [[1, 2], [0, 3]]


def test_a_recipe_is_frozen_and_keyword_only() -> None:
    with pytest.raises(TypeError):
        maskpipe.Recipe("sft")  # type: ignore[misc]
    with pytest.raises(AttributeError):
        maskpipe.Recipe().sequence_length = 1  # type: ignore[misc]


def test_unknown_recipe_keys_name_the_nearest_one() -> None:
    with pytest.raises(maskpipe.UsageError, match="unknown key 'sequnce_length'; did you mean 'sequence_length'"):
        maskpipe.Recipe.from_dict({"sequnce_length": 4096})


def test_a_render_says_what_the_model_samples() -> None:
    """The first example of the documentation, and the shape of its answer."""
    template = maskpipe.ChatTemplate(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        eos_token="<|im_end|>",
    )
    rendered = template.render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    assert rendered.sampled_text() == ["Hello<|im_end|>"]
    assert [span.start for span in rendered.spans[1:]] == [span.end for span in rendered.spans[:-1]]
    assert (rendered.spans[0].start, rendered.spans[-1].end) == (0, len(rendered.text))
    hello = next(span for span in rendered.spans if rendered.text[span.start : span.end] == "Hello")
    assert hello.source == (("messages", 1, "content"), 0, 5)
    assert (hello.role, hello.part, hello.message) == (maskpipe.Role.ASSISTANT, maskpipe.Part.CONTENT, 1)
