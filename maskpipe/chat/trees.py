"""A tree of messages, each with its replies → one chat per leaf.

    {"role": "prompter", "text": "Hi", "replies": [{"role": "assistant", "text": "Hello", "replies": []},
                                                   {"role": "assistant", "text": "Hey", "replies": []}]}
      → [user Hi, assistant Hello], [user Hi, assistant Hey]

The root is the record itself, or its `prompt`. A node that is `deleted`, or that reviewers did not accept
(`review_result` false), is left out with all that answers it, and counted (tree_nodes_deleted, tree_nodes_refused).
A whole tree that moderators stopped (`tree_state`) is refused. What else a node holds is about it, not part of the
chat.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from maskpipe.chat.columns import COMPLETION_COLUMNS, COMPLETIONS_COLUMNS, Column, Columns, wrong_type
from maskpipe.chat.content import REASONING_KEYS
from maskpipe.chat.conversation import Chat, Json
from maskpipe.chat.fields import SHAREGPT_ROLES, message_weight, role_named
from maskpipe.errors import RecordError
from maskpipe.recipe import Recipe
from maskpipe.strict_json import Path, json_path

_ROLES = {**SHAREGPT_ROLES, "prompter": "user"}
_STOPPED = ("aborted_low_grade", "halted_by_moderator")


def root_of(record: Json, columns: Columns) -> Column | None:
    """The tree's first message, if the record is or holds a tree."""
    tree = columns.get("tree")
    if tree is not None and (tree.mapped or _is_node(tree.value)):
        return tree
    prompt = columns.get("prompt")
    answered = any(name in columns for name in (*COMPLETION_COLUMNS, *COMPLETIONS_COLUMNS))
    if prompt is not None and not answered and _is_node(prompt.value):
        return prompt
    return Column(record, ()) if _is_node(record) else None


def _is_node(value: Json) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("replies"), list)
        and "role" in value
        and ("text" in value or "content" in value)
    )


def read_tree(root: Column, columns: Columns, keys: Mapping[str, str], recipe: Recipe) -> list[Chat]:
    """The chat of every path from the root to a leaf, in order. `keys` renames keys of nodes."""
    state = columns.get("tree_state")
    if state is not None and state.value in _STOPPED:
        raise RecordError(
            f"$.tree_state is {state.value!r}: moderators stopped this tree. Leave such records out with "
            "--on-bad-record reject, or take it all the same with --map tree_state=ignore",
            reason="tree_stopped",
        )
    counts: Counter[str] = Counter()
    leaves: list[Chat] = []
    todo = [(root.value, root.path, Chat())]
    while todo:
        node, path, before = todo.pop()
        why = _left_out(node)
        if why:
            counts[why] += _size(node)
            continue
        here = before.then(_message(node, path, keys, recipe))
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise wrong_type(replies, (*path, "replies"), "a list of nodes")
        if all(_left_out(reply) for reply in replies):
            leaves.append(here)
        todo += [(reply, (*path, "replies", number), here) for number, reply in reversed(list(enumerate(replies)))]
    if leaves:
        leaves[0].counts.update(counts)
    return leaves


def _left_out(node: Json) -> str:
    """Why a node is left out, "" if it is not."""
    if not isinstance(node, dict):
        return ""
    if node.get("deleted") is True:
        return "tree_nodes_deleted"
    return "tree_nodes_refused" if node.get("review_result") is False else ""


def _size(node: Json) -> int:
    """How many messages hang here, this one included."""
    size = 0
    todo = [node]
    while todo:
        replies = todo.pop().get("replies")
        size += 1
        todo += [reply for reply in replies if isinstance(reply, dict)] if isinstance(replies, list) else []
    return size


def _message(node: Json, path: Path, keys: Mapping[str, str], recipe: Recipe) -> Chat:
    if not isinstance(node, dict):
        raise wrong_type(node, path, "a node, which is an object with role, text and replies")
    renamed = {keys.get(key, key): value for key, value in node.items()}
    role = renamed.get("role")
    if not isinstance(role, str):
        raise wrong_type(role, (*path, "role"), "a role name")
    unread = next((key for key in (*REASONING_KEYS, "reasoning_content", "tool_calls") if renamed.get(key)), None)
    if unread is not None:
        raise RecordError(
            f"{json_path((*path, unread))}: a node of a tree holds {unread}, and only text is read there, so it "
            "would be lost. Give each path as a chat in messages",
            reason="bad_field",
        )
    key = "content" if "content" in renamed else "text"
    if not isinstance(renamed.get(key), str):
        raise wrong_type(renamed.get(key), (*path, key), "a string")
    chat = Chat()
    chat.add(
        {"role": role_named(role, _ROLES, path, recipe), "content": renamed[key]}, path, message_weight(renamed, path)
    )
    return chat
