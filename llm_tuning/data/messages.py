"""Messages of a row, brought to `{"role", "content"}` with the roles of chat templates, and what their flags say.

Read are OpenAI's `role` and `content`, ShareGPT's `from` and `value`, and content as parts of text. A turn's flags
(`train`, `weight`, ...) say whether it is learned; a turn marked `prefix` is the beginning of the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_tuning.data.faults import Reason, RowFault, got, shown
from llm_tuning.data.row_fields import (
    BESIDE_CONTENT_NAMES,
    FLAG_NAMES,
    PART_KINDS,
    PREFIX_NAMES,
    ROLE_KINDS,
    TURN_KINDS,
    plain,
)
from llm_tuning.data.tool_turns import (
    CALL_ROLES,
    RESULT_ROLES,
    SWIFT_CALL,
    TURN_FIELDS,
    read_call_text,
    read_calls,
    read_reasoning,
    read_result_fields,
)
from llm_tuning.data.values import check_text, flag, is_given, refuse_written_list, written_list

Message = dict[str, Any]
"""`role` is system, user, assistant or tool; `content` is text, "" where an answer is calls and nothing else.

An assistant's turn may have `reasoning_content` (text) and `tool_calls`, each
`{"id"?, "function": {"arguments", "name"}, "type": "function"}` with the arguments as an object, in the order in which
vLLM hands them to a template. A tool's turn may have `tool_call_id` and `name`.
"""

THINK, THINK_END = "<think>", "</think>"
"""The tags of reasoning in an answer's own text; what else a template calls reasoning has a field of its own."""
MESSAGE_FIELDS = frozenset(("role", "content", "from", "value"))
PART_FIELDS = frozenset(("type", "text", "value"))
ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"} | {role: role for role in ROLES}
_READ_ROLES = SHAREGPT_ROLES | dict.fromkeys(RESULT_ROLES, "tool") | dict.fromkeys(CALL_ROLES, "assistant")
"""Role names of ShareGPT files, which no chat template knows."""

_ROLES_ELSEWHERE = {role: role for role in ROLES} | {
    **dict.fromkeys(("developer", "sys"), "system"),
    **dict.fromkeys(("prompter", "human"), "user"),
    **dict.fromkeys(("model", "bot", "chatbot", "ai", "gpt", "chatgpt"), "assistant"),
}
"""What the roles of other programs are here, for the words of a refusal."""

_LIST_AS_TEXT = ("[{", "[ {")
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_BETWEEN_PARTS = "\n"
"""What vLLM writes between the parts of a text, for a template that takes text."""


@dataclass(slots=True)
class Turns:
    """Messages, and what the flags of their fields say, by index."""

    messages: list[Message] = field(default_factory=list)
    flags: dict[int, bool] = field(default_factory=dict)
    """Whether an assistant turn is learned, where it says so."""
    prefixes: set[int] = field(default_factory=set)
    """Assistant turns that are the beginning of the next one."""

    def __add__(self, other: Turns) -> Turns:
        """Return these turns and then those of `other`."""
        shift = len(self.messages)
        flags = self.flags | {index + shift: learned for index, learned in other.flags.items()}
        prefixes = self.prefixes | {index + shift for index in other.prefixes}
        return Turns(self.messages + other.messages, flags, prefixes)


def convert_messages(row: Mapping[str, Any], name: str) -> Turns:
    """Return the messages in `row[name]`; raises RowFault."""
    items = row[name]
    if not isinstance(items, list) or not items:
        rule = f"`{name}` must be a list of messages, got {'an empty list' if items == [] else got(items)}"
        raise RowFault(Reason.NOT_MESSAGES, rule, 'write [{"role": "user", "content": ...}, ...]')
    turns = Turns()
    sharegpt = name == "conversations"
    for index, item in enumerate(items):
        message = _ordinary(item)
        if message is not None:
            turns.messages.append(message)
            continue
        message = _convert(item, f"{name}[{index}]", sharegpt)
        if index and _goes_on(items[index - 1], item):
            before = turns.messages[-1]
            before["tool_calls"] = [*before.get("tool_calls", ()), *message["tool_calls"]]
            continue
        turns.messages.append(message)
        if not item.keys() <= MESSAGE_FIELDS:
            _read_flags(item, f"{name}[{index}]", len(turns.messages) - 1, turns)
    return turns


