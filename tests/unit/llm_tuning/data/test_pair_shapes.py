"""Rows of two answers, in every form that projects write them in, and what is compared of each."""

from __future__ import annotations

import random
from typing import Any

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.rows import Example
from llm_tuning.errors import in_words
from llm_tuning.modes.preference_rows import dpo_rows
from tests.support.other_rows import Row, assistant, user

FORM = dpo_rows()
SECRET = "sECRET"
ASKED, GOOD, BAD = user("Capital of Chile?"), assistant("Santiago"), assistant("Buenos Aires")
EARLIER = [user("Capital of Peru?"), assistant("Lima")]
SYSTEM = {"role": "system", "content": "Be brief."}


def human(text: str) -> Row:
    return {"from": "human", "value": text}


def gpt(text: str) -> Row:
    return {"from": "gpt", "value": text}


SHAREGPT = [human("Capital of Peru?"), gpt("Lima"), human("Capital of Chile?")]
ONE_TURN = [ASKED]
SEVERAL = [*EARLIER, ASKED]
WITH_SYSTEM = [SYSTEM, ASKED]
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


ROW = {"prompt": "Capital of Chile?", "chosen": "Santiago", "rejected": "Buenos Aires"}
OPENAI = {"input": {"messages": [ASKED]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}
DIALOGUE = f"\n\nHuman: {SECRET}?\n\nAssistant: {SECRET}."
REFUSED: list[tuple[str, Row, Reason, str, str]] = [
    ("equal texts", ROW | {"rejected": "Santiago"}, Reason.EQUAL_SIDES, "`chosen` and `rejected` are the same", ""),
    ("equal but for white space", ROW | {"rejected": " Santiago\n"}, Reason.EQUAL_SIDES, "are the same", ""),
    ("equal messages", ROW | {"chosen": [GOOD], "rejected": "Santiago"}, Reason.EQUAL_SIDES, "are the same", ""),
    (
        "equal conversations",
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, GOOD]},
        Reason.EQUAL_SIDES,
        "neither is better",
        "remove the row",
    ),
    (
        "one the beginning of the other",
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, GOOD, user("And?"), BAD]},
        Reason.EQUAL_SIDES,
        "`chosen` is the beginning of `rejected`",
        "the same turns",
    ),
    ("empty", ROW | {"rejected": " "}, Reason.EMPTY_FIELD, "`rejected` is empty", ""),
    ("both empty", ROW | {"chosen": "", "rejected": ""}, Reason.EMPTY_FIELD, "`chosen` is empty", ""),
    ("an empty message", ROW | {"rejected": [assistant("")]}, Reason.EMPTY_FIELD, "`content` is empty", ""),
    ("an empty list", ROW | {"chosen": []}, Reason.NOT_MESSAGES, "`chosen` must be a list of messages", ""),
    ("null", ROW | {"chosen": None}, Reason.NULL_FIELD, "`chosen` is null", ""),
    ("a number", ROW | {"chosen": 3}, Reason.NOT_TEXT, "`chosen` must be text, a message or a list of", ""),
    (
        "a chosen of the user",
        ROW | {"chosen": user(SECRET)},
        Reason.NO_ASSISTANT_TURN,
        "`chosen` has no turn of the assistant",
        "the assistant's answer",
    ),
    (
        "a rejected that ends with the user",
        ROW | {"rejected": [BAD, user(SECRET)]},
        Reason.NO_ASSISTANT_TURN,
        "`rejected` ends with a turn of the user",
        "",
    ),
    (
        "conversations without an answer",
        {"chosen": [ASKED], "rejected": [ASKED, BAD]},
        Reason.NO_ASSISTANT_TURN,
        "`chosen` has no turn of the assistant",
        "",
    ),
    (
        "prompts that differ",
        {"chosen": [user("q"), GOOD], "rejected": [user("p"), BAD]},
        Reason.PROMPTS_DIFFER,
        "differ before their answers, first in message 1",
        "the same turns",
    ),
    (
        "later questions that differ",
        {"chosen": [*EARLIER, user("q"), GOOD], "rejected": [*EARLIER, user("p"), BAD]},
        Reason.PROMPTS_DIFFER,
        "first in message 3",
        "",
    ),
    (
        "a system message in one of them",
        {"chosen": [SYSTEM, ASKED, GOOD], "rejected": [ASKED, BAD]},
        Reason.PROMPTS_DIFFER,
        "first in message 1",
        "",
    ),
    (
        "one whole, one alone",
        {"prompt": "Capital of Chile?", "chosen": [ASKED, GOOD], "rejected": "Lima"},
        Reason.AMBIGUOUS,
        "`chosen` is a whole conversation, and `rejected` an answer alone",
        "",
    ),
    (
        "another prompt than in the conversations",
        {"prompt": SECRET, "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        Reason.AMBIGUOUS,
        "the prompt is not in it",
        "leave the prompt out",
    ),
    (
        "texts without a prompt",
        {"chosen": SECRET, "rejected": "Lima"},
        Reason.MISSING_FIELD,
        "answers without what was asked",
        "add `prompt`",
    ),
    (
        "Anthropic's hh-rlhf",
        {"chosen": f"{DIALOGUE} Yes", "rejected": f"{DIALOGUE} No"},
        Reason.ALREADY_RENDERED,
        "`chosen` is a conversation written down as one text",
        "write its turns as messages",
    ),
    (
        "a prompt written down",
        {"prompt": f"{DIALOGUE}\n\nHuman: {SECRET}\n\nAssistant:", "chosen": " Yes", "rejected": " No"},
        Reason.ALREADY_RENDERED,
        "`prompt` is a conversation",
        "",
    ),
    (
        "a prompt that ends with an answer",
        {"messages": [*SEVERAL, GOOD], "chosen": GOOD, "rejected": BAD},
        Reason.AMBIGUOUS,
        "ends with a turn of the assistant",
        "",
    ),
    (
        "several rejected",
        ROW | {"rejected": ["Lima", "Cuzco"]},
        Reason.NOT_MESSAGES,
        "`rejected` holds 2 answers",
        "one row for each pair",
    ),
    ("a prompt that is an object", ROW | {"prompt": ASKED}, Reason.NOT_MESSAGES, "`prompt` must be text or a list", ""),
    (
        "OpenAI's input as text",
        OPENAI | {"input": "Capital of Chile?"},
        Reason.UNKNOWN_SHAPE,
        "`preferred_output` and `non_preferred_output`",
        "set columns to prompt=input,chosen=preferred_output,rejected=non_preferred_output",
    ),
    (
        "tools twice",
        OPENAI | {"input": {"messages": [ASKED], "tools": [{"a": 1}]}, "tools": [{"b": 2}]},
        Reason.AMBIGUOUS,
        "`tools` is there beside `input`",
        "",
    ),
    (
        "messages in OpenAI's input",
        OPENAI | {"input": {"messages": SECRET}},
        Reason.NOT_MESSAGES,
        "`input.messages`",
        "",
    ),
    (
        "a third answer",
        ROW | {"rejected_response": SECRET},
        Reason.AMBIGUOUS,
        "`rejected_response` beside prompt/chosen/rejected",
        "set columns to prompt=prompt,chosen=chosen,rejected=rejected",
    ),
    ("a further text", ROW | {"context": SECRET}, Reason.AMBIGUOUS, "`context` beside prompt/chosen/rejected", ""),
    ("images", ROW | {"images": ["a.png"]}, Reason.UNSUPPORTED_FIELD, "`images` belongs to images", ""),
    ("images of one side", ROW | {"rejected_images": ["a.png"]}, Reason.AMBIGUOUS, "`rejected_images` beside", ""),
    ("a label", ROW | {"label": 1}, Reason.UNSUPPORTED_FIELD, "`label` marks the answer", "`chosen` and `rejected`"),
    (
        "a learned turn in the prompt",
        {"prompt": [user("q"), assistant("a", weight=1), ASKED], "chosen": "Santiago", "rejected": "Lima"},
        Reason.UNSUPPORTED_FIELD,
        "a turn before the answers that are compared is marked as learned",
        "remove the flag",
    ),
    (
        "a pair in a turn",
        ROW | {"chosen": [assistant("a", rejected=SECRET)]},
        Reason.UNSUPPORTED_FIELD,
        "`rejected` belongs to preference data",
        "a field of the row",
    ),
    ("not yet answered", {"messages": SEVERAL}, Reason.MISSING_FIELD, "`chosen` is missing", ""),
]


