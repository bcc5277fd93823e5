"""Rows of two answers to one prompt, and what makes two conversations of them: the chosen one, then the rejected one.

Both begin with the same messages, and only what differs is learned (`learn_from`): answers that are the same in both
belong to the prompt, for they cancel out of any comparison. A prompt may be given apart, or be the beginning that two
whole conversations have in common, as in TRL.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from llm_tuning.data.faults import Reason, RowFault, got
from llm_tuning.data.messages import Message, Turns, convert_messages
from llm_tuning.data.rows import Conversation, Row, Shape
from llm_tuning.data.shapes import build_conversation, check_joint, read_instruction, text_or_messages
from llm_tuning.data.values import check_text, texts_in

SIDES = ("chosen", "rejected")
"""The sequences of a pair, in their order."""
OPENAI_INPUT = "input.messages"
"""The prompt of OpenAI's preference rows, as `unfold_input` brings it to the top of the row."""

Pair = tuple[Conversation, Conversation]

_DIALOGUE = re.compile(r"\s*(?:#+ ?)?(?:Human|User) ?:.*\n\s*(?:#+ ?)?Assistant ?:", re.DOTALL)
"""A conversation that is written down as one text, as in Anthropic's hh-rlhf."""

_UNSEEN = re.compile("[\u00ad\u200b\u2060\ufeff]")
"""Characters of no width. The joiners of Persian and of emoji are not among them: they change what is seen."""


def unfold_input(row: Row) -> Row:
    """Return OpenAI's `{input: {messages, tools, ...}}` with the parts of `input` as fields; raises RowFault."""
    given = row.get("input")
    if not isinstance(given, Mapping) or "messages" not in given:
        return row
    parts = {OPENAI_INPUT if name == "messages" else name: value for name, value in given.items()}
    if twice := [name for name in parts if row.get(name) not in (None, parts[name])]:
        rule = f"`{twice[0]}` is there beside `input`, which has one of its own"
        raise RowFault(Reason.AMBIGUOUS, rule, "keep the one that is meant")
    return {name: value for name, value in row.items() if name != "input"} | parts


def _with_prompt(field: str, chosen: str = SIDES[0], rejected: str = SIDES[1]) -> Callable[[Row], Pair]:
    """Return what makes a pair of a row with the prompt in `field`: messages, or a text in `prompt`."""

    def convert(row: Row) -> Pair:
        prompt = _text_or_messages(row) if field == "prompt" else convert_messages(row, field)
        return _pair(row, prompt, (chosen, rejected))

    return convert


def _text_or_messages(row: Row) -> Turns:
    prompt = row["prompt"]
    if isinstance(prompt, str):
        _refuse_dialogue(prompt, "prompt")
    elif not isinstance(prompt, list):
        rule = f"`prompt` must be text or a list of messages, got {got(prompt)}"
        raise RowFault(Reason.NOT_MESSAGES, rule, 'write [{"role": "user", "content": ...}, ...]')
    return text_or_messages(row, "prompt", "user")


def _from_instruction(row: Row) -> Pair:
    return _pair(row, Turns([{"role": "user", "content": read_instruction(row)}]), SIDES)


def _implicit(row: Row) -> Pair:
    return _pair(row, None, SIDES)


def _of_chosen_messages(row: Row) -> Pair:
    """Make a pair of a conversation, whose last answer is the chosen one, and another last answer (ms-swift)."""
    turns = convert_messages(row, "messages")
    _check_answer(turns, "messages")
    last = len(turns.messages) - 1
    flags = {index: learned for index, learned in turns.flags.items() if index < last}
    prompt = Turns(turns.messages[:last], flags, turns.prefixes)
    rejected = _side(row, "rejected_response")
    _check_answer(rejected, "rejected_response")
    if _is_whole(rejected):
        return _compared(turns, rejected, ("messages", "rejected_response"))
    return _compared(turns, prompt + rejected, ("messages", "rejected_response"))


