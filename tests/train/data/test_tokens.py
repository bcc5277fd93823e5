"""Token ids against those of transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from llm_tuning.data.rows import Conversation, Example
from llm_tuning.data.tokens import RowTokenizer, TokenisedRow, TokenisedSequence

PIECES = ["Hello", " ", "  ", "\n", "\n\n", "é", "🙂", "def f(x):", "\t", ".", "word", "1234", "中文", "a", "</b>"]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def random_text(chance: random.Random) -> str:
    text = "".join(chance.choices(PIECES, k=chance.randint(1, 12)))
    return text if text.strip() else text + "x"


def random_conversation(seed: int) -> list[dict[str, str]]:
    chance = random.Random(seed)
    turns = [(user(random_text(chance)), assistant(random_text(chance))) for _ in range(chance.randint(1, 4))]
    system = [{"role": "system", "content": random_text(chance)}] if chance.random() < 0.3 else []
    return system + [message for turn in turns for message in turn]


def tokenised(tokenizer: RowTokenizer, example: Example, max_length: int = 100_000) -> TokenisedSequence:
    (row,) = tokenizer.tokenise([example], max_length=max_length)
    assert isinstance(row, TokenisedRow), row
    (sequence,) = row.sequences
    return sequence


def test_ids_are_those_of_apply_chat_template(tokenizer_dir: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer = RowTokenizer.load(tokenizer_dir)
    assert tokenizer is not None
    for seed in range(20):
        messages = random_conversation(seed)
        want = theirs.apply_chat_template(messages, tokenize=True)["input_ids"]
        assert tokenised(tokenizer, of(1, messages=messages)).input_ids.tolist() == want


def of(number: int, **conversation: Any) -> Example:
    """A row of one sequence."""
    return Example(number, (Conversation(**conversation),))
