"""MP4xx: tokens. Ids that do not belong where they stand."""

from __future__ import annotations

from maskpipe.rules.rule import Rule

RULES = (
    Rule(
        "MP401",
        "id-outside-vocabulary",
        "A token id is negative, or not below the size of the vocabulary.",
        "The embedding has no such row: the run crashes, or another token is trained in its place.",
        "Use the tokenizer that the model has; look for a number type that is too small.",
        "error",
        "id 151,700 in a vocabulary of 151,669",
        ("T08", "T09", "T10"),
    ),
    Rule(
        "MP402",
        "bos-missing",
        "A document does not begin with the BOS token, although the template (or, for text, the tokenizer) writes one.",
        "The model sees text without the token that begins every text at inference.",
        "Do not remove BOS after templating; add it exactly once.",
        "error",
        "the template begins with `<s>`, document 7 does not",
        ("T02", "P18"),
    ),
    Rule(
        "MP403",
        "bos-doubled",
        "A document begins with two BOS tokens, or has one where the template writes none.",
        "The tokenizer added one to a text that had one. Inference does not have it.",
        "Encode templated text with add_special_tokens=False.",
        "error",
        "`<s><s>[INST]`",
        ("T01",),
    ),
    Rule(
        "MP404",
        "control-token-in-content",
        "A control token stands inside the content, the reasoning, a tool call or a tool definition of a message.",
        "Who wrote the data can end a turn and begin another: an injection. Inference would not read it as text.",
        "Encode content as text (control_tokens_in_content text), or allow the token for the role in the recipe.",
        "error",
        "a user's message holds the id of `<|im_start|>`",
        ("I01", "I02", "I03", "I05", "M33", "C19", "L3"),
    ),
    Rule(
        "MP405",
        "stop-doubled",
        "A stop token follows the stop token of a turn, and the template did not write it.",
        "Something appended an end to a text that had one.",
        "Let the template write the end, and nothing else.",
        "error",
        "`<|im_end|></s>` at the end of every conversation",
        ("T07", "L24"),
    ),
    Rule(
        "MP406",
        "reasoning-marks-unbalanced",
        "In an assistant turn a mark that opens (`<think>`) and the one that closes it do not come in pairs.",
        "The turn begins or ends inside its reasoning: the model learns never to close it, or to close what is closed.",
        "Look at the records: reasoning split from its tags, or wrapped twice.",
        "warning",
        "`<think></think>reasoning</think>answer`",
        ("M14",),
    ),
    Rule(
        "MP407",
        "unknown-tokens",
        "Documents hold the tokenizer's unknown token.",
        "Text was lost in encoding: the tokenizer has nothing for it. Many mean that another tokenizer made the data.",
        "Use a tokenizer that covers the text, or the one that made the data.",
        "warning",
        "3 % of all tokens are `<unk>`",
        ("T10",),
    ),
)
