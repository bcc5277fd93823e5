"""Rows whose fields other projects name otherwise, or that hold columns: refused with what makes the file work."""

from __future__ import annotations

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.errors import in_words
from llm_tuning.modes import MODES
from tests.support.other_rows import Refused, Row, assert_refused

REFUSED: list[Refused] = [
    # Pairs by other names: the columns that make the file work.
    (
        "question/answer",
        {"question": "q", "answer": "a", "id": 1},
        Reason.UNKNOWN_SHAPE,
        "has none of the shapes of sft rows, but `question` and `answer`",
        "set columns to prompt=question,output=answer",
    ),
    (
        "input/output",
        {"input": "q", "output": "a"},
        Reason.MISSING_FIELD,
        "`prompt` is missing",
        "set columns to prompt=input",
    ),
    (
        "instruction/response",
        {"instruction": "q", "response": "a"},
        Reason.MISSING_FIELD,
        "`output` is missing",
        "set columns to prompt=instruction,output=response",
    ),
    (
        "dolly",
        {"instruction": "q", "context": "c", "response": "a", "category": "open_qa"},
        Reason.MISSING_FIELD,
        "`output` is missing",
        "set columns to input=context,output=response",
    ),
    (
        "dolly without a context",
        {"instruction": "q", "context": "", "response": "a"},
        Reason.MISSING_FIELD,
        "`output` is missing",
        "set columns to input=context,output=response",
    ),
    (
        "Alpaca by other names, from Parquet",
        {"instruction": "q", "input": None, "response": "a"},
        Reason.MISSING_FIELD,
        "`output` is missing",
        "set columns to output=response",
    ),
    (
        "an empty answer",
        {"question": "q", "answer": ""},
        Reason.UNKNOWN_SHAPE,
        "but `question` and `answer`",
        "set columns to prompt=question,output=answer",
    ),
    (
        "prompt/response",
        {"prompt": "q", "response": "a", "helpfulness": 3},
        Reason.MISSING_FIELD,
        "`output` is missing",
        "set columns to output=response",
    ),
    (
        "query/response",
        {"query": "q", "response": "a", "system": "s", "history": [["a", "b"]]},
        Reason.UNKNOWN_SHAPE,
        "but `query` and `response`",
        "set columns to prompt=query,output=response",
    ),
    (
        "OpenOrca",
        {"id": 1, "system_prompt": "s", "question": "q", "response": "a"},
        Reason.UNKNOWN_SHAPE,
        "but `question` and `response`",
        "set columns to prompt=question,output=response",
    ),
    (
        "FLAN",
        {"inputs": "q", "targets": "a", "task": "t"},
        Reason.UNKNOWN_SHAPE,
        "but `inputs` and `targets`",
        "set columns to prompt=inputs,output=targets",
    ),
    (
        "natural instructions",
        {"definition": "d", "inputs": "q", "targets": "a"},
        Reason.UNKNOWN_SHAPE,
        "none of the shapes",
        "rows are",
    ),
    (
        "capital letters",
        {"Prompt": "q", "Output": "a"},
        Reason.UNKNOWN_SHAPE,
        "but `Prompt` and `Output`",
        "set columns to prompt=Prompt,output=Output",
    ),
    (
        "CNN",
        {"article": "t", "highlights": "h"},
        Reason.UNKNOWN_SHAPE,
        "but `article` and `highlights`",
        "set columns to prompt=article,output=highlights",
    ),
    (
        "sql-create-context",
        {"question": "q", "context": "CREATE", "answer": "SELECT"},
        Reason.UNKNOWN_SHAPE,
        "but `question`",
        "set columns to instruction=question,input=context,output=answer",
    ),
    (
        "several choices",
        {"question": "q", "choices": ["a", "b"], "answer": "a"},
        Reason.UNKNOWN_SHAPE,
        "none of the shapes",
        "rows are",
    ),
    (
        "SQuAD",
        {"question": "q", "context": "c", "answers": {"text": ["a"]}},
        Reason.UNKNOWN_SHAPE,
        "it has question, context, answers",
        "rows are",
    ),
    (
        "an answer that is a number",
        {"question": "q", "answer": 42},
        Reason.UNKNOWN_SHAPE,
        "none of the shapes",
        "rows are",
    ),
    (
        "two answers",
        {"question": "q", "answer": "a", "solution": "b"},
        Reason.AMBIGUOUS,
        "has `answer` and `solution`, and either could be the answer",
        "set columns to prompt=question,output=answer or set columns to prompt=question,output=solution",
    ),
    (
        "dialog",
        {"dialog": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        Reason.UNKNOWN_SHAPE,
        "but `dialog`",
        "set columns to messages=dialog",
    ),
    (
        "speaker and text",
        {"dialog": [{"speaker": "user", "text": "q"}, {"speaker": "assistant", "text": "a"}]},
        Reason.UNKNOWN_SHAPE,
        "but `dialog`",
        "set columns to messages=dialog,role=speaker,content=text",
    ),
    (
        "messages of speaker and text",
        {"messages": [{"speaker": "user", "text": "q"}, {"speaker": "gpt", "text": "a"}]},
        Reason.NOT_MESSAGES,
        "a message has no `role`",
        "set columns to role=speaker,content=text",
    ),
    # Forms that no columns can read.
    (
        "Firefly",
        {"conversation_id": 1, "conversation": [{"human": "q", "assistant": "a"}]},
        Reason.NOT_MESSAGES,
        "(`human`, `assistant`)",
        'write {"messages": [{"role": "user", "content": ...}, {"role": "assistant"',
    ),
    (
        "Firefly, as conversations",
        {"conversations": [{"human": "q", "assistant": "a"}]},
        Reason.NOT_MESSAGES,
        "(`human`, `assistant`)",
        'write {"messages"',
    ),
    (
        "Capybara",
        {"source": "s", "conversation": [{"input": "q", "output": "a"}]},
        Reason.NOT_MESSAGES,
        "(`input`, `output`)",
        'write {"messages"',
    ),
    (
        "a message a row",
        {"role": "user", "content": "q"},
        Reason.UNKNOWN_SHAPE,
        "is a single message",
        'write {"messages": [...]}',
    ),
    (
        "pandas, by index",
        {"prompt": {"0": "q"}, "output": {"0": "a"}},
        Reason.COLUMNS_NOT_ROWS,
        "holds columns, not rows",
        "orient='records'",
    ),
    (
        "pandas, by list",
        {"prompt": ["q", "r"], "output": ["a", "b"]},
        Reason.COLUMNS_NOT_ROWS,
        "holds columns, not rows",
        "orient='records'",
    ),
    (
        "pandas, other names",
        {"question": {"0": "q"}, "answer": {"0": "a"}},
        Reason.COLUMNS_NOT_ROWS,
        "holds columns",
        "orient='records'",
    ),
    (
        "pandas, split",
        {"columns": ["prompt", "output"], "index": [0], "data": [["q", "a"]]},
        Reason.COLUMNS_NOT_ROWS,
        "holds columns",
        "orient='records'",
    ),
]


@pytest.mark.parametrize(
    ("row", "reason", "rule", "fix"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_is_refused_and_how(row: Row, reason: Reason, rule: str, fix: str) -> None:
    assert_refused(row, reason, rule, fix)


def test_columns_are_proposed_for_many() -> None:
    assert sum("set columns to" in fix for *_, fix in REFUSED) > 15


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ({"question": "q", "answer": "a", "reward": 1}, "set columns to prompt=question,output=answer"),
        ({"question": "q", "answer": "a", "score": 1}, "set columns to prompt=question,output=answer,reward=score"),
        ({"question": "q", "context": "c", "answer": "a", "reward": 1}, "rows are {prompt, output, reward}"),
    ],
)
def test_columns_of_ppo(row: Row, fix: str) -> None:
    with pytest.raises(RowFault) as fault:
        RowParser(MODES["ppo"].rows).parse(1, row)
    assert in_words(fault.value.fix) == fix


def test_a_row_with_another_word_than_the_rows_before() -> None:
    parser = RowParser(MODES["sft"].rows)
    parser.parse(1, {"prompt": "q", "output": "a"})
    with pytest.raises(RowFault, match="`output` is missing") as fault:
        parser.parse(2, {"prompt": "q", "answer": "a"})
    assert fault.value.fix == "rename `answer` to `output`, as in the rows before"
