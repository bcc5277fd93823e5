"""Rows as other projects write them, and what is learned of each."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.data.parser import RowParser
from llm_tuning.modes import MODES
from tests.support.other_rows import CHAT, Row, assistant, user

Turns = list[tuple[str, str]]


ASKED: Turns = [("user", "Where is my invoice?"), ("assistant", "Account > Invoices.")]
LEARNED: list[tuple[str, Row, Turns, list[int]]] = [
    (
        "Alpaca with system and history",
        {
            "instruction": "And its price?",
            "input": "In euros.",
            "output": "Nine.",
            "system": "Be brief.",
            "history": [["What do you sell?", "Green tea."]],
        },
        [
            ("system", "Be brief."),
            ("user", "What do you sell?"),
            ("assistant", "Green tea."),
            ("user", "And its price?\n\nIn euros."),
            ("assistant", "Nine."),
        ],
        [2, 4],
    ),
    (
        "Alpaca with both empty",
        {"instruction": "Name a prime.", "input": "", "output": "7", "system": "", "history": []},
        [("user", "Name a prime."), ("assistant", "7")],
        [1],
    ),
    (
        "Alpaca as Unsloth writes it",
        {"instruction": "", "input": "What is a fjord?", "output": "A valley."},
        [("user", "What is a fjord?"), ("assistant", "A valley.")],
        [1],
    ),
    (
        "Alpaca from Parquet",
        {"instruction": None, "input": "What is a fjord?", "output": "A valley.", "history": None},
        [("user", "What is a fjord?"), ("assistant", "A valley.")],
        [1],
    ),
    (
        "Alpaca with its rendered text",
        {"instruction": "Name a prime.", "input": "", "output": "7", "text": "### Instruction: Name a  prime.\n### 7"},
        [("user", "Name a prime."), ("assistant", "7")],
        [1],
    ),
    (
        "ShareGPT with a system at the top",
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [("system", "Be brief."), ("user", "q"), ("assistant", "a")],
        [2],
    ),
    (
        "system beside messages, in parts",
        {"system": [{"type": "text", "text": "Be brief."}], "messages": CHAT},
        [("system", "Be brief."), *ASKED],
        [2],
    ),
    (
        "system twice, the same",
        {"system": "Be brief.", "messages": [{"role": "system", "content": " Be brief. "}, *CHAT]},
        [("system", "Be brief."), *ASKED],
        [2],
    ),
    (
        "system beside an empty system message",
        {"systemPrompt": "Be brief.", "messages": [{"role": "system", "content": ""}, *CHAT]},
        [("system", "Be brief."), *ASKED],
        [2],
    ),
    (
        "system_prompt beside prompt and output",
        {"system_prompt": "Be brief.", "prompt": "q", "output": "a"},
        [("system", "Be brief."), ("user", "q"), ("assistant", "a")],
        [2],
    ),
    (
        "system beside a prompt of messages",
        {"system": "Be brief.", "prompt": [user("q")], "completion": [assistant("a")]},
        [("system", "Be brief."), ("user", "q"), ("assistant", "a")],
        [2],
    ),
    (
        "history of messages",
        {"prompt": "And then?", "output": "Ten.", "history": CHAT},
        [*ASKED, ("user", "And then?"), ("assistant", "Ten.")],
        [1, 3],
    ),
    (
        "UltraChat: the prompt again, and its id",
        {"prompt": "Where is my  invoice?", "prompt_id": "f0e37e", "messages": CHAT},
        ASKED,
        [1],
    ),
    (
        "NuminaMath: problem and solution again",
        {"problem": "Where is my invoice?", "solution": "Account > Invoices.", "source": "faq", "messages": CHAT},
        ASKED,
        [1],
    ),
    ("an answer within the answer", {"messages": CHAT, "answer": "Invoices"}, ASKED, [1]),
    (
        "messages and conversations that say the same",
        {
            "messages": CHAT,
            "conversations": [
                {"from": "human", "value": "Where is my invoice?"},
                {"from": "gpt", "value": "Account > Invoices."},
            ],
        },
        ASKED,
        [1],
    ),
    (
        "messages and their text",
        {"messages": CHAT, "text": "U: Where is my invoice? A: Account > Invoices."},
        ASKED,
        [1],
    ),
    (
        "tools that are none",
        {"messages": CHAT, "tools": "[]", "functions": [], "parallel_tool_calls": True},
        ASKED,
        [1],
    ),
    (
        "LLaMA-Factory v1",
        {
            "messages": [
                user([{"type": "text", "value": "q"}], loss_weight=0.0),
                assistant([{"type": "text", "value": "a"}], loss_weight=1.0),
            ]
        },
        [("user", "q"), ("assistant", "a")],
        [1],
    ),
    (
        "axolotl: some turns",
        {"messages": [user("q"), assistant("bad", train=False), *CHAT]},
        [("user", "q"), ("assistant", "bad"), *ASKED],
        [3],
    ),
    (
        "OpenAI: weight",
        {"messages": [user("q"), assistant("bad", weight=0), user("r"), assistant("good", weight=1)]},
        [("user", "q"), ("assistant", "bad"), ("user", "r"), ("assistant", "good")],
        [3],
    ),
    (
        "Mistral: prefix",
        {"messages": [user("2+2?"), assistant("It is", prefix=True), assistant(" 4.")]},
        [("user", "2+2?"), ("assistant", "It is 4.")],
        [1],
    ),
]


@pytest.mark.parametrize(("row", "turns", "learned"), [case[1:] for case in LEARNED], ids=[case[0] for case in LEARNED])
def test_what_is_learned(row: Row, turns: Turns, learned: list[int]) -> None:
    example = RowParser(MODES["sft"].rows).parse(1, row)
    assert example is not None
    (found,) = example.sequences
    assert [(message["role"], message["content"]) for message in found.messages or ()] == turns
    assert found.learned_turns() == learned


@pytest.mark.parametrize("history", [[["Hi", "Hello"]], [user("Hi"), assistant("Hello")]])
def test_in_ppo_the_history_is_context(history: Any) -> None:
    row = {"prompt": "q", "output": "a", "reward": 1, "history": history, "system": "s"}
    example = RowParser(MODES["ppo"].rows).parse(1, row)
    assert example is not None
    (found,) = example.sequences
    assert [message["content"] for message in found.messages or ()] == ["s", "Hi", "Hello", "q", "a"]
    assert found.learned_turns() == [4]
