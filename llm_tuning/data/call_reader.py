"""Tool calls in a generated text, read as the base's own chat template writes them.

How it writes them is read off its renderings of a few calls whose names and arguments are known. A template whose way
cannot be read back, tried on texts, numbers, nested objects and several calls, has no reader: no score is better than
a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from llm_tuning.data.call_forms import (
    Call,
    CallForm,
    NamedObjectForm,
    ObjectForm,
    ParametersForm,
    PythonForm,
    QuotedForm,
    json_at,
    pattern,
)
from llm_tuning.data.call_values import parameters_of, same_json
from llm_tuning.data.calls import Tools
from llm_tuning.data.messages import THINK_END


class Renders(Protocol):
    """A chat template; raises ValueError where it does not take the messages."""

    def __call__(
        self, messages: list[dict[str, Any]], *, tools: Tools | None = None, add_generation_prompt: bool = False
    ) -> str: ...


class NotReadable(ValueError):  # noqa: N818 - a template is as it is; nothing is broken
    """Calls of this template cannot be read back; the message says why."""


class BrokenCall(ValueError):  # noqa: N818 - the model's mistake
    """A call begins in the text and does not go on as the template writes calls."""


@dataclass(frozen=True)
class CallReader:
    """The way in which a template writes calls."""

    form: CallForm
    begin: str
    """What comes before the first call of an answer; without a letter in it the answer has to begin so."""
    open: str
    """What comes before each call: the end of `begin`, or nothing where calls stand in a list."""
    close: str
    """What comes behind each call."""
    separator: str | None
    """What comes between two calls in a list; None where an answer has one call at most."""
    end: str
    """What comes behind the last `close` of a list."""

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> list[Call]:
        """Return the calls in a generated text, none where there is no call; raises BrokenCall.

        The text ends before the token that stopped it. What comes before its calls (content, reasoning) is passed
        over. `tools` are in OpenAI's form.
        """
        known, at = parameters_of(tools), self._start(text)
        calls: list[Call] = []
        while at is not None:
            found = self.form.read(text, at, known)
            behind = self._closes.match(text, found[1]) if found else None
            if found is None or behind is None:
                if self._anchored and not calls:
                    return []  # any text may begin so
                raise BrokenCall
            calls.append(found[0])
            at = self._next(text, behind.end())
        return calls

    def _start(self, text: str) -> int | None:
        at = text.rfind(THINK_END)
        at = at + len(THINK_END) if at >= 0 else 0
        found = self._begins.match(text, at) if self._anchored else self._begins.search(text, at)
        return found.end() if found else None

    def _next(self, text: str, at: int) -> int | None:
        """Return where the next call begins behind one that ends at `at`; raises BrokenCall where a list is not one."""
        if self.open.strip():
            found = self._opens.search(text, at)
            return found.end() if found else None
        if (end := self._ends.match(text, at)) is not None and (self.end.strip() or end.end() == len(text)):
            return None
        between = self._separates.match(text, at) if self._separates else None
        if between is None or between.end() == len(text):
            raise BrokenCall
        return between.end()

    @property
    def _anchored(self) -> bool:
        return re.search(r"\w", self.begin) is None

    @cached_property
    def _begins(self) -> re.Pattern[str]:
        return re.compile(pattern(self.open if self.open.strip() else self.begin))

    @cached_property
    def _opens(self) -> re.Pattern[str]:
        return re.compile(pattern(self.open))

    @cached_property
    def _closes(self) -> re.Pattern[str]:
        return re.compile(pattern(self.close))

    @cached_property
    def _separates(self) -> re.Pattern[str] | None:
        return None if self.separator is None else re.compile(pattern(self.separator))

    @cached_property
    def _ends(self) -> re.Pattern[str]:
        return re.compile(pattern(self.end))


def same_calls(one: Sequence[Call], other: Sequence[Call]) -> bool:
    """Return whether two answers call the same tools with equal arguments, in the same order."""
    return len(one) == len(other) and all(
        a.name == b.name and same_json(a.arguments, b.arguments) for a, b in zip(one, other, strict=True)
    )


def recorded_calls(message: Mapping[str, Any]) -> list[Call]:
    """Return the calls that an assistant's message has."""
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    return [Call(function["name"], function["arguments"]) for function in functions]


