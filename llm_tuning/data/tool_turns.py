"""What turns hold beside their text: calls of tools, what the tools gave, and reasoning.

Read are OpenAI's `tool_calls` and `function_call`, ShareGPT's turns `function_call` and `observation`, and reasoning by
the names that servers give it. Arguments become an object, as templates get them from a server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llm_tuning.data.call_fields import refuse_fields_beside
from llm_tuning.data.faults import Reason, RowFault, got
from llm_tuning.data.tools import parse_json
from llm_tuning.data.values import check_text, is_given

SWIFT_CALL = "tool_call"
"""ms-swift's role of a turn with a call, which belongs to the assistant's turn that it follows."""
CALL_ROLES = ("function_call", SWIFT_CALL)
"""Roles of a turn whose text is the JSON of a call, or of a list of them; the first is ShareGPT's."""
RESULT_ROLES = ("tool", "function", "observation", "tool_response")
REASONING = ("reasoning_content", "reasoning", "thinking")
TURN_FIELDS = frozenset(("tool_calls", "function_call", "tool_call_id", *REASONING))
"""Fields of a message that are read here."""
_CALL = '{"type": "function", "function": {"name": ..., "arguments": {...}}}'


def read_calls(item: Mapping[str, Any], at: str) -> list[dict[str, Any]]:
    """Return the calls of an assistant's turn, none for most; raises RowFault."""
    given = [name for name in ("tool_calls", "function_call") if is_given(item.get(name))]
    if len(given) > 1:
        rule = "`tool_calls` and `function_call` of a message are both given"
        raise RowFault(Reason.AMBIGUOUS, rule, "keep `tool_calls`", at=at)
    if not given:
        return []
    value, at = item[given[0]], f"{at}.{given[0]}"
    if given[0] == "function_call":
        return [_call(value, at)]
    if isinstance(value, str):
        value = _parsed(value, at)
    if not isinstance(value, list | tuple):
        raise _not_a_call(value, at, "a list of calls")
    calls = [_call(call, f"{at}[{index}]") for index, call in enumerate(value)]
    ids = [call["id"] for call in calls if "id" in call]
    if len(set(ids)) < len(ids):
        rule = "two calls of a turn have one id"
        raise RowFault(Reason.AMBIGUOUS, rule, "give each call an id of its own", at=at)
    return calls


def read_call_text(item: Mapping[str, Any], name: str, at: str) -> list[dict[str, Any]]:
    """Return the calls in the text of ShareGPT's turn `function_call`; raises RowFault."""
    value, at = item.get(name), f"{at}.{name}"
    if isinstance(value, str):
        value = _parsed(value, at)
    if isinstance(value, list | tuple) and value:
        return [_call(call, f"{at}[{index}]") for index, call in enumerate(value)]
    return [_call(value, at)]


def _parsed(text: str, at: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        rule = "a call is text and no JSON"
        raise RowFault(Reason.NOT_A_CALL, rule, 'write {"name": ..., "arguments": {...}} as JSON', at=at) from None


def _call(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _not_a_call(value, at, "an object")
    if value.get("type", "function") not in ("function", None):
        rule = "a call has a `type` that is not function"
        raise RowFault(Reason.NOT_A_CALL, rule, "leave such rows out: a server's answers call functions alone", at=at)
    function = value["function"] if isinstance(value.get("function"), Mapping) else value
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise RowFault(Reason.NOT_A_CALL, "a call has no `name`", f"write {_CALL}", at=at)
    call: dict[str, Any] = {}
    given = value.get("id")
    if given is not None and given != "":
        if not isinstance(given, str):
            raise RowFault(Reason.NOT_TEXT, f"`id` of a call must be text, got {got(given)}", "write it so", at=at)
        call["id"] = given
    # The order of the fields is that in which vLLM hands a call to a template, which may write it as it stands.
    arguments = _arguments(function, at)
    refuse_fields_beside(value, arguments, at, parse_json)
    call["function"] = {"arguments": arguments, "name": name}
    call["type"] = "function"
    return call


def _arguments(function: Mapping[str, Any], at: str) -> dict[str, Any]:
    value = function.get("arguments")
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            rule = "`arguments` of a call are text and no JSON"
            raise RowFault(Reason.NOT_A_CALL, rule, "write the JSON text of an object", at=at) from None
    if not isinstance(value, dict):
        rule = f"`arguments` of a call must be an object or its JSON text, got {got(value)}"
        raise RowFault(Reason.NOT_A_CALL, rule, 'write {"name of the parameter": value, ...}', at=at)
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        rule = "`arguments` of a call hold what is no JSON"
        raise RowFault(Reason.NOT_A_CALL, rule, "write them as JSON text", at=at) from None
    return value


def _not_a_call(value: Any, at: str, what: str) -> RowFault:
    return RowFault(Reason.NOT_A_CALL, f"a call must be {what}, got {got(value)}", f"write {_CALL}", at=at)


def read_reasoning(item: Mapping[str, Any], at: str, names: Sequence[str] = REASONING) -> str | None:
    """Return the reasoning that stands beside a text, by any of `names`; raises RowFault where two differ."""
    given = [name for name in names if is_given(item.get(name))]
    if not given:
        return None
    texts = [_text_of(item, name, at) for name in given]
    if len(set(texts)) > 1:
        rule = f"{' and '.join(f'`{name}`' for name in given)} differ"
        raise RowFault(Reason.AMBIGUOUS, rule, "keep the one that is meant", at=at)
    return texts[0]


def _text_of(item: Mapping[str, Any], name: str, at: str) -> str:
    """Return the reasoning in a field: its text, or that of a list which holds one; raises RowFault."""
    value = item[name]
    if isinstance(value, list) and len(value) == 1:
        item = {name: value[0]}
    text = check_text(item, name, at=at)
    if text.strip().lower() in ("on", "off"):
        rule = f"`{name}` turns reasoning on or off, and is none: the chat template's own default is what is learned"
        raise RowFault(Reason.UNSUPPORTED_FIELD, rule, "remove it where that is meant", at=at)
    return text


def read_result_fields(item: Mapping[str, Any], role: str, at: str) -> dict[str, str]:
    """Return which call a tool's turn answers, as far as it says so; raises RowFault."""
    found = {}
    for name in ("tool_call_id", "name"):
        if item.get(name) not in (None, ""):
            found[name] = check_text(item, name, at=at)
    if role == "function" and "name" not in found:
        raise RowFault(Reason.MISSING_FIELD, "a message of role function has no `name`", "name the function", at=at)
    return found
