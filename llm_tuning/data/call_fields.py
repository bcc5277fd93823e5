"""Fields of a call beside those that are read: arguments and results by other names refuse a row, others are noted.

A call without its arguments is a call all the same, and would be learned as one that has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm_tuning.data.faults import Reason, RowFault, shown
from llm_tuning.data.row_fields import plain, words

_OF_CALL = frozenset(("id", "type", "index"))
_OF_FUNCTION = frozenset(("name", "arguments"))
_AROUND = _OF_CALL | {"function"}
_BARE = _OF_CALL | _OF_FUNCTION
"""Fields of a call without a `function` around its name."""
_ARGUMENTS = frozenset(
    words(
        "arguments argument args arg parameters parameter params param kwargs input inputs toolinput toolarguments "
        "toolargs functionarguments functionargs argumentsjson argumentstext"
    )
)
_RESULTS = frozenset(
    words(
        "result results output outputs response responses return returns returned returnvalue returnvalues observation "
        "toolresult tooloutput toolresponse functionresult functionoutput functionresponse"
    )
)
"""What a tool gave, as `plain` writes the names."""


def fields_beside(call: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield what a call holds and nothing reads: the place, the name and the value."""
    function = call.get("function")
    for name in call.keys() - (_AROUND if isinstance(function, Mapping) else _BARE):
        yield "", name, call[name]
    if isinstance(function, Mapping):
        for name in function.keys() - _OF_FUNCTION:
            yield "function.", name, function[name]


def refuse_fields_beside(
    call: Mapping[str, Any], arguments: Mapping[str, Any], at: str, parse: Callable[[str], Any]
) -> None:
    """Raise RowFault for arguments that are not read, and for a result; `arguments` are those that are."""
    for place, name, value in sorted(fields_beside(call), key=lambda field: field[:2]):
        if value in (None, "", {}, []):
            continue
        key, named = plain(name), f"`{shown(place + name)}`"
        if key in _RESULTS:
            rule = f"{named} of a call is what the tool gave, and a call holds what the model wrote"
            fix = "write it as a turn of role tool behind the call, or remove it"
            raise RowFault(Reason.UNSUPPORTED_FIELD, rule, fix, at=at)
        if key not in _ARGUMENTS and (arguments or not _is_object(value, parse)):
            continue
        if arguments and _object(value, parse) == arguments:
            continue
        if arguments:
            rule = f"`arguments` and {named} of a call differ"
            raise RowFault(Reason.AMBIGUOUS, rule, "keep the one that is meant, as `arguments`", at=at)
        rule = f"{named} of a call is not read, and the call would be learned without arguments"
        raise RowFault(Reason.NOT_A_CALL, rule, "write it as `arguments`, beside the `name`", at=at)


def _object(value: Any, parse: Callable[[str], Any]) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except ValueError:
        return value


def _is_object(value: Any, parse: Callable[[str], Any]) -> bool:
    is_text = isinstance(value, str) and value.lstrip().startswith("{")
    return isinstance(_object(value, parse) if is_text else value, Mapping)
