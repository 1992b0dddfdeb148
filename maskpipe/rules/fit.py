"""MP1xx: the chat template and the tokenizer do not fit each other. fit.py finds them, before anything is prepared."""

from __future__ import annotations

from maskpipe.rules.rule import Rule

RULES = (
    Rule(
        "MP101",
        "control-string-is-no-token",
        "The template writes a string that looks like a control token, and the tokenizer has no such token.",
        "It is encoded as several ordinary tokens. The model was not trained on it as a control token, and its "
        "pieces merge with the text beside it.",
        "Use the template that belongs to the tokenizer, or add the token to the tokenizer and the model.",
        example="the template writes `<|im_start|>`, which the tokenizer encodes as 6 ordinary tokens",
    ),
    Rule(
        "MP102",
        "no-stop-token",
        "The template writes no stop token after the last assistant turn.",
        "The model is trained on the turn's content but never on ending it: generation will not stop by itself.",
        "Check the template against the model's own. Some templates end a turn with the next turn's header; then "
        "only turns that are not the last are trained to stop.",
        example="`Assistant: yes` is the end of the text: no `</s>` behind it",
    ),
    Rule(
        "MP103",
        "stop-string-is-no-token",
        "The string with which the template ends assistant turns is no single token of the tokenizer.",
        "Generation stops at a token id. A stop string made of several tokens is never recognised as one.",
        "Use the template that belongs to the tokenizer, or add the token to the tokenizer and the model.",
        example="turns end with `<|im_end|>`, and the tokenizer knows only `</s>`",
    ),
    Rule(
        "MP104",
        "stop-token-is-not-declared",
        "The template ends assistant turns with a token that the tokenizer's files do not name as an end of text.",
        "It is trained as the end of the turn, but an engine that goes by these files will not stop there.",
        "Add its id to eos_token_id in the model's generation_config.json.",
        example="turns end with `<|im_end|>`; eos_token_id of generation_config.json is that of `<|endoftext|>`",
    ),
    Rule(
        "MP105",
        "template-cannot-be-probed",
        "The template refused the plain conversations with which maskpipe learns how it ends turns.",
        "Stop tokens are then recognised per conversation only, with less to compare.",
        "Look at the reason given; a template for another task (reranking, embedding) has no assistant turns.",
        example='a reranker\'s template raises "needs a query and a document" for a question and its answer',
    ),
)
