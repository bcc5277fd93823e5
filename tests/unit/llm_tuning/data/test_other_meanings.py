"""Rows of other projects that say more than we learn, or two things at once: refused by the field's name."""

from __future__ import annotations

import pytest

from llm_tuning.data.faults import Reason
from tests.support.other_rows import CHAT, Refused, Row, assert_refused, assistant, user

CUT = "`{}` says that the answer was cut off"
REFUSED: list[Refused] = [
    # Answers that a server ended before the model did.
    *(
        (
            f"cut by {name} {value}",
            {"messages": CHAT, name: value},
            Reason.UNSUPPORTED_FIELD,
            CUT.format(name),
            "leave such",
        )
        for name, value in (
            ("finish_reason", "length"),
            ("finish_reason", "content_filter"),
            ("stop_reason", "max_tokens"),
            ("done_reason", "length"),
            ("finishReason", "MAX_TOKENS"),
            ("truncated", True),
        )
    ),
    (
        "a cut turn",
        {"messages": [user("q"), {"role": "assistant", "content": "a", "finish_reason": "length"}]},
        Reason.UNSUPPORTED_FIELD,
        CUT.format("finish_reason"),
        "leave such",
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
        "for sft keep the rows with good answers and remove the field; set mode to kto, which learns from it; for ppo",
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
    (
        "OpenAI's refusals",
        {"messages": [user("q"), {"role": "assistant", "content": None, "refusal": "I cannot do that."}]},
        Reason.UNSUPPORTED_FIELD,
        "`refusal` is an answer that refuses",
        "write it as that text (`content` of a turn)",
    ),
    (
        "OpenAI's refusals, beside a text",
        {"messages": [user("q"), assistant("a") | {"refusal": "I cannot do that."}]},
        Reason.UNSUPPORTED_FIELD,
        "`refusal` is an answer that refuses",
        "else leave the row out",
    ),
    (
        "OpenAI's refusals, as a part",
        {"messages": [user("q"), assistant([{"type": "refusal", "refusal": "I cannot do that."}])]},  # type: ignore[arg-type]
        Reason.UNSUPPORTED_FIELD,
        "`refusal` is an answer that refuses",
        "else leave the row out",
    ),
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
        "set columns to prompt=messages,output=response",
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
        "columns to prompt=Question,output=Response,reasoning_content=Complex_CoT where it belongs",
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
    assert_refused(row, reason, rule, fix)
