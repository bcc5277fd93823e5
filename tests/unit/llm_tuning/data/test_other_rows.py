"""Rows as other projects write them: what is learned of each, or the words that refuse it."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.errors import in_words
from llm_tuning.modes import MODES

Row = dict[str, Any]
Turns = list[tuple[str, str]]


def user(content: Any, **more: Any) -> Row:
    return {"role": "user", "content": content} | more


def assistant(content: Any, **more: Any) -> Row:
    return {"role": "assistant", "content": content} | more


CHAT = [user("Where is my invoice?"), assistant("Account > Invoices.")]
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


REFUSED: list[tuple[str, Row, Reason, str, str]] = [
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
        Reason.UNKNOWN_SHAPE,
        "none of the shapes",
        "rows are",
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
    # Preferences and judgements.
    (
        "LLaMA-Factory DPO",
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "a"},
                {"from": "human", "value": "r"},
            ],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        Reason.UNSUPPORTED_FIELD,
        "`chosen` belongs to preference data",
        "for sft write the chosen answer as `output`",
    ),
    (
        "TRL DPO",
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        Reason.UNSUPPORTED_FIELD,
        "`chosen` belongs to preference data",
        "for ppo write each answer as a row of its own",
    ),
    ("HH-RLHF", {"chosen": "H: q A: a", "rejected": "H: q A: b"}, Reason.UNSUPPORTED_FIELD, "`chosen`", "for sft"),
    (
        "ms-swift DPO",
        {"messages": CHAT, "rejected_response": "b"},
        Reason.UNSUPPORTED_FIELD,
        "`rejected_response` belongs to preference data",
        "for sft",
    ),
    (
        "OpenAI DPO",
        {
            "input": {"messages": [user("q")]},
            "preferred_output": [assistant("a")],
            "non_preferred_output": [assistant("b")],
        },
        Reason.UNSUPPORTED_FIELD,
        "`preferred_output` belongs",
        "for sft",
    ),
    (
        "a rejected answer beside",
        {"prompt": "q", "output": "a", "rejected": "b"},
        Reason.UNSUPPORTED_FIELD,
        "`rejected` belongs to preference data",
        "for sft",
    ),
    (
        "TRL KTO",
        {"prompt": "q", "completion": "a", "label": False},
        Reason.UNSUPPORTED_FIELD,
        "`label` marks the answer as good or bad",
        "for sft keep the rows with good answers and remove the field; for ppo write it as `reward`",
    ),
    (
        "LLaMA-Factory KTO",
        {"messages": CHAT, "kto_tag": True},
        Reason.UNSUPPORTED_FIELD,
        "`kto_tag` marks the answer",
        "for sft",
    ),
    (
        "ms-swift classes",
        {"messages": [user("q")], "label": 1},
        Reason.UNSUPPORTED_FIELD,
        "`label` marks the answer",
        "for sft",
    ),
    (
        "a classifier's row",
        {"text": "t", "label": "spam"},
        Reason.AMBIGUOUS,
        "`label` labels `text`",
        "set columns to prompt=text,output=label to learn it as the answer",
    ),
    ("a classifier's row by number", {"text": "t", "label": 0}, Reason.AMBIGUOUS, "`label` labels", "write it as text"),
    # Media.
    (
        "LLaMA-Factory images",
        {"messages": [user("<image>What?"), assistant("A cup.")], "images": ["a.png"]},
        Reason.UNSUPPORTED_FIELD,
        "`images` belongs to images, audio or video",
        "leave such rows out",
    ),
    (
        "LLaVA",
        {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]},
        Reason.UNSUPPORTED_FIELD,
        "`image` belongs",
        "leave such rows out",
    ),
    (
        "other names and images",
        {"query": "q", "response": "a", "images": ["a.png"]},
        Reason.UNSUPPORTED_FIELD,
        "`images` belongs",
        "leave such rows out",
    ),
    # Two things at once.
    (
        "system twice",
        {"system": "a", "messages": [{"role": "system", "content": "b"}, *CHAT]},
        Reason.AMBIGUOUS,
        "`system` and the first message are two system messages that differ",
        "keep one of them",
    ),
    (
        "two fields of system",
        {"system": "a", "system_prompt": "b", "messages": CHAT},
        Reason.AMBIGUOUS,
        "`system` and `system_prompt` differ",
        "keep one of them",
    ),
    (
        "system of a text",
        {"text": "t", "system": "s"},
        Reason.UNSUPPORTED_FIELD,
        "`system` beside `text`",
        "write `messages`",
    ),
    (
        "history of a text",
        {"text": "t", "history": [["a", "b"]]},
        Reason.AMBIGUOUS,
        "`history` beside text",
        "write its turns",
    ),
    (
        "history of messages",
        {"messages": CHAT, "history": [["a", "b"]]},
        Reason.AMBIGUOUS,
        "`history` beside messages",
        "write its turns",
    ),
    (
        "history that is no pairs",
        {"prompt": "q", "output": "a", "history": ["a", "b"]},
        Reason.NOT_MESSAGES,
        "`history` must be a list of pairs",
        'write [["question", "answer"], ...]',
    ),
    (
        "history with a null",
        {"prompt": "q", "output": "a", "history": [["a", None]]},
        Reason.NULL_FIELD,
        "`answer` is null",
        "give a text",
    ),
    (
        "a rendered prompt",
        {"instruction": "q", "output": "a", "prompt": "### q\n### a"},
        Reason.AMBIGUOUS,
        "has the shapes prompt/output and instruction/output, which say different things",
        "set columns to prompt=prompt,output=output to learn prompt/output, "
        "or set columns to instruction=instruction,output=output to learn instruction/output",
    ),
    (
        "another text",
        {"prompt": "q", "output": "a", "text": "other"},
        Reason.AMBIGUOUS,
        "has the shapes prompt/output and text",
        "set columns to text=text",
    ),
    (
        "another prompt",
        {"messages": CHAT, "prompt": "other"},
        Reason.AMBIGUOUS,
        "`prompt` beside messages is not part of what would be learned",
        "set columns to messages=messages to leave it out",
    ),
    (
        "another answer",
        {"prompt": "q", "output": "a", "solution": "b"},
        Reason.AMBIGUOUS,
        "`solution` beside prompt/output",
        "set columns to prompt=prompt,output=output",
    ),
    (
        "an answer after the last question",
        {"messages": [*CHAT, user("And then?")], "response": "Ten."},
        Reason.AMBIGUOUS,
        "`response` beside messages",
        "put it where it belongs",
    ),
    (
        "a context that is not asked",
        {"prompt": "q", "output": "a", "context": "c"},
        Reason.AMBIGUOUS,
        "`context` beside prompt/output",
        "put it where it belongs",
    ),
    (
        "a prompt beside a text",
        {"prompt": "q", "text": "a"},
        Reason.AMBIGUOUS,
        "`prompt` beside text",
        "set columns to prompt=prompt,output=text where `text` is its answer",
    ),
    (
        "a summary beside a text",
        {"text": "t", "summary": "s"},
        Reason.AMBIGUOUS,
        "`summary` beside text",
        "set columns to prompt=text,output=summary to learn it as the answer to `text`",
    ),
    (
        "a message of a tree",
        {"text": "t", "role": "prompter", "parent_id": None},
        Reason.AMBIGUOUS,
        "the row is one message",
        'write {"messages": [...]}',
    ),
    (
        "UltraFeedback, the question in both",
        {"prompt": "q", "completion": [user("q"), assistant("a")]},
        Reason.AMBIGUOUS,
        "`completion` begins with a turn of the user",
        "give the answer alone",
    ),
    # What the template, a tokenizer or a trainer of its own would do.
    (
        "template arguments",
        {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": False}},
        Reason.UNSUPPORTED_FIELD,
        "`chat_template_kwargs` changes how the chat template writes the row",
        "remove it",
    ),
    (
        "axolotl train_on_input",
        {"prompt": "q", "output": "a", "train_on_input": True},
        Reason.UNSUPPORTED_FIELD,
        "`train_on_input` asks for prompts to be learned",
        "remove the field",
    ),
    (
        "axolotl segments",
        {"segments": [{"label": True, "text": "t"}]},
        Reason.UNSUPPORTED_FIELD,
        "`segments` says what is learned",
        "mark a whole turn",
    ),
    (
        "tokens",
        {"input_ids": [1, 2], "labels": [-100, 2]},
        Reason.UNSUPPORTED_FIELD,
        "`input_ids` holds tokens",
        "give the rows as text",
    ),
    (
        "a row for the test",
        {"prompt": "q", "output": "a", "split": "test"},
        Reason.UNSUPPORTED_FIELD,
        "`split` says that the row is for evaluation",
        "a file of their own",
    ),
    (
        "medical-o1",
        {"Question": "q", "Complex_CoT": "c", "Response": "a"},
        Reason.UNSUPPORTED_FIELD,
        "`Complex_CoT` is reasoning apart from the answer",
        "leave such rows out",
    ),
    (
        "a mistyped field",
        {"prompt": "q", "ouput": "a"},
        Reason.MISSING_FIELD,
        "`output` is missing",
        "did you mean to call `ouput` `output`?",
    ),
    (
        "no field that is like one",
        {"version": 1, "images": None},
        Reason.UNKNOWN_SHAPE,
        "none of the shapes of sft rows; it has version, images",
        "rows are",
    ),
]


@pytest.mark.parametrize(
    ("row", "reason", "rule", "fix"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_is_refused_and_how(row: Row, reason: Reason, rule: str, fix: str) -> None:
    with pytest.raises(RowFault) as fault:
        RowParser(MODES["sft"].rows).parse(1, row)
    assert fault.value.reason is reason
    assert rule in in_words(fault.value.rule)
    assert fix in in_words(fault.value.fix)


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


def test_every_proposed_column_makes_the_row_work() -> None:
    tried = 0
    for name, row, *_, fix in REFUSED:
        said = fix.partition("set columns to ")[2].split(" ")[0]
        if not said:
            continue
        columns = dict(pair.split("=") for pair in said.split(","))
        filled = row | {field: "text" for field, value in row.items() if value == ""}
        assert RowParser(MODES["sft"].rows, columns).parse(1, filled), name
        tried += 1
    assert tried > 20