_TYPES = {"text": "string", "count": "integer", "ratio": "number", "flag": "boolean", "list": "array", "map": "object"}
_FIRST, _SECOND = Call("zq_one", {"ka_x": "va m", "lb_y": "wb n"}), Call("wk_two", {"mc_z": "xc o"})
_PROBES: tuple[Call, ...] = (
    Call("probe_all", {"count": -7, "flag": True, "list": [1, "a", {"b": [None, 2.5]}], "ratio": 0.25, "text": "x"}),
    Call("probe_all", {"map": {"p": {"q": "r s"}, "t": [], "u": False}, "text": 'a "quoted" word, it\'s {b} [c]'}),
    Call("probe_all", {"flag": False, "list": [], "map": {}, "text": "42"}),
    Call("probe_all", {"text": "\u00e9\u4e2d\U0001f642 <b> & \\ /"}),
    Call("probe_all", {"text": "two\nlines\n\nand one"}),
    Call("probe_all", {"count": 0}),
    Call("probe_all", {}),
)
_ASKED = {"role": "user", "content": "What is it?"}
_PLAIN = "ZQ"
"""Begins with what no marker of a template begins with."""


def learn_calls(render: Renders, stops: Sequence[str] = ()) -> CallReader:
    """Return the reader of the template that `render` renders; raises NotReadable.

    `stops` are the texts of the tokens at which generation stops.
    """
    first = _rendered(render, [_FIRST], stops)
    plain = _answer(render, {"role": "assistant", "content": _PLAIN})
    if _FIRST.name not in first:
        raise NotReadable("it does not write calls of tools")
    found = _find_form(first)
    if found is None:
        raise NotReadable("it writes calls of tools in a form that is not known here")
    form, start, end = found
    before, behind = first[:start], first[end:]
    begin = before[_common(before, plain) :].rpartition(_FIRST.name)[2]
    behind = behind.removesuffix(plain.partition(_PLAIN)[2])
    opening, closing, separator, ending = begin, behind, None, ""
    several = _between(render, form, stops)
    if several is not None:
        between, after = several
        opening = _common_end(begin, between)
        separator = between[: len(between) - len(opening)]
        closing = separator[: _common(separator, after)]
        separator, ending = separator[len(closing) :], behind[len(closing) :]
    if isinstance(form, ParametersForm):
        form = replace(form, close=closing)
    reader = CallReader(form, begin, opening, closing, separator, ending)
    _try(reader, render, stops, several=several is not None)
    return reader


def _try(reader: CallReader, render: Renders, stops: Sequence[str], *, several: bool) -> None:
    """Raise NotReadable unless `reader` reads back what `render` makes of calls of every kind, and of answers."""
    tried = [[call] for call in _PROBES]
    if several:
        tried += [list(_PROBES[:2]), [_FIRST, _SECOND, *_PROBES[2:5]]]
    for calls in tried:
        try:
            read = reader.read(_rendered(render, calls, stops), _tools(calls))
        except BrokenCall:
            read = []
        if not same_calls(read, calls):
            raise NotReadable("calls with texts, numbers and nested values cannot be read back from what it writes")
    plain = {"role": "assistant", "content": "It is 42, or {} or [1]."}
    if reader.read(_answer(render, plain), _tools(list(_PROBES))):
        raise NotReadable("an answer without a call cannot be told from one")


