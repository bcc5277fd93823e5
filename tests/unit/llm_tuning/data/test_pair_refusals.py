"""Rows of two answers that are refused: with which reason and fix, and which columns make other names work."""

from __future__ import annotations

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.errors import in_words
from llm_tuning.modes.preference_rows import dpo_rows
from tests.support.other_rows import Row, assistant, user
from tests.support.pair_rows import (
    ASKED,
    BAD,
    EARLIER,
    GOOD,
    SECRET,
    SEVERAL,
    SYSTEM,
)

FORM = dpo_rows()
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
        "equal but for a character that nobody sees",
        ROW | {"rejected": "Santi\u200bago"},
        Reason.EQUAL_SIDES,
        "look the same: they differ in characters of no width",
        "remove the row",
    ),
    (
        "accents that are written in two ways",
        {"chosen": [ASKED, assistant("Bogot\u00e1")], "rejected": [ASKED, assistant("Bogota\u0301")]},
        Reason.EQUAL_SIDES,
        "look the same",
        "two answers that differ",
    ),
    (
        "two answers as turns",
        ROW | {"rejected": [BAD, assistant(SECRET)]},
        Reason.NOT_MESSAGES,
        "`rejected` holds 2 answers, one after the other, and a pair has one of each",
        "one row for each pair",
    ),
    (
        "two answers behind the turns of both",
        {"chosen": [ASKED, GOOD, assistant(SECRET)], "rejected": [ASKED, BAD]},
        Reason.NOT_MESSAGES,
        "`chosen` holds 2 answers",
        "the parts of one answer as one turn",
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
    *(
        ("a label", pair | {"label": 1}, Reason.UNSUPPORTED_FIELD, "`label` beside two answers", "the better answer as")
        for pair in (ROW, OPENAI, {"messages": [ASKED, GOOD], "rejected_response": "x"})
    ),
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
    (
        "ShareGPT without two answers",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        Reason.MISSING_FIELD,
        "`chosen` is missing",
        "add it; set mode to sft, which learns from such rows",
    ),
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
        ({"messages": [ASKED, GOOD], "rejected_messages": [ASKED, BAD]}, "chosen=messages,rejected=rejected_messages"),
        ({"messages": [ASKED, GOOD], "rejected_messages": [BAD]}, "rejected_response=rejected_messages"),
        ({"conversations": [ASKED, GOOD], "rejected_messages": [ASKED, BAD]}, "chosen=conversations,"),
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
        ({"context": [ASKED], "response1": "x", "response2": "y"}, "`response1` and"),
        ({"instruction": "q", "input": "", "output": ["x", "y"]}, "`output` holds two answers"),
        ({"prompt": "q", "response_0": "x", "response_1": "y"}, "`response_0` and"),
    ],
    ids=["by a letter", "of a context", "LLaMA-Factory's older form", "by a number"],
)
def test_two_answers_of_which_no_name_says_the_better(row: Row, rule: str) -> None:
    fault = refused(row)
    assert rule in fault.rule
    assert "as `chosen`" in fault.fix
