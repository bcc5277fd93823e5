"""What to say of a row that has no shape: the columns that would make it one, or the nearest shape.

Only what is certain is proposed: one text that is asked, one that is answered, at most one that belongs to the
question, and nothing beside them that could change the meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_tuning.core.suggestions import closest
from llm_tuning.data.faults import Reason, RowFault, shown
from llm_tuning.data.messages import SHAREGPT_ROLES
from llm_tuning.data.pair_names import find_sides, has_prompt, holds_whole_conversations, numbered_fault
from llm_tuning.data.row_fields import (
    ANSWERS,
    CONTEXTS,
    FLAG_NAMES,
    HISTORY_NAMES,
    KINDS,
    QUESTIONS,
    ROW_KINDS,
    SYSTEM_NAMES,
    TEXT_NAMES,
    plain,
    words,
)
from llm_tuning.data.rows import FORMS, Row, RowForm, Shape
from llm_tuning.data.values import flag, is_given, is_number

_ASKED = frozenset(map(plain, (*QUESTIONS, "user", "human", "user_input", "user_message")))
_ANSWERED = frozenset(map(plain, (*ANSWERS, "assistant", "assistant_message", "bot", "gpt", "summary", "highlights")))
_AROUND = frozenset(map(plain, CONTEXTS))
_ASKED_ALONE = frozenset(map(plain, ("input", "inputs", "document", "article", "dialogue", "text")))
"""What is asked where nothing else is: of `document` and what follows, only where the answer is a summary."""
_SUMMARIES = frozenset(("summary", "highlights"))
_RATINGS = frozenset(("score", "rewards", "scores", "rate", "quality"))
_JUDGED = frozenset(plain(name) for kind in KINDS if kind.name in ("label", "judgement") for name in kind.row)
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from", "speaker", "author", "sender"), ("content", "value", "text", "message")
_PAIRS = (("human", "assistant"), ("user", "assistant"), ("human", "gpt"), ("human", "bot"))
_PAIRS_OF_CHATS = (("input", "output"), ("question", "answer"), ("prompt", "response"), ("query", "response"))
"""Pairs of names that are whole rows elsewhere."""
_CHATS = frozenset(("conversation", "conversations", "messages", "dialog", "dialogue", "chat", "turns"))
_ANSWER_LISTS = frozenset(
    words("outputs responses completions generations answers candidates replies allgeneratedresponses")
)
_MAX_NAMES, _MAX_ANSWERS = 12, 3


def unfit_fault(form: RowForm, shape: Shape | None, row: Row) -> RowFault:
    """Build the refusal of a row that lacks fields; `shape` is that of the file, if it is known."""
    fault = _of_answer_lists(form, row) or _of_bare_turns(row) or columns_fault(row)
    if fault is not None:
        return fault
    if shape is not None:
        return _missing(shape, row, _rename_within(shape, row))
    fault = numbered_fault(row) if form.sides else None
    if fault is not None:
        return fault
    columns = propose_columns(form, row)
    if columns and not _makes_a_row(form, row, columns):
        columns = None
    near = _nearest_shape(form, row)
    if columns:
        fix = _set_columns(columns)
        missing = [name for name in columns if near is not None and name in near.fields]
        if near is not None and len(missing) == 1 and all(name in row for name in near.fields if name not in missing):
            return RowFault(Reason.MISSING_FIELD, f"`{missing[0]}` is missing", fix)
        names = " and ".join(f"`{shown(given)}`" for own, given in columns.items() if own not in ("role", "content"))
        return RowFault(Reason.UNKNOWN_SHAPE, f"has none of the shapes of {form.mode} rows, but {names}", fix)
    fault = _of_other_lists(row) or _of_two_answers(form, row)
    if fault is not None:
        return fault
    if near is not None:
        return _missing(near, row, None, other_modes(form, row))
    has = f"; it has {', '.join(map(shown, list(row)[:_MAX_NAMES]))}" if row else ""
    rule = f"has none of the shapes of {form.mode} rows{has}"
    fix = "; ".join(filter(None, (f"rows are {form.accepted}", other_modes(form, row))))
    return RowFault(Reason.UNKNOWN_SHAPE, rule, fix)


def _makes_a_row(form: RowForm, row: Row, columns: Mapping[str, str]) -> bool:
    """Return whether the row has all fields of some shape under these columns; an empty one is not so in others."""
    names = {*row, *columns} - {given for own, given in columns.items() if own != given}
    return any(names.issuperset(shape.fields) for shape in form.shapes)


def _set_columns(columns: Mapping[str, str]) -> str:
    return f"{{set:dataset.columns={','.join(f'{own}={given}' for own, given in columns.items())}}}"


def other_modes(form: RowForm, row: Row) -> str:
    """Return which other modes have a shape that the row fits, as the end of a fix; "" where none has."""
    fitting = [
        f"{{set:mode={other.mode}}}, which learns from such rows"
        for other in FORMS.values()
        if other.mode != form.mode and _is_of(other, row)
    ]
    return " or ".join(fitting)


def _is_of(form: RowForm, row: Row) -> bool:
    has_number = form.number is None or any(row.get(name) is not None for name in form.number.names)
    return any(shape.fits(row) and (has_number or not shape.numbered) for shape in form.shapes)


def _missing(shape: Shape, row: Row, fix: str | None, or_else: str = "") -> RowFault:
    """Build the refusal of a row for the first field of `shape` that it lacks."""
    name = next(name for name in shape.fields if row.get(name) is None)
    if name in row:
        return RowFault(Reason.NULL_FIELD, f"`{name}` is null", "give a text or remove the row")
    near = None if fix else _misspelt(name, row)
    otherwise = f"did you mean to call `{shown(near)}` `{name}`?" if near else "add it"
    fix = "; ".join(filter(None, (fix or otherwise, or_else)))
    return RowFault(Reason.MISSING_FIELD, f"`{name}` is missing", fix)


def _rename_within(shape: Shape, row: Row) -> str | None:
    """Return the fix for a row that says in another word what the file's shape has, None where that is not certain."""
    missing = [name for name in shape.fields if name not in row]
    for names in (_ASKED, _ANSWERED):
        others = [name for name in row if plain(name) in names and name not in shape.fields and is_given(row[name])]
        if len(missing) == 1 and plain(missing[0]) in names and len(others) == 1:
            return f"rename `{shown(others[0])}` to `{missing[0]}`, as in the rows before"
    return None


