"""Conversations of random text that is hard on tokenizers: white space, several scripts, code, tags."""

from __future__ import annotations

import random

from tests.support.other_rows import Row, assistant, user

PIECES = ["Hello", " ", "  ", "\n", "\n\n", "é", "🙂", "def f(x):", "\t", ".", "word", "1234", "中文", "a", "</b>"]


def random_text(chance: random.Random) -> str:
    """Return up to twelve pieces, not all of them white space."""
    text = "".join(chance.choices(PIECES, k=chance.randint(1, 12)))
    return text if text.strip() else text + "x"


def random_conversation(seed: int) -> list[Row]:
    """Return up to four turns, the first of them after a system message at times."""
    chance = random.Random(seed)
    turns = [(user(random_text(chance)), assistant(random_text(chance))) for _ in range(chance.randint(1, 4))]
    system = [{"role": "system", "content": random_text(chance)}] if chance.random() < 0.3 else []
    return system + [message for turn in turns for message in turn]
