"""Texts and messages of a row: checked, and brought to `{"role", "content"}` with the roles of chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_tuning.core.suggestions import closest
from llm_tuning.data.faults import Reason, RowFault, got, shown

Message = dict[str, str]
"""`role` is system, user, assistant or tool; `content` is text."""

MESSAGE_FIELDS = frozenset(("role", "content", "from", "value"))
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""Role names of ShareGPT files, which no chat template knows."""

_UNSUPPORTED = ("tool_calls", "function_call", "weight", "reasoning_content", "reasoning", "thinking")
"""Message fields that change what is taught; a row is refused rather than trained without them."""


def check_text(row: Mapping[str, Any], field: str, *, at: str = "", may_be_empty: bool = False) -> str:
    """Return the text in `row[field]`; raises RowFault if it is missing, null, empty, no text or no valid Unicode."""
    value = _present(row, field, at=at)
    if not isinstance(value, str):
        raise RowFault(
            Reason.NOT_TEXT, f"`{field}` must be text, got {got(value)}", "write it as text in quotes", at=at
        )
    if not may_be_empty and not value.strip():
        raise RowFault(Reason.EMPTY_FIELD, f"`{field}` is empty", "give a text or remove the row", at=at)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowFault(
                Reason.NOT_UNICODE,
                f"`{field}` holds half of a character (an unpaired surrogate such as \\ud83d)",
                "write the character whole",
                at=at,
            ) from None
    return value


def _present(row: Mapping[str, Any], field: str, *, at: str = "") -> Any:
    if field not in row:
        raise RowFault(Reason.MISSING_FIELD, f"`{field}` is missing", rename_or(row, field, "add it"), at=at)
    if row[field] is None:
        raise RowFault(Reason.NULL_FIELD, f"`{field}` is null", "give a text or remove the row", at=at)
    return row[field]


def rename_or(row: Mapping[str, Any], field: str, otherwise: str) -> str:
    """Return the fix for a missing field: the name it is nearly spelled as, else `otherwise`."""
    near = closest(field, row)
    return f"did you mean to call `{shown(near)}` `{field}`?" if near else otherwise


def convert_messages(row: Mapping[str, Any], field: str) -> list[Message]:
    """Return the messages in `row[field]`, given as {role, content} or ShareGPT's {from, value}; raises RowFault."""
    items = _present(row, field)
    if not isinstance(items, list) or not items:
        rule = f"`{field}` must be a list of messages, got {'an empty list' if items == [] else got(items)}"
        raise RowFault(Reason.NOT_MESSAGES, rule, 'write [{"role": "user", "content": ...}, ...]')
    return [_convert(item, f"{field}[{index}]", sharegpt=field == "conversations") for index, item in enumerate(items)]


def _convert(item: Any, at: str, *, sharegpt: bool) -> Message:
    if not isinstance(item, Mapping):
        raise RowFault(
            Reason.NOT_MESSAGES, f"a message must be an object, got {got(item)}", _message_form(False), at=at
        )
    sharegpt = sharegpt and item.get("role") is None  # a Parquet column may hold both forms, one of them null
    role_field, content_field = ("from", "value") if sharegpt else ("role", "content")
    if role_field not in item:
        raise RowFault(Reason.NOT_MESSAGES, f"a message has no `{role_field}`", _message_form(sharegpt), at=at)
    for name in _UNSUPPORTED:
        if item.get(name) not in (None, "", 1) and item[name] != []:
            raise RowFault(
                Reason.UNSUPPORTED_FIELD,
                f"`{name}` of a message is not supported",
                "remove the row or the field",
                at=at,
            )
    given = item[role_field]
    role = SHAREGPT_ROLES.get(given) if sharegpt and isinstance(given, str) else given
    if role not in ROLES:
        known = ", ".join(SHAREGPT_ROLES if sharegpt else ROLES)
        raise RowFault(
            Reason.UNKNOWN_ROLE, f"`{role_field}` of a message must be one of {known}", "rename or remove it", at=at
        )
    content = check_text(item, content_field, at=at, may_be_empty=role in ("system", "tool"))
    return {"role": role, "content": content}


def _message_form(sharegpt: bool) -> str:
    return 'write {"from": "human", "value": ...}' if sharegpt else 'write {"role": "user", "content": ...}'


def check_conversation(messages: list[Message]) -> int:
    """Count the messages to keep: all up to the last assistant turn. Raises RowFault on an order no template has.

    Stricter orders are the template's own, and rendering the row applies them.
    """
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise RowFault(Reason.NO_ASSISTANT_TURN, "has no assistant turn", "add the answer to learn")
    if "system" in roles[1:]:
        at = f"message {roles.index('system', 1) + 1}"
        raise RowFault(Reason.SYSTEM_NOT_FIRST, "a system message must come first", "move it to the start", at=at)
    first = roles[1] if roles[0] == "system" else roles[0]
    if first != "user":
        raise RowFault(Reason.NO_USER_TURN, "must start with a user turn", "put the user's turn first")
    return len(roles) - roles[::-1].index("assistant")