def _nearest_shape(form: RowForm, row: Row) -> Shape | None:
    """Return the shape whose fields the row has in part, as they are or nearly."""
    for is_there in (row.__contains__, lambda name: _misspelt(name, row)):
        for shape in form.shapes:
            if any(map(is_there, shape.fields)):
                return shape
    return None


def _misspelt(name: str, row: Row) -> str | None:
    """Return the field of the row that is nearly `name`, None for one that means something else."""
    known = ROW_KINDS.keys() | TEXT_NAMES | SYSTEM_NAMES | FLAG_NAMES | HISTORY_NAMES
    near = closest(name, [other for other in row if plain(other) == plain(name) or plain(other) not in known])
    if near is None or near[:1].lower() != name[:1] or (name in _CHATS and not isinstance(row[near], list)):
        return None
    return near


def propose_columns(form: RowForm, row: Row) -> dict[str, str] | None:
    """Return the columns that make a row of the form of `row`, None where that is not certain."""
    if form.sides and (pair := _propose_pair(form, row)) is not None:
        return pair
    given = {plain(name): name for name, value in row.items() if is_given(value)}
    asked, answered, around = (_named(row, names) for names in (_ASKED, _ANSWERED, _AROUND))
    if not asked and len(around) == 1 and plain(around[0]) in _ASKED_ALONE:
        asked, around = around, []
    elif not asked and "text" in given:
        asked = [given["text"]]
    if len(asked) != 1 or len(answered) != 1 or len(around) > 1:
        return _chat_columns(form, row)
    is_summary = plain(answered[0]) in _SUMMARIES
    if plain(asked[0]) in _ASKED_ALONE - {"input", "inputs"} and not is_summary:
        return None
    own = ("instruction", "input", "output") if around else ("prompt", "output")
    columns = dict(zip(own, (*asked, *around, *answered), strict=True))
    texts = all(
        isinstance(row[name], str | None) or (name_of == "prompt" and _message_keys(row[name]) == {})
        for name_of, name in columns.items()
    )
    if not set(own) <= set(form.own_fields) or not texts:
        return None
    return _changed(columns | _rating(form, given, row), row)


