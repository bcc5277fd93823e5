"""Reasoning in the text of an answer, between tags that the base does not know: it would be learned as words.

A template writes reasoning in its base's own way, and the server's parser takes it out of the answer again. Behind
the tags of another model, or of a data set, neither happens: users would get the reasoning as a part of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.messages import Message

OPEN_THOUGHTS = ("<|begin_of_thought|>", "<|end_of_thought|>")
"""Of OpenThoughts, Bespoke-Stratos and Sky-T1: no base has them, and their own system message asks for them."""
_OF_FILES = (
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<scratch_pad>", "</scratch_pad>"),
)
"""Words of a format of their own, which is meant where the row's prompt asks for it."""
_OF_MODELS = (
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel|>analysis", "<|end|>"),
)
"""Of Mistral, Seed-OSS, EXAONE, Kimi, Cohere, Apertus and gpt-oss: right for their own bases alone."""
_ALWAYS, _WITH_BASE = (OPEN_THOUGHTS, *_OF_FILES), _OF_MODELS
_FIRST = frozenset(opening[0] for opening, _ in (*_ALWAYS, *_WITH_BASE))
"""What an answer with tags begins with: most begin otherwise, and are not looked at further."""


def refuse_reasoning_tags(messages: Sequence[Message], *, is_known: Callable[[str], bool] | None = None) -> None:
    """Raise RowFault for an answer that begins with reasoning between tags which are not the base's.

    `is_known` says whether the base's template or tokenizer has a tag; None without a base, and then only tags that no
    base has are looked for.
    """
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        text = message["content"].lstrip()
        if text[:1] not in _FIRST:
            continue
        for opening, closing in _ALWAYS if is_known is None else (*_ALWAYS, *_WITH_BASE):
            if not text.startswith(opening) or closing not in text or (is_known is not None and is_known(opening)):
                continue
            if (opening, closing) in _OF_FILES and _is_asked_for(opening, messages[:index]):
                continue
            rule = f"the answer has its reasoning between {opening} and {closing}, which would be learned as words"
            fix = (
                "write what is between them as `reasoning_content` of the turn, and the answer alone as its content "
                "(docs/other-rows.md#reasoning-in-tags has the lines of Python that do it)"
            )
            if (opening, closing) in _OF_FILES:
                fix += "; where the tags are the format that is meant, ask for them in the system message"
            raise RowFault(Reason.REASONING_IN_TEXT, rule, fix, at=f"message {index + 1}")


def _is_asked_for(tag: str, before: Sequence[Message]) -> bool:
    return any(tag in message["content"] for message in before if message["role"] in ("system", "user"))
