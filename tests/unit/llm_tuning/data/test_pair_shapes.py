"""Rows of two answers, in every form that projects write them in, and what is compared of each."""

from __future__ import annotations

import random
from typing import Any

import pytest

from llm_tuning.data.faults import RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.rows import Example
from llm_tuning.modes.preference_rows import dpo_rows
from tests.support.other_rows import Row, assistant, user
from tests.support.pair_rows import (
    ASKED,
    BAD,
    GOOD,
    ONE_TURN,
    SEVERAL,
    SHAREGPT,
    SYSTEM,
    WITH_SYSTEM,
    gpt,
)

FORM = dpo_rows()
COMPARED: list[tuple[str, Row, list[Row], str]] = [
    (
        "TRL, texts",
        {"prompt": "Capital of Chile?", "chosen": "Santiago", "rejected": "Buenos Aires"},
        ONE_TURN,
        "prompt/chosen/rejected",
    ),
    ("TRL, messages", {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, ONE_TURN, "prompt/chosen/rejected"),
    ("TRL, several turns", {"prompt": SEVERAL, "chosen": [GOOD], "rejected": [BAD]}, SEVERAL, "prompt/chosen/rejected"),
    (
        "TRL, a prompt of messages and texts",
        {"prompt": SEVERAL, "chosen": "Santiago", "rejected": "Buenos Aires"},
        SEVERAL,
        "prompt/chosen/rejected",
    ),
    (
        "single messages",
        {"prompt": "Capital of Chile?", "chosen": GOOD, "rejected": BAD},
        ONE_TURN,
        "prompt/chosen/rejected",
    ),
    (
        "single texts in lists",
        {"prompt": [ASKED], "chosen": ["Santiago"], "rejected": ["Buenos Aires"]},
        ONE_TURN,
        "prompt/chosen/rejected",
    ),
    (
        "system and history",
        {
            "system": "Be brief.",
            "history": [["Capital of Peru?", "Lima"]],
            "prompt": "Capital of Chile?",
            "chosen": "Santiago",
            "rejected": "Buenos Aires",
        },
        [SYSTEM, *SEVERAL],
        "prompt/chosen/rejected",
    ),
    (
        "parts of text",
        {"prompt": [user([{"type": "text", "text": "Capital of Chile?"}])], "chosen": [GOOD], "rejected": [BAD]},
        ONE_TURN,
        "prompt/chosen/rejected",
    ),
    ("TRL, implicit", {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, ONE_TURN, "chosen/rejected"),
    (
        "TRL, implicit, several turns",
        {"chosen": [SYSTEM, *SEVERAL, GOOD], "rejected": [SYSTEM, *SEVERAL, BAD]},
        [SYSTEM, *SEVERAL],
        "chosen/rejected",
    ),
    (
        "UltraFeedback-binarized",
        {
            "prompt": "Capital of Chile?",
            "prompt_id": "f0e37e",
            "chosen": [ASKED, GOOD],
            "rejected": [ASKED, BAD],
            "messages": [ASKED, GOOD],
            "score_chosen": 8.5,
            "score_rejected": 7.0,
        },
        ONE_TURN,
        "prompt/chosen/rejected",
    ),
    (
        "UltraFeedback by Argilla",
        {
            "source": "evol",
            "prompt": "Capital  of Chile?",
            "chosen": [ASKED, GOOD],
            "chosen-rating": 5.0,
            "chosen-model": "a",
            "rejected": [ASKED, BAD],
            "rejected-rating": 4.0,
        },
        ONE_TURN,
        "prompt/chosen/rejected",
    ),
    (
        "the system beside whole conversations",
        {"system": "Be brief.", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        WITH_SYSTEM,
        "chosen/rejected",
    ),
    (
        "LLaMA-Factory, dpo_en_demo",
        {"conversations": SHAREGPT, "chosen": gpt("Santiago"), "rejected": gpt("Buenos Aires")},
        SEVERAL,
        "conversations/chosen/rejected",
    ),
    (
        "LLaMA-Factory, with a system and empty fields",
        {
            "conversations": SHAREGPT,
            "chosen": gpt("Santiago"),
            "rejected": gpt("Buenos Aires"),
            "system": "Be brief.",
            "tools": "[]",
            "images": [],
        },
        [SYSTEM, *SEVERAL],
        "conversations/chosen/rejected",
    ),
    ("messages", {"messages": SEVERAL, "chosen": GOOD, "rejected": BAD}, SEVERAL, "messages/chosen/rejected"),
    (
        "messages and texts",
        {"messages": SEVERAL, "chosen": "Santiago", "rejected": "Buenos Aires"},
        SEVERAL,
        "messages/chosen/rejected",
    ),
    (
        "Alpaca",
        {"instruction": "Capital", "input": "of Chile?", "chosen": "Santiago", "rejected": "Buenos Aires"},
        [user("Capital\n\nof Chile?")],
        "instruction/chosen/rejected",
    ),
    (
        "Alpaca, from Parquet",
        {
            "instruction": None,
            "input": "Capital of Chile?",
            "history": [["Capital of Peru?", "Lima"]],
            "chosen": "Santiago",
            "rejected": "Buenos Aires",
        },
        SEVERAL,
        "instruction/chosen/rejected",
    ),
    (
        "OpenAI",
        {
            "input": {"messages": WITH_SYSTEM, "tools": [], "parallel_tool_calls": True},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
        WITH_SYSTEM,
        "input.messages/preferred_output/non_preferred_output",
    ),
    (
        "ms-swift",
        {"messages": [*SEVERAL, GOOD], "rejected_response": "Buenos Aires"},
        SEVERAL,
        "messages/rejected_response",
    ),
    (
        "ms-swift, the rejected answer as messages",
        {"messages": [*SEVERAL, GOOD], "rejected_response": [BAD]},
        SEVERAL,
        "messages/rejected_response",
    ),
    (
        "white space that a template trims",
        {"chosen": [user(" Capital of Chile?\n"), GOOD], "rejected": [ASKED, BAD]},
        [user(" Capital of Chile?\n")],
        "chosen/rejected",
    ),
]


def parse(row: Row) -> Example:
    example = RowParser(FORM).parse(1, row)
    assert example is not None
    return example


@pytest.mark.parametrize(
    ("row", "prompt", "shape"), [case[1:] for case in COMPARED], ids=[case[0] for case in COMPARED]
)
def test_what_is_compared(row: Row, prompt: list[Row], shape: str) -> None:
    parser = RowParser(FORM)
    example = parser.parse(1, row)
    assert example is not None
    assert parser.shape is not None
    assert parser.shape.name == shape
    assert example.number != example.number  # NaN
    assert [(side.messages, side.learn_from) for side in example.sequences] == [
        ([*prompt, GOOD], len(prompt)),
        ([*prompt, BAD], len(prompt)),
    ]


def test_answers_of_several_turns_are_compared_from_where_they_differ() -> None:
    then = [user("And of Peru?"), assistant("Lima")]
    chosen, rejected = parse({"prompt": [ASKED], "chosen": [GOOD, *then], "rejected": [BAD, *then]}).sequences
    assert (chosen.learned_turns(), rejected.learned_turns()) == ([1, 3], [1, 3])
    same = parse({"prompt": [ASKED], "chosen": [GOOD, *then], "rejected": [GOOD, then[0], assistant("Cuzco")]})
    assert [side.learned_turns() for side in same.sequences] == [[3], [3]]
    assert [side.learn_from for side in same.sequences] == [3, 3]


def test_fields_that_cannot_matter_are_notes() -> None:
    parser = RowParser(FORM)
    parser.parse(1, COMPARED[10][1] | {"margin": 1.5})
    assert parser.ignored_fields == {"prompt_id", "messages", "score_chosen", "score_rejected", "margin"}
    parser = RowParser(FORM)
    parser.parse(1, next(row for name, row, *_ in COMPARED if name == "OpenAI"))
    assert parser.ignored_fields == set()


def test_a_given_beginning_of_the_answer_belongs_to_both_prompts() -> None:
    begun = assistant("It is ", prefix=True)
    chosen, rejected = parse({"prompt": [ASKED, begun], "chosen": "Santiago", "rejected": "Lima"}).sequences
    assert [side.messages and side.messages[-1]["content"] for side in (chosen, rejected)] == [
        "It is Santiago",
        "It is Lima",
    ]
    assert chosen.prefixes == rejected.prefixes == {1: len("It is ")}


VALUES: tuple[Any, ...] = (
    *(None, "", "a", "b", "[]", 0, True, [], {}, [[]], [{}], ["a"], ["a", "b"], {"messages": 1}, {"messages": []}),
    *(GOOD, BAD, [GOOD], [BAD], [ASKED], [ASKED, GOOD], [ASKED, BAD], {"messages": [ASKED]}, [SYSTEM], [assistant("")]),
)
NAMES = (
    *("prompt", "chosen", "rejected", "messages", "conversations", "input", "instruction", "output", "reward"),
    *("preferred_output", "non_preferred_output", "rejected_response", "system", "history", "label", "question"),
)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_a_row_holds_it_is_a_pair_or_a_refusal(seed: int) -> None:
    chance = random.Random(seed)
    refusals: list[RowFault] = []
    pairs = 0
    for number in range(2000):
        row = {name: chance.choice(VALUES) for name in chance.sample(NAMES, chance.randint(0, 5))}
        if number % 2:
            row |= {"chosen": chance.choice(VALUES), "rejected": chance.choice(VALUES)}
        try:
            example = RowParser(FORM).parse(number, row)
        except RowFault as fault:
            refusals.append(fault)
            continue
        if example is not None and len(example.sequences) == 2:
            one, other = example.sequences
            assert one.messages is not None
            assert other.messages is not None
            assert one.messages[: one.learn_from] == other.messages[: other.learn_from]
            assert one.messages != other.messages
            pairs += 1
    assert pairs
    assert all(fault.rule and fault.fix for fault in refusals)