def _propose_pair(form: RowForm, row: Row) -> dict[str, str] | None:
    """Return the columns of a row with two answers of which one is better, None where it is not certain."""
    chosen, rejected = find_sides(row)
    if not chosen and len(rejected) == 1:
        chosen = _named(row, _ANSWERED)
        whole = [name for name in ("messages", "conversations") if is_given(row.get(name))]
        if not chosen and len(whole) == 1 and isinstance(row[rejected[0]], list):
            if holds_whole_conversations(row, (whole[0], rejected[0])):
                chosen = whole
            elif whole[0] == "messages":
                return _changed({"rejected_response": rejected[0]}, row)
    if len(chosen) != 1 or len(rejected) != 1:
        return None
    sides = dict(zip(form.sides, (chosen[0], rejected[0]), strict=True))
    if not has_prompt(row) and not holds_whole_conversations(row, (chosen[0], rejected[0])):
        asked, around = _named(row, _ASKED), _named(row, _AROUND)
        chat = _chat_columns(form, {name: value for name, value in row.items() if name not in sides.values()})
        if chat is not None:
            return _changed(chat | sides, row)
        if not asked and len(around) == 1 and plain(around[0]) in _ASKED_ALONE:
            asked, around = around, []
        if len(asked) != 1 or len(around) > 1:
            return None
        sides = dict(zip(("instruction", "input") if around else ("prompt",), (*asked, *around), strict=True)) | sides
    return _changed(sides, row)


def _named(row: Row, names: frozenset[str]) -> list[str]:
    """Return the fields of the row by any of `names`: of several those that are not empty.

    An empty one counts, since it is not in other rows: what is proposed has to be right for all rows of a file.
    """
    there = [name for name, value in row.items() if plain(name) in names and isinstance(value, str | None)]
    given = [name for name in row if plain(name) in names and is_given(row[name])]
    return there if len(there) == 1 and set(given) <= set(there) else given


def _rating(form: RowForm, given: Mapping[str, str], row: Row) -> dict[str, str]:
    if form.number is None or any(name in row for name in form.number.names):
        return {}
    ratings = [name for key, name in given.items() if key in _RATINGS and isinstance(row[name], int | float)]
    return {form.number.ratings[0]: ratings[0]} if len(ratings) == 1 else {}


def _changed(columns: dict[str, str], row: Row) -> dict[str, str] | None:
    """Return the columns that have another name; None where one would go onto another field that is there."""
    taken = set(columns.values())
    if any(is_given(row.get(own)) and own not in taken for own in columns):
        return None
    return {own: name for own, name in columns.items() if own != name} or None


def _chat_columns(form: RowForm, row: Row) -> dict[str, str] | None:
    """Return the columns of the one field that is a list of messages, None where there is not one."""
    parts = _ASKED | ROW_KINDS.keys()
    if _named(row, _ASKED | _ANSWERED):
        parts |= HISTORY_NAMES
    found = [
        {"messages": name, **keys}
        for name, value in row.items()
        if plain(name) not in parts and (keys := _message_keys(value)) is not None
    ]
    return _changed(found[0], row) if len(found) == 1 and "messages" in form.own_fields else None