def refused(row: Row) -> RowFault:
    with pytest.raises(RowFault) as fault:
        RowParser(FORM).parse(1, row)
    assert SECRET not in f"{fault.value} {fault.value.fix}"
    assert fault.value.fix
    return fault.value


@pytest.mark.parametrize(
    ("row", "reason", "rule", "fix"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_is_refused_and_how(row: Row, reason: Reason, rule: str, fix: str) -> None:
    fault = refused(row)
    assert fault.reason is reason
    assert rule in in_words(fault.rule)
    assert fix in in_words(fault.fix)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"question": "q", "chosen": "a", "rejected": "b"}, "prompt=question"),
        ({"prompt": "q", "chosen_response": "good", "rejected_response": "bad one"}, "*"),
        ({"prompt": "q", "preferred": "good", "dispreferred": "bad one"}, "*"),
        ({"instruction": "q", "chosen_answer": "good", "rejected_answer": "bad one"}, "*"),
        ({"system": "s", "question": "q", "chosen": "good", "rejected": "bad one"}, "prompt=question"),
        ({"question": "q", "context": "c", "chosen": "x", "rejected": "y"}, "instruction=question,input=context"),
        ({"query": "q", "response": "good", "rejected_response": "bad one"}, "prompt=query,chosen=response,"),
        ({"prompt": "q", "response_chosen": "good", "response_rejected": "bad one"}, "*"),
        ({"input": "q", "better_response": "good", "worse_response": "bad one"}, "prompt=input,"),
        ({"dialog": [ASKED], "chosen": "good", "rejected": "bad one"}, "messages=dialog"),
        (
            {"dialog": [{"speaker": "user", "text": "q"}], "chosen": "good", "rejected": "bad one"},
            "messages=dialog,role=speaker,content=text",
        ),
        ({"chosen_messages": [ASKED, GOOD], "rejected_messages": [ASKED, BAD]}, "chosen=chosen_messages,"),
        ({"positive_messages": [ASKED, GOOD], "negative_messages": [ASKED, BAD]}, "chosen=positive_messages,"),
    ],
)
def test_other_names_are_refused_with_columns_that_work(row: Row, columns: str) -> None:
    fix = in_words(refused(row).fix)
    assert fix.startswith(f"set columns to {columns.removesuffix('*')}")
    names = dict(pair.split("=") for pair in fix.removeprefix("set columns to ").split(";")[0].split(","))
    example = RowParser(FORM, names).parse(1, row)
    assert example is not None
    assert len(example.sequences) == 2


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"prompt": "q", "response_a": "x", "response_b": "y", "winner": "a"}, "`response_a` and `response_b`"),
        ({"context": [ASKED], "response1": "x", "response2": "y", "overall_preference": -1}, "`response1` and"),
        ({"instruction": "q", "input": "", "output": ["x", "y"]}, "`output` holds two answers"),
        ({"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": 1}, "`response_0` and"),
    ],
    ids=["by a letter", "HelpSteer3", "LLaMA-Factory's older form", "by a number"],
)
def test_two_answers_of_which_no_name_says_the_better(row: Row, rule: str) -> None:
    fault = refused(row)
    assert rule in fault.rule
    assert "as `chosen`" in fault.fix


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