def _pair(row: Row, prompt: Turns | None, names: tuple[str, str]) -> Pair:
    chosen, rejected = (_side(row, name) for name in names)
    for turns, name in zip((chosen, rejected), names, strict=True):
        _check_answer(turns, name)
    whole = [_is_whole(turns) for turns in (chosen, rejected)]
    if any(whole) and not all(whole):
        one, other = names if whole[0] else reversed(names)
        rule = f"`{one}` is a whole conversation, and `{other}` an answer alone"
        raise RowFault(Reason.AMBIGUOUS, rule, "give both as answers to `prompt`, or both as whole conversations")
    if prompt is None and not all(whole):
        rule = f"`{names[0]}` and `{names[1]}` are answers without what was asked"
        raise RowFault(Reason.MISSING_FIELD, rule, "add `prompt`, or give both as whole conversations of messages")
    if prompt is not None and all(whole):
        _check_copy(prompt, chosen, rejected, names[0])
    elif prompt is not None:
        check_joint(prompt, chosen, names[0])
        check_joint(prompt, rejected, names[1])
        chosen, rejected = prompt + chosen, prompt + rejected
    return _compared(chosen, rejected, names)


def _side(row: Row, name: str) -> Turns:
    """Return the turns of one side: a text and a single message are an answer. Raises RowFault."""
    value = row[name]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        if len(value) > 1:
            rule = f"`{name}` holds {len(value)} answers, and a pair has one of each"
            raise RowFault(Reason.NOT_MESSAGES, rule, "write one row for each pair of answers")
        value = value[0]
    if isinstance(value, Mapping):
        return convert_messages({name: [value]}, name)
    if isinstance(value, list):
        return convert_messages(row, name)
    if isinstance(value, str):
        _refuse_dialogue(value, name)
        return Turns([{"role": "assistant", "content": check_text({name: value}, name)}])
    rule = f"`{name}` must be text, a message or a list of messages, got {got(value)}"
    raise RowFault(Reason.NOT_TEXT, rule, "write the answer as text in quotes")


def _refuse_dialogue(text: str, name: str) -> None:
    if "Assistant" in text and _DIALOGUE.match(text):
        rule = f"`{name}` is a conversation written down as one text (`Human: ... Assistant: ...`)"
        fix = (
            "write its turns as messages, around which the base's own chat template is written: "
            "docs/other-rows.md#conversations-in-one-text has the lines of Python that do it"
        )
        raise RowFault(Reason.ALREADY_RENDERED, rule, fix)


def _check_answer(turns: Turns, name: str) -> None:
    roles = [message["role"] for message in turns.messages]
    if roles[-1] == "assistant":
        return
    rule = f"`{name}` has no turn of the assistant"
    if "assistant" in roles:
        rule = f"`{name}` ends with a turn of the {roles[-1]}, and not with an answer"
    raise RowFault(Reason.NO_ASSISTANT_TURN, rule, "end it with the assistant's answer that is compared")


def _is_whole(turns: Turns) -> bool:
    return turns.messages[0]["role"] in ("system", "user")


def _check_copy(prompt: Turns, chosen: Turns, rejected: Turns, name: str) -> None:
    """Raise RowFault where the prompt beside two whole conversations says what they do not."""
    said = [_normal(text) for turns in (chosen, rejected) for text in texts_in(turns.messages)]
    for text in texts_in(prompt.messages):
        if not any(_normal(text) in content for content in said):
            rule = f"`{name}` begins with a turn of the user, and the prompt is not in it"
            fix = "give the answers alone, or leave the prompt out where both sides are whole conversations"
            raise RowFault(Reason.AMBIGUOUS, rule, fix)


def _normal(text: str) -> str:
    return " ".join(text.split())