def _message_keys(value: Any) -> dict[str, str] | None:
    if not isinstance(value, list) or not value or not all(isinstance(item, Mapping) for item in value):
        return None
    first = value[0]
    role = next((key for key in _ROLE_KEYS if str(first.get(key)) in SHAREGPT_ROLES), None)
    content = next((key for key in _CONTENT_KEYS if isinstance(first.get(key), str)), None)
    if role is None or content is None:
        return None
    keys = {}
    if role not in ("role", "from"):
        keys["role"] = role
    if content not in ("content", "value"):
        keys["content"] = content
    return keys


def number_fault(form: RowForm, row: Row, fault: RowFault) -> RowFault:
    """Build the refusal of a row whose number is not there; `fault` is what was wrong first."""
    names = form.number.names if form.number is not None else ()
    missing = (Reason.MISSING_REWARD, Reason.MISSING_LABEL)
    if fault.reason not in missing or any(name in row for name in names):
        return fault
    if fault.reason is Reason.MISSING_LABEL:
        judged = [name for name in row if plain(name) in _JUDGED and flag(row[name]) is not None]
        if len(judged) == 1:
            return RowFault(fault.reason, fault.rule, f"{{set:dataset.columns={names[0]}={judged[0]}}}")
    near = _misspelt(names[0], row)
    if near is not None:
        return RowFault(fault.reason, fault.rule, f"did you mean to call `{shown(near)}` `{names[0]}`?")
    ratings = _rating(form, {plain(name): name for name in row}, row)
    fix = "; ".join(f"{{set:dataset.columns={own}={given}}}" for own, given in ratings.items())
    return RowFault(fault.reason, fault.rule, fix or fault.fix)


def _of_two_answers(form: RowForm, row: Row) -> RowFault | None:
    """Build the refusal of a row with one question and several texts that could be its answer; else None."""
    asked, answered = (
        [name for name in _named(row, names) if isinstance(row[name], str)] for names in (_ASKED, _ANSWERED)
    )
    if len(asked) != 1 or not 1 < len(answered) <= _MAX_ANSWERS or not {"prompt", "output"} <= set(form.own_fields):
        return None
    if _named(row, _AROUND):
        return None
    proposed = [_changed({"prompt": asked[0], "output": name}, row) for name in answered]
    rule = f"has {' and '.join(f'`{shown(name)}`' for name in answered)}, and either could be the answer"
    return RowFault(Reason.AMBIGUOUS, rule, " or ".join(_set_columns(columns) for columns in proposed if columns))


def _of_answer_lists(form: RowForm, row: Row) -> RowFault | None:
    """Build the refusal of a row with several answers in one list, and what they are rated in another; else None."""
    lists = [name for name, value in row.items() if isinstance(value, list) and len(value) > 1]
    answers = [name for name in lists if plain(name) in _ANSWER_LISTS and all(isinstance(v, str) for v in row[name])]
    if len(answers) != 1 or not _named(row, _ASKED):
        return None
    count = len(row[answers[0]])
    rated = [name for name in lists if len(row[name]) == count and all(map(is_number, row[name]))]
    if len(rated) != 1:
        return None
    rule = f"`{shown(answers[0])}` holds {count} answers, and `{shown(rated[0])}` rates each of them"
    fix = 'write a row for each: {"prompt": ..., "output": ..., "reward": ...}'
    if form.number is None and not form.sides:
        others = other_modes(form, {"prompt": "question", "output": "answer", "reward": 1.0})
        fix += f", and {others}; or keep one answer as `output`"
    return RowFault(Reason.UNKNOWN_SHAPE, rule, fix)


def _of_bare_turns(row: Row) -> RowFault | None:
    """Build the refusal of a conversation whose turns are texts without roles; else None."""
    for name, value in row.items():
        is_chat = plain(name) in _CHATS or plain(name) == "data"
        if is_chat and isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value):
            rule = f"`{shown(name)}` holds turns without their roles"
            fix = 'write {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}'
            return RowFault(Reason.NOT_MESSAGES, rule, fix)
    return None


