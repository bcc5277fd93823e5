"""Conversations as the texts that they are trained as: every learned answer in a text that the server would make.

An answer is learned behind the prompt that the server shows for it (`answers.ask`). Where the prompt of the next answer
goes on from there, one text holds both; where the template writes an earlier turn otherwise once later ones follow
(it drops reasoning, moves the system prompt, ends a turn with another token), the next answer has a text of its own. So
a conversation becomes as few texts as can be, and each answer is learned once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llm_tuning.data.answers import Asked, ask
from llm_tuning.data.calls import Tools
from llm_tuning.data.chat import ChatTemplate, TemplateRefused
from llm_tuning.data.faults import Fact, Reason, RowFault
from llm_tuning.data.messages import THINK_END, Message
from llm_tuning.data.results import check_order
from llm_tuning.data.rows import Conversation, Learn
from llm_tuning.data.written import check_before, check_tools_written, refuse_text_beside_calls

Span = tuple[int, int]
_SAMPLE: list[Message] = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]
_TOOL_SAMPLE: list[Message] = [
    {"role": "user", "content": "a"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "abcdefghi", "function": {"arguments": {}, "name": "b"}, "type": "function"}],
    },
    {"role": "tool", "content": "c", "tool_call_id": "abcdefghi"},
]
_NONE: dict[str, Any] = {"type": "object", "properties": {}}
_SAMPLE_TOOLS: Tools = [{"type": "function", "function": {"name": "b", "description": "d", "parameters": _NONE}}]


@dataclass(frozen=True, slots=True)
class Turn:
    """A learned answer inside a rendered text: the model generates the characters from `start` to `end`."""

    start: int
    end: int
    messages: int
    """The conversation up to and with the answer is its first so many messages."""
    continued: bool = False
    """`start` is behind a given beginning of the answer."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text of a conversation and the answers that are learned in it, in order; the last one ends the text."""

    text: str
    turns: tuple[Turn, ...]
    facts: frozenset[Fact] = frozenset()

    @property
    def spans(self) -> list[Span]:
        """The characters (start, end) in the loss."""
        return [(turn.start, turn.end) for turn in self.turns]

    def alone(self, turn: Turn) -> Rendered:
        """Return the text up to the end of `turn`, with that answer alone learned."""
        return Rendered(self.text[: turn.end], (turn,), self.facts)