def _compared(chosen: Turns, rejected: Turns, names: tuple[str, str]) -> Pair:
    """Build both conversations, which are learned from where they differ; raises RowFault."""
    ones, others = chosen.messages, rejected.messages
    start = _common(ones, others)
    if start == len(ones) == len(others):
        rule = f"`{names[0]}` and `{names[1]}` are the same: neither is better"
        raise RowFault(Reason.EQUAL_SIDES, rule, "give two answers that differ, or remove the row")
    if start in (len(ones), len(others)):
        short, long = names if start == len(ones) else (names[1], names[0])
        rule = f"`{short}` is the beginning of `{long}`: nothing of it is an answer of its own"
        raise RowFault(Reason.EQUAL_SIDES, rule, "give two answers to the same turns")
    if {ones[start]["role"], others[start]["role"]} != {"assistant"}:
        rule = f"`{names[0]}` and `{names[1]}` differ before their answers, first in message {start + 1}"
        raise RowFault(Reason.PROMPTS_DIFFER, rule, "give both sides the same turns before the answers to compare")
    if list(map(_seen, ones[start:])) == list(map(_seen, others[start:])):
        rule = (
            f"`{names[0]}` and `{names[1]}` look the same: they differ in characters of no width or in how accents are "
            "written (Unicode normalisation)"
        )
        raise RowFault(Reason.EQUAL_SIDES, rule, "give two answers that differ, or remove the row")
    for turns, name in zip((chosen, rejected), names, strict=True):
        _check_one_answer(turns, start, name)
    prompt = ones[:start]
    for turns in (chosen, rejected):
        if any(learned and index < start for index, learned in turns.flags.items()):
            rule = "a turn before the answers that are compared is marked as learned, and only the answers are"
            raise RowFault(Reason.UNSUPPORTED_FIELD, rule, "remove the flag", at=f"message {start}")
    sides = (Turns(prompt + turns.messages[start:], turns.flags, turns.prefixes) for turns in (chosen, rejected))
    one, other = (build_conversation(turns, learn_from=start) for turns in sides)
    return one, other


def _common(ones: list[Message], others: list[Message]) -> int:
    """Count the messages at the beginning that are the same but for white space around them."""
    for index, (one, other) in enumerate(zip(ones, others, strict=False)):
        if one is not other and _stripped(one) != _stripped(other):
            return index
    return min(len(ones), len(others))


def _stripped(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as chat templates see it: most of them trim its text."""
    return {**message, "content": message["content"].strip()}


def _seen(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as its reader sees it."""
    return {**message, "content": unicodedata.normalize("NFC", _UNSEEN.sub("", message["content"])).strip()}


def _check_one_answer(turns: Turns, start: int, name: str) -> None:
    """Raise RowFault for a list of answers that is given as turns: templates would write them one after the other."""
    told = {*turns.flags, *turns.prefixes}
    answers = [message for index, message in enumerate(turns.messages) if index >= start and index not in told]
    if len(answers) > 1 and all(answer == {"role": "assistant", "content": answer["content"]} for answer in answers):
        rule = f"`{name}` holds {len(answers)} answers, one after the other, and a pair has one of each"
        fix = "write one row for each pair of answers, or the parts of one answer as one turn"
        raise RowFault(Reason.NOT_MESSAGES, rule, fix)


def _shape(fields: tuple[str, ...], convert: Callable[[Row], Pair], **more: Any) -> Shape:
    return Shape("/".join(fields), fields, convert, numbered=False, **more)


PREFERRED_OUTPUT = _shape(
    (OPENAI_INPUT, "preferred_output", "non_preferred_output"),
    _with_prompt(OPENAI_INPUT, "preferred_output", "non_preferred_output"),
)
"""OpenAI, once its `input` is unfolded."""
PROMPT_PAIR = _shape(("prompt", *SIDES), _with_prompt("prompt"), history=True)
CONVERSATIONS_PAIR = _shape(("conversations", *SIDES), _with_prompt("conversations"))
"""ShareGPT, as LLaMA-Factory reads it: each side is one message."""
MESSAGES_PAIR = _shape(("messages", *SIDES), _with_prompt("messages"))
INSTRUCTION_PAIR = _shape(
    ("instruction", *SIDES), _from_instruction, optional=("input",), may_be_null=("instruction",), history=True
)
"""Alpaca."""
REJECTED_RESPONSE = _shape(("messages", "rejected_response"), _of_chosen_messages)
"""ms-swift."""
IMPLICIT_PAIR = _shape(SIDES, _implicit)
"""TRL: the prompt is what both conversations begin with."""
PAIR_SHAPES = (
    PREFERRED_OUTPUT,
    PROMPT_PAIR,
    CONVERSATIONS_PAIR,
    MESSAGES_PAIR,
    INSTRUCTION_PAIR,
    REJECTED_RESPONSE,
    IMPLICIT_PAIR,
)
