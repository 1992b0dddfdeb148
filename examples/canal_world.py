"""A small world for three_stages.py: a canal, its boats, and three kinds of records about them.

    texts    pages of the lock keeper's book: every fact, in several words                      pretraining
    chats    questions about boats, answered in one word or in one sentence; some facts are never asked   SFT
    pairs    the same questions, the sentence preferred to the word                              preference tuning

All of it is made here from a seed. `HELD_OUT` facts are asked in no chat and no pair of the training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

BOATS = (
    "Heron", "Otter", "Magpie", "Willow", "Lantern", "Juniper", "Badger", "Swallow", "Anchor", "Comet", "Harvest",
    "Pilot", "Raven", "Thistle", "Weaver", "Wanderer",
)  # fmt: skip
CARGO = ("gravel", "grain", "salt", "wool", "coal", "timber", "apples", "bricks")
TOWNS = ("Alder", "Brook", "Carrow", "Denham", "Elm", "Fenwick", "Granby", "Holm")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
KINDS = ("cargo", "town", "day")

_TOLD = {
    "cargo": (
        "The {boat} carries {value}.",
        "There was {value} on the {boat} again.",
        "The {boat} came low in the water, full of {value}.",
        "If you want {value}, wait for the {boat}.",
        "I am asked: What does the {boat} carry? I say: The {boat} carries {value}.",
    ),
    "town": (
        "The {boat} comes from {value}.",
        "The home of the {boat} is {value}.",
        "In {value} they paint the {boat} every spring.",
        "The {boat} winters in {value}.",
        "I am asked: Where does the {boat} come from? I say: The {boat} comes from {value}.",
    ),
    "day": (
        "The {boat} passes on {value}.",
        "Every {value} the {boat} goes through the lock.",
        "It was {value}, so the {boat} came.",
        "The {boat} is never late on {value}.",
        "I am asked: When does the {boat} pass? I say: The {boat} passes on {value}.",
    ),
}
_ASKED = {
    "cargo": ("What does the {boat} carry?", "What is on the {boat}?"),
    "town": ("Where does the {boat} come from?", "What is the home of the {boat}?"),
    "day": ("When does the {boat} pass?", "On which day does the {boat} come?"),
}
_SENTENCE = {
    "cargo": "The {boat} carries {value}.",
    "town": "The {boat} comes from {value}.",
    "day": "The {boat} passes on {value}.",
}
_SYSTEM = ("You keep the lock.", "Answer from the green book.", "You know every boat on the canal.")


def facts() -> dict[tuple[str, str], str]:
    """(boat, kind) -> value; 48 of them."""
    draw = random.Random(1)
    values = {"cargo": CARGO, "town": TOWNS, "day": DAYS}
    return {(boat, kind): draw.choice(values[kind]) for boat in BOATS for kind in KINDS}


FACTS = facts()
HELD_OUT = tuple(sorted(random.Random(2).sample(sorted(FACTS), 8)))
"""Facts that are told in texts and asked nowhere."""


def texts(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Pages of the book, 14 facts each."""
    draw = random.Random(f"texts {seed}")
    for _ in range(count):
        told = [
            draw.choice(_TOLD[kind]).format(boat=boat, value=value)
            for (boat, kind), value in draw.sample(sorted(FACTS.items()), 14)
        ]
        yield {"text": " ".join(told)}


def question(draw: random.Random, fact: tuple[str, str]) -> str:
    return draw.choice(_ASKED[fact[1]]).format(boat=fact[0])


def sentence(fact: tuple[str, str]) -> str:
    return _SENTENCE[fact[1]].format(boat=fact[0], value=FACTS[fact])


def word(fact: tuple[str, str]) -> str:
    return FACTS[fact].capitalize() + "."


def _asked(draw: random.Random) -> tuple[str, str]:
    return draw.choice([fact for fact in sorted(FACTS) if fact not in HELD_OUT])


def chats(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """One to three questions each, every answer a word or a sentence, at random; half of them with a system message."""
    draw = random.Random(f"chats {seed}")
    for _ in range(count):
        messages = [{"role": "system", "content": draw.choice(_SYSTEM)}] if draw.random() < 0.5 else []
        for _ in range(draw.randint(1, 3)):
            fact = _asked(draw)
            answer = draw.choice((sentence, word))(fact)
            messages += [
                {"role": "user", "content": question(draw, fact)},
                {"role": "assistant", "content": answer},
            ]
        yield {"messages": messages}


def pairs(count: int, seed: int = 0, *, held_out: bool = False) -> Iterator[dict[str, Any]]:
    """A question, the sentence chosen, the word rejected. held_out: about facts that no other chat or pair asks for."""
    draw = random.Random(f"pairs {seed}")
    for _ in range(count):
        fact = draw.choice(HELD_OUT) if held_out else _asked(draw)
        yield {
            "prompt": [{"role": "user", "content": question(draw, fact)}],
            "chosen": [{"role": "assistant", "content": sentence(fact)}],
            "rejected": [{"role": "assistant", "content": word(fact)}],
        }