def _find_form(text: str) -> tuple[CallForm, int, int] | None:
    """Return the form of the call _FIRST in `text`, and where the call begins and ends."""
    last = text.rfind(_FIRST.name)
    named = [match.start() for match in re.finditer(re.escape(_FIRST.name), text)]
    for at in reversed([match.start() for match in re.finditer(r"\{", text)]):
        found = json_at(text, at)
        if found is not None and isinstance(found[0], dict):
            keys = {key for key, value in found[0].items() if value == _FIRST.name}
            held = {key for key, value in found[0].items() if value == _FIRST.arguments}
            if len(keys) == len(held) == 1:
                return ObjectForm(keys.pop(), held.pop()), at, found[1]
    (key, value), (key_2, value_2) = _FIRST.arguments.items()
    for start in reversed(named):
        rest = text[start + len(_FIRST.name) :]
        opened = rest.find("{")
        found = json_at(rest, opened) if opened >= 0 else None
        if found is not None and found[0] == _FIRST.arguments:
            return NamedObjectForm(), start, start + len(_FIRST.name) + found[1]
    parts = re.split("|".join(map(re.escape, (key, value, key_2, value_2))), text[last + len(_FIRST.name) :])
    if len(parts) != 5:
        return None
    after_name, before_value, between, _, _ = parts
    for form in (PythonForm(), QuotedForm(before_value.removeprefix(":") or "\0")):
        read = form.read(text, last, {})
        if read is not None and same_calls([read[0]], [_FIRST]):
            return form, last, read[1]
    before_key = _common_end(after_name, between)
    after_value = between[: len(between) - len(before_key)]
    after_name = after_name[: len(after_name) - len(before_key)]
    if not (before_key.strip() and before_value.strip() and after_value.strip()):
        return None
    end = len(text) - len(parts[4]) + len(after_value)
    return ParametersForm(after_name, before_key, before_value, after_value, ""), last, end


def _between(render: Renders, form: CallForm, stops: Sequence[str]) -> tuple[str, str] | None:
    """Return what `render` writes between two calls and behind them; None where an answer has one call at most."""
    try:
        text = _rendered(render, [_FIRST, _SECOND], stops)
    except NotReadable:
        return None
    first = _find_form(text)
    at = text.rfind(_SECOND.name)
    if first is None or at < 0:
        return None
    if isinstance(form, ObjectForm):
        at = text.rfind("{", 0, at)
    if isinstance(form, ParametersForm):
        value = text.rfind(str(_SECOND.arguments["mc_z"])) + len("xc o")
        end = text.find(form.after_value.strip(), value) + len(form.after_value.strip())
        return text[first[2] : at], text[end:]
    second = form.read(text, at, {})
    return None if second is None else (text[first[2] : at], text[second[1] :])


def _tools(calls: Sequence[Call]) -> list[dict[str, Any]]:
    def schema(call: Call) -> dict[str, Any]:
        names = call.arguments if call in (_FIRST, _SECOND) else _TYPES
        return {"type": "object", "properties": {name: {"type": _TYPES.get(name, "string")} for name in names}}

    made = {
        call.name: {"name": call.name, "description": "Does it.", "parameters": schema(call) | {"required": []}}
        for call in calls
    }
    return [{"type": "function", "function": function} for function in made.values()]


def _rendered(render: Renders, calls: Sequence[Call], stops: Sequence[str]) -> str:
    """Return what the model generates for an answer with `calls`, up to the first token that stops it."""
    functions = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
    made = [{"type": "function", "id": f"call{i:05}", "function": made} for i, made in enumerate(functions)]
    text = _answer(render, {"role": "assistant", "content": "", "tool_calls": made}, _tools(calls))
    at = text.rfind(calls[-1].name)
    cut = min((found for stop in stops if (found := text.find(stop, max(at, 0))) >= 0), default=len(text))
    return text[:cut]


def _answer(render: Renders, answer: Mapping[str, Any], tools: Sequence[Any] = ()) -> str:
    """Return what `render` writes behind the prompt, or behind as much of it as it repeats."""
    shown: Tools = list(tools) or _tools([_FIRST])
    try:
        prompt = render([_ASKED], tools=shown, add_generation_prompt=True)
        whole = render([_ASKED, dict(answer)], tools=shown)
    except ValueError:
        raise NotReadable("it does not take calls of tools") from None
    return whole[_common(prompt, whole) :]


def _common(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _common_end(one: str, other: str) -> str:
    length = _common(one[::-1], other[::-1])
    return one[len(one) - length :]
