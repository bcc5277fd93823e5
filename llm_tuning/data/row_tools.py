"""Tools, calls and reasoning of a whole row: what its fields declare, and whether its turns keep to it.

Every call is of a tool that the row declares, and fits the tool's schema where it is learned as right; every result
answers a call, and every call that something follows has its result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llm_tuning.data.calls import calls_of
from llm_tuning.data.faults import Reason, RowFault, got, shown
from llm_tuning.data.messages import THINK_END, Message
from llm_tuning.data.results import check_results
from llm_tuning.data.row_fields import KINDS, FieldKind, plain
from llm_tuning.data.rows import Conversation, Row, RowForm, Shape
from llm_tuning.data.schemas import BrokenSchema
from llm_tuning.data.text_calls import holds_a_call
from llm_tuning.data.tool_turns import read_reasoning
from llm_tuning.data.tools import ToolReader, ToolSet
from llm_tuning.data.values import flag, is_given

_TOOLS: FieldKind = next(kind for kind in KINDS if kind.name == "tools")
_NULLS_OF_PARQUET = (
    "a column of Parquet or Arrow has null where another row has an argument: write `arguments` as JSON text there"
)
_REASONING: FieldKind = next(kind for kind in KINDS if kind.name == "reasoning")


class RowTools:
    """The tools of the rows of one file."""

    def __init__(self, form: RowForm) -> None:
        self._form = form
        self._reader = ToolReader()

    def read(self, row: Row, names: Sequence[str]) -> ToolSet | None:
        """Return the tools that the fields `names` of a row declare, None where it declares none; raises RowFault."""
        given = [name for name in names if plain(name) in ("tools", "functions") and is_given(row[name])]
        if len(given) > 1:
            rule = f"{' and '.join(f'`{shown(name)}`' for name in given)} both declare tools"
            raise RowFault(Reason.AMBIGUOUS, rule, "keep the one that is meant")
        return self._reader.read(row[given[0]], given[0]) if given else None

    def check(
        self,
        row: Row,
        names: Sequence[str],
        conversations: Iterable[Conversation],
        tools: ToolSet | None,
        *,
        number: float,
    ) -> Iterator[Conversation]:
        """Yield the finished conversations of a row with their tools; raises RowFault where calls do not fit them."""
        says = {plain(name): row[name] for name in names if is_given(row[name]) or row[name] in (False, "none")}
        for side, conversation in enumerate(conversations):
            messages = conversation.messages
            if messages is None:
                if tools is not None:
                    rule = "declares tools beside `text`, which is learned as it stands"
                    raise RowFault(Reason.UNSUPPORTED_FIELD, rule, "write `messages`, or remove the tools")
                yield conversation
                continue
            if tools is None and all(len(message) == 2 and message["role"] != "tool" for message in messages):
                if says:
                    _check_choice(says, conversation)
                yield conversation
                continue
            self._refuse_untaken(messages)
            as_right = self._form.is_right(side, number)
            if tools is not None and as_right:
                _refuse_text_calls(conversation, tools)
            check_results(messages)
            _check_calls(conversation, tools, as_right=as_right)
            _check_choice(says, conversation)
            yield replace(conversation, tools=tools.tools) if tools is not None else conversation

    def _refuse_untaken(self, messages: Sequence[Message]) -> None:
        """Raise RowFault for what the mode does not learn."""
        for index, message in enumerate(messages):
            for name, kind in (("tool_calls", _TOOLS), ("reasoning_content", _REASONING)):
                if kind.name not in self._form.takes and (name in message or (kind is _TOOLS and _is_result(message))):
                    raise kind.fault(name if name in message else "tool", at=f"message {index + 1}")


def _is_result(message: Message) -> bool:
    return bool(message["role"] == "tool")


def with_reasoning(
    conversations: Sequence[Conversation], names: Sequence[str], row: Row, shape: Shape
) -> Iterator[Conversation]:
    """Yield the conversations with the reasoning that stands beside the answer in its turn; raises RowFault."""
    given = [name for name in names if is_given(row[name])]
    if not given:
        yield from conversations
        return
    reasoning = read_reasoning(row, "", given)
    for conversation in conversations:
        if not shape.history or len(conversations) > 1 or isinstance(row[shape.fields[-1]], list):
            rule = f"`{shown(given[0])}` beside {shape.name} does not say which turn it belongs to"
            raise RowFault(Reason.AMBIGUOUS, rule, "write it as `reasoning_content` of the answer's turn")
        *before, answer = conversation.messages or []
        if THINK_END in answer["content"]:
            rule = f"reasoning stands in `{shown(given[0])}` and before {THINK_END} in the answer"
            raise RowFault(Reason.AMBIGUOUS, rule, "keep one of them")
        yield replace(conversation, messages=[*before, answer | {"reasoning_content": reasoning}])


def _refuse_text_calls(conversation: Conversation, tools: ToolSet) -> None:
    """Raise RowFault for a learned answer that calls a tool of the row in its text."""
    for index in conversation.learned_turns():
        if holds_a_call((conversation.messages or [])[index]["content"], tools.schemas):
            rule = "a call of a tool stands in the text of an answer, and would be learned as words"
            fix = (
                "write it as `tool_calls` of the turn (ShareGPT: a turn `function_call`), which the base's template "
                "writes as the server reads it (docs/other-rows.md#calls-in-tags has the lines of Python for Hermes' "
                "files); to learn it as words put the tools into the system message"
            )
            raise RowFault(Reason.NOT_A_CALL, rule, fix, at=f"message {index + 1}")


def _check_calls(conversation: Conversation, tools: ToolSet | None, *, as_right: bool) -> None:
    """Raise RowFault for a call of a tool that is not declared, and for a learned one that does not fit its schema."""
    learned = set(conversation.learned_turns())
    for index, message in enumerate(conversation.messages or ()):
        for number, call in enumerate(calls_of(message)):
            at = f"message {index + 1}, call {number + 1}"
            if tools is None:
                rule = "a tool is called, and the row declares none"
                fix = "declare it as `tools`: without them a row would teach calls out of nowhere"
                raise RowFault(Reason.UNKNOWN_TOOL, rule, fix, at=at)
            if index not in learned or not as_right:
                continue
            found = tools.schemas.get(call["function"]["name"])
            if found is None:
                rule = "a tool is called that the row does not declare"
                raise RowFault(Reason.UNKNOWN_TOOL, rule, "declare it, or correct the name in the call", at=at)
            schema, where = found
            try:
                fault = schema.fault(call["function"]["arguments"])
            except BrokenSchema as broken:
                fix = "correct the schema"
                raise RowFault(Reason.BROKEN_SCHEMA, f"the schema of a tool {broken.rule}", fix, at=where) from None
            if fault is not None:
                path = f"{where}.{fault[0]}" if fault[0] else where
                rule = f"a call does not fit `{path}`: {fault[1]}"
                fix = "correct the call or the schema; mark a turn that is wrong on purpose by `train`: false"
                if None in call["function"]["arguments"].values():
                    fix += f"; {_NULLS_OF_PARQUET}"
                raise RowFault(Reason.CALL_DOES_NOT_FIT, rule, fix, at=at)


def _check_choice(says: Mapping[str, Any], conversation: Conversation) -> None:
    """Raise RowFault where calls that are learned are not what `parallel_tool_calls` and `tool_choice` ask for."""
    turns = [(index, calls_of((conversation.messages or [])[index])) for index in conversation.learned_turns()]
    if "paralleltoolcalls" in says:
        parallel = flag(says["paralleltoolcalls"])
        if parallel is None:
            rule = f"`parallel_tool_calls` must be true or false, got {got(says['paralleltoolcalls'])}"
            raise RowFault(Reason.UNSUPPORTED_FIELD, rule, "give one of them, or remove it")
        many = next((index for index, calls in turns if len(calls) > 1), None)
        if not parallel and many is not None:
            rule = "`parallel_tool_calls` is false, and a turn has several calls"
            fix = "put each into a turn of its own, with its result behind it"
            raise RowFault(Reason.AMBIGUOUS, rule, fix, at=f"message {many + 1}")
    choice = says.get("toolchoice")
    if not choice or choice == "auto":
        return
    named = choice.get("function") if isinstance(choice, Mapping) else None
    name = named.get("name") if isinstance(named, Mapping) else None
    if choice not in ("none", "required") and not isinstance(name, str):
        rule = "`tool_choice` must be auto, none, required or name a function"
        raise RowFault(Reason.UNSUPPORTED_FIELD, rule, "give one of them, or remove it")
    index, calls = turns[-1] if turns else (0, ())
    wanted = not calls if choice == "none" else bool(calls)
    if not wanted or (isinstance(name, str) and any(call["function"]["name"] != name for call in calls)):
        rule = "the answer does not call what `tool_choice` asks for"
        raise RowFault(Reason.AMBIGUOUS, rule, "correct the answer, or remove it", at=f"message {index + 1}")