def _goes_on(before: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """Return whether a call of ms-swift belongs to the turn before it: an answer's text, or another call."""
    role, previous = (each.get("role", each.get("from")) for each in (item, before))
    is_answer = previous == SWIFT_CALL or SHAREGPT_ROLES.get(str(previous)) == "assistant"
    return role == SWIFT_CALL and is_answer and item.keys() | before.keys() <= MESSAGE_FIELDS


def _ordinary(item: Any) -> Message | None:
    """Return the message of an item that has a role and a text in ASCII, and nothing else; None leaves it to _convert.

    Most items are so, and a file has millions.
    """
    if not isinstance(item, dict) or len(item) != 2:
        return None
    role, content = item.get("role"), item.get("content")
    if role not in ROLES or not isinstance(content, str) or not content.isascii() or not content.strip():
        return None
    if content.startswith(_LIST_AS_TEXT):
        return None
    return {"role": role, "content": content}


def _convert(item: Any, at: str, sharegpt: bool) -> Message:
    if not isinstance(item, Mapping):
        rule = f"a message must be an object, got {got(item)}"
        raise RowFault(Reason.NOT_MESSAGES, rule, _message_form(False), at=at)
    role_field = _one_of(item, "role", "from", at, otherwise="from" if sharegpt else "role")
    if role_field not in item:
        raise RowFault(Reason.NOT_MESSAGES, f"a message has no `{role_field}`", _message_form(sharegpt), at=at)
    if not item.keys() <= MESSAGE_FIELDS:
        _refuse_fields(item, at)
    given = item[role_field]
    role = _READ_ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise _unknown_role(given, role_field, at)
    otherwise = "value" if role_field == "from" else "content"
    content_field = _one_of(item, "content", "value", at, otherwise=otherwise)
    if given in CALL_ROLES:
        return {"role": role, "content": "", "tool_calls": read_call_text(item, content_field, at)}
    calls = read_calls(item, at)
    content = ""
    if not calls or item.get(content_field) is not None:
        may_be_empty = bool(calls) or role in ("system", "tool")
        content = read_content(item, content_field, at=at, may_be_empty=may_be_empty)
        if not item.keys() <= MESSAGE_FIELDS:
            _refuse_other_content(item, content, content_field, at)
        if role != "tool" and isinstance(item[content_field], str) and written_list(content) == "parts":
            refuse_written_list(content, content_field, at=at)
    message: Message = {"role": role, "content": content}
    if reasoning := read_reasoning(item, at):
        if THINK_END in content:
            rule = f"reasoning stands in a field of its own and before {THINK_END} in the text of the message"
            raise RowFault(Reason.AMBIGUOUS, rule, "keep one of them", at=at)
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    if role == "tool":
        message |= read_result_fields(item, given, at)
    elif is_given(item.get("tool_call_id")) or ((reasoning or calls) and role != "assistant"):
        rule = "a message has calls, reasoning or the id of a call, and its role is another"
        raise RowFault(
            Reason.UNSUPPORTED_FIELD, rule, "calls and reasoning are the assistant's, results a tool's", at=at
        )
    return message


def _one_of(item: Mapping[str, Any], one: str, other: str, at: str, *, otherwise: str) -> str:
    """Return which of two names of one thing a message has; raises RowFault where both are given and differ."""
    first, second = item.get(one), item.get(other)
    if first is None:
        return other if second is not None else otherwise
    if second is not None and SHAREGPT_ROLES.get(str(first), first) != SHAREGPT_ROLES.get(str(second), second):
        rule = f"`{one}` and `{other}` of a message differ"
        raise RowFault(Reason.AMBIGUOUS, rule, "keep one of them", at=at)
    return one


def _unknown_role(given: Any, role_field: str, at: str) -> RowFault:
    kind = ROLE_KINDS.get(plain(given)) if isinstance(given, str) else None
    if kind is not None:
        return kind.unread_fault(given, at=at)
    known = ", ".join(SHAREGPT_ROLES if role_field == "from" else ROLES)
    rule = f"`{role_field}` of a message must be one of {known}"
    meant = _ROLES_ELSEWHERE.get(given.strip().lower()) if isinstance(given, str) else None
    fix = f"write `{meant}`" if meant else "rename it to the one that is meant, or leave the row out"
    return RowFault(Reason.UNKNOWN_ROLE, rule, fix, at=at)


def _message_form(sharegpt: bool) -> str:
    return 'write {"from": "human", "value": ...}' if sharegpt else 'write {"role": "user", "content": ...}'


def _refuse_other_content(item: Mapping[str, Any], content: str, content_field: str, at: str) -> None:
    """Raise RowFault for a further text of a message that could be what it says, and is no copy of it."""
    for name, value in item.items():
        if plain(name) not in BESIDE_CONTENT_NAMES or not isinstance(value, str) or not is_given(value):
            continue
        if " ".join(value.split()) != " ".join(content.split()):
            rule = f"`{content_field}` and `{shown(name)}` of a message differ"
            raise RowFault(Reason.AMBIGUOUS, rule, f"keep the one that is meant, as `{content_field}`", at=at)


def _refuse_fields(item: Mapping[str, Any], at: str) -> None:
    """Raise RowFault for the first field of a message, or of a part, that changes what is learned and is not read."""
    for name, value in item.items():
        kind = TURN_KINDS.get(plain(name))
        if kind is not None and name not in TURN_FIELDS and kind.matters(value):
            raise kind.unread_fault(name, at=at)


def _read_flags(item: Mapping[str, Any], at: str, index: int, turns: Turns) -> None:
    """Take in what the flags of a message say of its turn; raises RowFault."""
    is_answer = turns.messages[index]["role"] == "assistant"
    learned = read_flags(item, at=at)
    if learned is not None and is_answer:
        turns.flags[index] = learned
    elif learned:
        rule = "is marked as learned, and is no turn of the assistant"
        raise RowFault(Reason.UNSUPPORTED_FIELD, rule, "remove the flag: only the assistant's turns are learned", at=at)
    for name, value in item.items():
        if plain(name) not in PREFIX_NAMES or not is_given(value):
            continue
        if flag(value) is None or not is_answer or learned:
            rule = f"`{shown(name)}` must be true, on a turn of the assistant that is not learned itself"
            fix = "put it on the given beginning of an answer, and the rest into the next turn"
            raise RowFault(Reason.UNSUPPORTED_FIELD, rule, fix, at=at)
        if flag(value):
            turns.prefixes.add(index)


def read_flags(item: Mapping[str, Any], *, at: str = "") -> bool | None:
    """Return whether a row or turn is learned, as its flags say; None where it has none. Raises RowFault."""
    said: dict[bool, str] = {}
    for name, value in item.items():
        if plain(name) not in FLAG_NAMES or value is None or value == "":
            continue
        learned = flag(value)
        if learned is None:
            rule = f"`{shown(name)}` must be 1 or true (learned), 0 or false (seen and not learned), got {got(value)}"
            fix = "weights between and above are not supported: give one of these, or leave the row out"
            raise RowFault(Reason.UNSUPPORTED_FIELD, rule, fix, at=at)
        said.setdefault(learned, name)
    if len(said) > 1:
        rule = f"`{shown(said[True])}` says learned, and `{shown(said[False])}` says not learned"
        raise RowFault(Reason.AMBIGUOUS, rule, "keep one of them", at=at)
    return next(iter(said), None)


def read_content(item: Mapping[str, Any], name: str, *, at: str = "", may_be_empty: bool = False) -> str:
    """Return the text in `item[name]`, given as text or as parts of text; raises RowFault."""
    if not isinstance(item.get(name), list):
        return check_text(item, name, at=at, may_be_empty=may_be_empty)
    place = f"{at}.{name}" if at else name
    text = _BETWEEN_PARTS.join(_part(part, f"{place}[{index}]") for index, part in enumerate(item[name]))
    return check_text({name: text}, name, at=at, may_be_empty=may_be_empty)


def _part(part: Any, at: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        rule = f"a part of a text must be an object, got {got(part)}"
        raise RowFault(Reason.NOT_TEXT, rule, 'write {"type": "text", "text": ...}', at=at)
    kind = part.get("type")
    known = PART_KINDS.get(plain(kind)) if isinstance(kind, str) else None
    if known is not None:
        raise known.unread_fault(str(kind), at=at)
    _refuse_fields(part, at)
    if kind not in _TEXT_PARTS:
        raise RowFault(Reason.NOT_TEXT, "a part has a `type` that is not text", 'write {"type": "text", ...}', at=at)
    if read_flags(part, at=at) is not None:
        rule, fix = "a part of a turn is marked apart", "mark the whole turn, or split it"
        raise RowFault(Reason.UNSUPPORTED_FIELD, rule, fix, at=at)
    name = "text" if part.get("text") is not None or part.get("value") is None else "value"
    return check_text(part, name, at=at, may_be_empty=True)


def check_roles(roles: list[str]) -> None:
    """Raise RowFault on an order of roles that no template has; stricter orders are the template's own."""
    if "assistant" not in roles:
        raise RowFault(Reason.NO_ASSISTANT_TURN, "has no assistant turn", "add the answer to learn")
    if "system" in roles[1:]:
        at = f"message {roles.index('system', 1) + 1}"
        raise RowFault(Reason.SYSTEM_NOT_FIRST, "a system message must come first", "move it to the start", at=at)
    first = roles[1] if roles[0] == "system" else roles[0]
    if first != "user":
        raise RowFault(
            Reason.NO_USER_TURN,
            "must start with a user turn",
            "remove the turns before the user's first, or add the turn that they answer",
        )