class TurnRenderer:
    """Renders conversations with one template for a base whose generation stops at the tokens `stops`, as text."""

    def __init__(self, template: ChatTemplate, stops: Sequence[str] = (), *, learn_reasoning: bool = True) -> None:
        self.template = template
        self._learn_reasoning = learn_reasoning
        self._stops = tuple(sorted(filter(None, stops), key=len, reverse=True))
        self._stop_next = re.compile(rf"\s*(?:{'|'.join(map(re.escape, self._stops)) or '(?!)'})")
        self.sample = self._ask_for_a_sample()
        """How an answer is asked for, by the shortest conversation; None where the template refuses it."""
        self._next_role = self._end_by_next_role() if self.sample is not None else ""
        self._next_tool = self._end_by_next_tool()
        self._text_is_reasoning = self._writes_text_as_reasoning()

    def render(self, conversation: Conversation, learn: Learn = "all") -> Iterator[Rendered]:
        """Yield the texts of `conversation`, the one with its last learned answer last; raises RowFault."""
        messages = conversation.messages
        assert messages is not None
        held: tuple[Asked, int] | None = None
        turns: list[Turn] = []
        facts: set[Fact] = set()
        learned = learned_turns(conversation, learn)
        if self._text_is_reasoning:
            refuse_text_beside_calls(messages[: learned[-1] + 1])
        for index in learned:
            asked = ask(
                self.template,
                messages,
                index,
                tools=conversation.tools,
                given=conversation.prefixes.get(index, 0),
                stops=self._stops,
                learn_reasoning=self._learn_reasoning,
            )
            if held is not None:
                turn = self._inside(*held, asked.prompt)
                if turn is None:
                    yield self._text(*held, turns, facts, conversation)
                    turns, facts = [], set()
                else:
                    turns.append(turn)
            facts |= asked.facts
            held = asked, index
        assert held is not None
        rendered = self._text(*held, turns, facts, conversation)
        if _leaves_out(messages[: held[1]], rendered.text):
            rendered = Rendered(rendered.text, rendered.turns, rendered.facts | {Fact.LEFT_OUT})
        yield rendered

    def _inside(self, asked: Asked, index: int, prompt: str) -> Turn | None:
        """Return an answer as a turn inside the `prompt` of the next one, None where it is written otherwise there."""
        start = len(asked.prompt)
        generated = self._generated(asked.answer)
        answer = asked.answer if generated is None else asked.answer[:generated]
        if not (prompt.startswith(asked.prompt) and prompt.startswith(answer, start)):
            return None
        end = start + len(answer)
        if generated is None and (stop := self._stop_next.match(prompt, end)):
            end = stop.end()  # the next turn's first token ends this one
        return Turn(start, end, index + 1, asked.continued)

    def _text(
        self, asked: Asked, index: int, turns: list[Turn], facts: set[Fact], conversation: Conversation
    ) -> Rendered:
        """Return the text that ends with this answer, after the turns that lie in its prompt; raises RowFault."""
        messages = conversation.messages or []
        if conversation.tools:
            check_tools_written(conversation.tools, asked.prompt)
        check_before(messages[:index], asked.prompt)
        check_order(messages[:index], lambda before: self._prompt(before, conversation.tools))
        if self.template.is_harmony and _harmony_differs(messages[:index], conversation.tools):
            facts.add(Fact.SERVED_OTHERWISE)
        start, answer = len(asked.prompt), asked.answer
        generated = self._generated(answer)
        if generated is None:
            answer += self._next_tool if "tool_calls" in messages[index] else self._next_role
            generated = len(answer)
        turn = Turn(start, start + generated, index + 1, asked.continued)
        return Rendered(asked.prompt + answer, (*turns, turn), frozenset(facts))

    def _prompt(self, messages: Sequence[Message], tools: Tools | None) -> str:
        return self.template.render(messages, tools=tools, add_generation_prompt=True)

    def _generated(self, answer: str) -> int | None:
        """Count the characters up to the token that ends the answer, None where none does.

        Behind it may be more of them: some templates end a turn, then the conversation.
        """
        end, text = None, answer.rstrip()
        while stop := next((stop for stop in self._stops if text.endswith(stop)), None):
            end = len(text)
            text = text[: -len(stop)].rstrip()
        return end

    def _ask_for_a_sample(self) -> Asked | None:
        try:
            return ask(self.template, _SAMPLE[:2], 1, stops=self._stops)
        except RowFault:
            return None

    def _end_by_next_role(self) -> str:
        """Return the end token that the template leaves to the next turn to write (GLM), "" where it writes one."""
        assert self.sample is not None
        text = self.sample.prompt + self.sample.answer
        try:
            more = self.template.render(_SAMPLE)
        except TemplateRefused:
            return ""
        if self._generated(self.sample.answer) is not None or not more.startswith(text):
            return ""
        stop = self._stop_next.match(more, len(text))
        return stop[0] if stop else ""

    def _end_by_next_tool(self) -> str:
        """Return the same for an answer that calls a tool: its result is the next turn."""
        try:
            text = self.template.render(_TOOL_SAMPLE[:2], tools=_SAMPLE_TOOLS)
            more = self.template.render(_TOOL_SAMPLE, tools=_SAMPLE_TOOLS)
        except TemplateRefused:
            return ""
        if self._generated(text) is not None or not more.startswith(text):
            return ""
        stop = self._stop_next.match(more, len(text))
        return stop[0] if stop else ""

    def _writes_text_as_reasoning(self) -> bool:
        """Return whether the text beside a call becomes reasoning (gpt-oss): a server would answer it as such."""
        question, calling, _ = _TOOL_SAMPLE
        try:
            texts = [
                self.template.render([question, calling | said], tools=_SAMPLE_TOOLS)
                for said in ({}, {"content": "d"}, {"reasoning_content": "d"})
            ]
        except TemplateRefused:
            return False
        return texts[0] != texts[1] == texts[2]


def learned_turns(conversation: Conversation, learn: Learn = "all") -> list[int]:
    """Return the indices of the messages to learn, at least one; raises RowFault."""
    turns = [
        index
        for index, message in enumerate(conversation.messages or ())
        if message["role"] == "assistant" and index >= conversation.learn_from and index not in conversation.not_learned
    ]
    if not turns:
        rule = "no answer of it is to be learned"
        raise RowFault(Reason.NOTHING_TO_LEARN, rule, "mark an answer to learn, or remove the row")
    return turns[-1:] if learn == "last" else turns


def _harmony_differs(messages: Sequence[Message], tools: Tools | None) -> bool:
    """Return whether vLLM's Harmony (0.32) writes a prompt otherwise than gpt-oss's template, by what was compared.

    The template quotes what a tool gave and names it in another place, and ends instructions without tools by an empty
    line. Questions, declarations of tools, calls and reasoning are the same.
    """
    has_system = bool(messages) and messages[0]["role"] == "system"
    return any(message["role"] == "tool" for message in messages) or (has_system and not tools)


def _leaves_out(messages: Sequence[Message], text: str) -> bool:
    """Return whether a message before the answer is not in the text: some templates skip roles that they do not know.

    Only its last word is looked for where its text is not there as it stands: templates quote and trim.
    """
    at = 0
    for message in messages:
        content = message["content"].strip()
        if message["role"] == "assistant":
            content = content.rsplit(THINK_END, 1)[-1].strip()
        if not content or message["role"] == "tool":
            continue
        found = text.find(content, at)
        if found >= 0:
            at = found + len(content)
        elif content not in text and content.split()[-1] not in text:
            return True
    return False
