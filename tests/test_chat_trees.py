"""A tree becomes one chat per leaf, and what is left out of it is counted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpipe.chat import Conversation, read_all
from maskpipe.recipe import Recipe
from tests.chats import at, chats, refusal, turns


def node(role: str, text: str, *replies: Any, **more: Any) -> dict[str, Any]:
    return {"message_id": text, "role": role, "text": text, **more, "replies": list(replies)}


TREE = node(
    "prompter", "q",
    node("assistant", "a1", node("prompter", "q2", node("assistant", "a2"), node("assistant", "a3"))),
    node("assistant", "b1"),
    node("assistant", "gone", node("prompter", "after"), deleted=True),
    node("assistant", "spam", review_result=False),
)  # fmt: skip


def test_every_path_from_the_root_to_a_leaf_is_a_chat() -> None:
    for record in (TREE, {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": TREE}):
        read = chats(record)
        assert [turns(chat) for chat in read] == [
            [("user", "q"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")],
            [("user", "q"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a3")],
            [("user", "q"), ("assistant", "b1")],
        ]
        for chat in read:
            for message, path in zip(chat.messages, chat.paths, strict=True):
                assert at(record, path)["text"] == message["content"]


def test_what_is_left_out_is_counted_with_all_that_answers_it() -> None:
    assert read_all(TREE, Recipe()).counts == {"tree_nodes_deleted": 2, "tree_nodes_refused": 1}
    assert refusal({**TREE, "deleted": True}).reason == "empty_conversation"


def test_a_node_whose_replies_are_all_left_out_is_a_leaf() -> None:
    tree = node("prompter", "q", node("assistant", "a", node("prompter", "x", deleted=True)))
    assert [turns(chat) for chat in chats(tree)] == [[("user", "q"), ("assistant", "a")]]


def test_a_tree_beside_a_completion_is_refused_since_one_of_them_would_be_lost() -> None:
    assert "prompt" in str(refusal({"prompt": TREE, "completion": "an answer"}))


def test_stopped_trees_are_refused_unless_the_recipe_says_otherwise() -> None:
    record = {"prompt": TREE, "tree_state": "aborted_low_grade"}
    assert refusal(record).reason == "tree_stopped"
    assert len(chats(record, columns={"tree_state": "ignore"})) == 3


def test_trees_elsewhere_with_other_names_are_mapped() -> None:
    other = {"thread": {"who": "Q", "content": "q", "replies": [{"who": "A", "content": "a", "weight": 0}]}}
    columns = {"thread": "tree", "messages[].who": "role"}
    (read,) = chats(other, columns=columns, roles={"Q": "user", "A": "assistant"})
    assert turns(read) == [("user", "q"), ("assistant", "a")] and read.weights == [None, 0.0]


def test_refusals_name_the_place() -> None:
    assert "$.replies[0] is the number 5" in str(refusal(node("prompter", "q", 5)))
    assert "$.replies[0].text is null" in str(refusal(node("prompter", "q", {"role": "assistant", "replies": []})))
    assert refusal(node("bard", "q")).reason == "unknown_role"
    assert "$.replies[0].replies" in str(refusal(node("prompter", "q", {**node("assistant", "a"), "replies": "x"})))


nodes = st.recursive(
    st.builds(lambda text, deleted: node("assistant", text, deleted=deleted), st.text(max_size=3), st.booleans()),
    lambda inner: st.builds(
        lambda text, replies, deleted: node("prompter", text, *replies, deleted=deleted),
        st.text(max_size=3),
        st.lists(inner, max_size=3),
        st.booleans(),
    ),
    max_leaves=12,
)


@given(nodes)
def test_every_node_is_in_a_chat_or_counted(tree: dict[str, Any]) -> None:
    def size(node: dict[str, Any]) -> int:
        return 1 + sum(map(size, node["replies"]))

    if tree["deleted"]:
        assert refusal(tree).reason == "empty_conversation"
        return
    read = read_all(tree, Recipe())
    paths = {path for chat in read.items if isinstance(chat, Conversation) for path in chat.paths}
    assert len(paths) + read.counts["tree_nodes_deleted"] == size(tree)


@pytest.mark.parametrize("more", [{"tool_calls": [{"name": "f"}]}, {"reasoning_content": "hm"}])
def test_a_node_that_holds_more_than_text_is_refused(more: dict[str, Any]) -> None:
    answer = {"role": "assistant", "text": "a", "replies": [], **more}
    error = refusal({"role": "prompter", "text": "q", "replies": [answer]})
    assert error.reason == "bad_field" and next(iter(more)) in str(error)