def _of_other_lists(row: Row) -> RowFault | None:
    """Build the refusal of turns in forms that no renaming can read."""
    if str(row.get("role")) in SHAREGPT_ROLES and "content" in row:
        rule, fix = "is a single message, and a row is a whole conversation", 'write {"messages": [...]} with all of it'
        return RowFault(Reason.UNKNOWN_SHAPE, rule, fix)
    for name, value in row.items():
        if isinstance(value, list) and value and (fault := list_fault(name, value[0])) is not None:
            return fault
    return None


def mixed_fault(found: Shape, shape: Shape) -> RowFault:
    """Build the refusal of a row of the shape `found` in a file whose first rows have `shape`."""
    rule = f"has the shape {found.name}, but the first rows have {shape.name}"
    return RowFault(Reason.MIXED_SHAPES, rule, "keep rows of one shape in a file")


def list_fault(name: str, item: Any) -> RowFault | None:
    """Build the refusal of a list whose items are a question with its answer each; else None."""
    if isinstance(item, Mapping):
        for question, answer in (*_PAIRS, *(_PAIRS_OF_CHATS if plain(name) in _CHATS else ())):
            if question in item and answer in item and not {"role", "from"} & item.keys():
                rule = f"`{shown(name)}` holds a question and its answer in each object (`{question}`, `{answer}`)"
                fix = (
                    'write {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}'
                )
                return RowFault(Reason.NOT_MESSAGES, rule, fix)
    return None


def converted_fault(form: RowForm, shape: Shape, row: Row, fault: RowFault) -> RowFault:
    """Build the refusal of a row whose fields are there and hold something else; `fault` is what was wrong first."""
    if not fault.fix:
        fault = RowFault(fault.reason, fault.rule, "write it as a field of the row, beside the turns", at=fault.at)
    if fault.reason is Reason.MISSING_FIELD and (of := _whole_shape(form, shape, row)) is not None:
        return mixed_fault(of, shape)
    found = _of_bare_turns(row) or columns_fault(row)
    if found is None and form.sides and fault.reason is Reason.MISSING_FIELD and (pair := _propose_pair(form, row)):
        return RowFault(fault.reason, fault.rule, _set_columns(pair))
    if found is not None or fault.reason is not Reason.NOT_MESSAGES:
        return found or fault
    for name in shape.fields:
        value = row.get(name)
        if not isinstance(value, list) or not value:
            continue
        found = list_fault(name, value[0])
        keys = _message_keys(value)
        if keys:
            found = RowFault(fault.reason, fault.rule, _set_columns(keys), at=fault.at)
        if found is not None:
            return found
    return fault


def _whole_shape(form: RowForm, shape: Shape, row: Row) -> Shape | None:
    """Return the shape of a row that has what `shape` lacks beside its fields: it is another one than the file's."""
    return next((other for other in form.shapes if set(shape.fields) < set(other.fields) and other.fits(row)), None)


def columns_fault(row: Row) -> RowFault | None:
    """Build the refusal of an object that holds a table by its columns, as pandas writes one; else None."""
    values = [value for value in row.values() if value is not None]
    by_index = all(isinstance(value, dict) and value and all(map(str.isdigit, value)) for value in values)
    by_list = len(values) > 1 and len({len(value) if isinstance(value, list) else -1 for value in values}) == 1
    by_list = by_list and all(isinstance(value, list) and all(map(_is_scalar, value)) for value in values)
    split = isinstance(row.get("columns"), list) and isinstance(row.get("data"), list)
    if not values or not (by_index or by_list or split):
        return None
    rule = "holds columns, not rows"
    return RowFault(Reason.COLUMNS_NOT_ROWS, rule, "write rows; in pandas: to_json(orient='records', lines=True)")


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)
