"""How a raw record becomes Conversations or a Text: every shape that people keep chats in, one shape out.

    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}      a record
    Conversation(messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
                 weights=[None, None], paths=[("conversations", 0), ("conversations", 1)], ...)

| shape | how it is known | file |
|---|---|---|
| OpenAI | `messages`, `conversations` or `conversation`: list (or its JSON text) of {"role", "content"} | messages.py |
| ShareGPT | the same columns, {"from", "value"} | messages.py |
| a bare list | the record is a list of messages | messages.py |
| Anthropic | blocks tool_use, tool_result or signed thinking; tools with input_schema; `system` a list | anthropic.py |
| transcript | one of these columns is a string that begins with `Human:`, `user:`, … | transcripts.py |
| display string | `messages_display`, a transcript | transcripts.py |
| tree | {"role", "text", "replies": [...]}, as the record or its `prompt`: one chat per leaf | trees.py |
| prompt, completion | `prompt` with `completion` or `response`: strings, or lists of messages | prompts.py |
| prompt, completions | `prompt` with a list `completions` or `responses`: one chat per answer | prompts.py |
| alpaca | `instruction` (+ `input` or `context`, `history`) with `output` or `response` | prompts.py |
| question, answer | two strings, and no other column that could belong to the text | prompts.py |
| calls beside text | messages {"role", "text", "apis": [{"request", "response"}]} | tool_traces.py |
| search traces | `answer_generation` with train_messages and function | tool_traces.py |
| text | `text`, one string, for objective "pretrain" | reading.py |

With objective "preference" a record holds two answers of which one is preferred, or an answer with a label:

| shape | how it is known | file |
|---|---|---|
| pairs | `chosen` and `rejected`, or another name of the two: strings, messages, whole chats | pairs.py |
| ranked answers | `completions`, `responses` or `answers` with ranks or scores | ranked.py |
| labelled answers | any shape above with `label` (or `kto_tag`) true or false | labelled.py |

The first shape that fits decides; when a second one fits and says something else, the record is refused
(ambiguous_shape). A column that the recipe maps to one of these names counts as that column and goes before all others,
`--map NAME=ignore` takes a column away, and `--map 'messages[].KEY=role'` renames a key inside messages.

Beside any chat: `tools` (or old-style `functions`), `documents`, `chat_template_kwargs`, and `system` (or
`system_prompt`), which becomes the first message (beside.py). With other objectives preference pairs and labels are
refused by name, as pictures and tokenized data always are (refusals.py). Other columns, such as ids, are not part of
the chat.

What a message says is never changed: key order, nulls, unknown keys, object or string tool arguments stay as they are.
Only other spellings of the same thing are renamed: each file says which. Whatever cannot be read is a RecordError with
a reason; nothing is guessed, and nothing is left out without being counted.
"""

from maskpipe.chat.conversation import Conversation, Json, Read, Side, Text
from maskpipe.chat.reading import read_all, read_record

__all__ = ["Conversation", "Json", "Read", "Side", "Text", "read_all", "read_record"]
