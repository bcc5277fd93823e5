"""Which characters of a rendered conversation are in the loss: the assistant's turns and nothing else.

An assistant turn i is what the template adds between `messages[:i]` with the generation prompt (what the server
shows the model) and `messages[:i + 1]`. Some templates rewrite earlier turns once later ones follow (they drop old
reasoning): what was learned there would never be generated, so only the last turn is in the loss then.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_tuning.data.chat import ChatTemplate, TemplateRefused
from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.messages import Message
from llm_tuning.data.rows import Conversation

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, with the character spans (start, end) in the loss, in order."""

    text: str
    spans: list[Span]
    rewritten: bool = False
    """The template rewrites earlier turns: only the last one is in the loss."""
    prompt_differs: bool = False
    """The generation prompt is not how the template writes the same turn afterwards."""


def render_conversation(template: ChatTemplate, conversation: Conversation) -> Rendered:
    """Render a conversation (its last message is an assistant turn) and mark what is in the loss; raises RowFault."""
    messages = conversation.messages
    assert messages is not None
    try:
        text = template.render(messages)
        last_prompt = template.render(messages[:-1], add_generation_prompt=True)
    except TemplateRefused as refusal:
        # A template's own sentence is part of the template; anything else could quote the row.
        message = str(refusal)
        said = f": {message}" if message and message in template.text else ""
        rule = f"the chat template of the base does not take these messages{said}"
        raise _refused(rule, "order the roles as the template wants, or remove the row") from None
    if text.startswith(last_prompt):
        last, prompt_differs = (len(last_prompt), len(text)), False
    else:
        last, prompt_differs = (_common_length(last_prompt, text), len(text)), True
    if messages[-1]["content"].split()[-1] not in text[last[0] :]:
        raise _refused("the chat template of the base leaves the answer out", "use a base made for text chats")
    turns = [
        index
        for index, message in enumerate(messages[:-1])
        if message["role"] == "assistant" and index >= conversation.learn_from
    ]
    spans = []
    for index in turns:
        span = _turn(template, messages, index, text)
        if span is None:
            return Rendered(text, [last], rewritten=True, prompt_differs=prompt_differs)
        spans.append(span)
    return Rendered(text, [*spans, last], prompt_differs=prompt_differs)


def _turn(template: ChatTemplate, messages: list[Message], index: int, text: str) -> Span | None:
    """Return the span of an earlier turn in the whole text, None where the template writes it differently there."""
    try:
        prompt = template.render(messages[:index], add_generation_prompt=True)
        through = template.render(messages[: index + 1])
    except TemplateRefused:
        return None
    if text.startswith(through) and through.startswith(prompt):
        return len(prompt), len(through)
    return None


def _common_length(one: str, other: str) -> int:
    """Count the characters that two texts have in common at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _refused(rule: str, fix: str) -> RowFault:
    return RowFault(Reason.TEMPLATE_REFUSES, rule, fix)
