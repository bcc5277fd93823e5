"""Fields of a file by names of its own: `prompt=question` reads the file's `question` where the project has `prompt`.

What an author names so is decided: of two shapes in a row the named one is meant, and what lies beside it is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llm_tuning.core.suggestions import closest, did_you_mean
from llm_tuning.data.faults import Reason, RowFault, shown
from llm_tuning.data.labels import LABELS, RATINGS, LabelField
from llm_tuning.data.row_fields import KINDS, plain, words
from llm_tuning.data.rows import Row, RowForm, Shape
from llm_tuning.data.values import is_given
from llm_tuning.errors import InputError, Problem

FIELD = "dataset.columns"
_OF_MESSAGES = ("role", "content")
_SAY_BAD = frozenset(plain(name) for kind in KINDS if kind.name == "left out" for name in kind.row) | frozenset(
    words(
        "bad negative isnegative thumbsdown thumbdown dislike disliked downvote downvoted rejected undesirable "
        "isundesirable toxic istoxic harmful isharmful unsafe isunsafe spam isspam flagged isflagged hallucinated "
        "ishallucinated hallucination failed isfailed error iserror"
    )
)
"""Names of flags that are true where an answer is bad, as `plain` writes them."""

_LOW_IS_GOOD = frozenset(
    words(
        "rank ranking rankorder ranks place placement position perplexity ppl loss nll toxicity toxicityscore "
        "harmfulness errorrate wer cer"
    )
)
"""Names of numbers that are lowest for the best answer, as `plain` writes them."""


class Columns:
    """The fields of a form by the names that a file has for them. Raises InputError for names that make no sense."""

    def __init__(self, form: RowForm, names: Mapping[str, str]) -> None:
        problems = list(find_column_problems(form, names))
        if problems:
            raise InputError(problems)
        self.names = dict(names)
        self.shapes: tuple[Shape, ...] = tuple(
            sorted(form.shapes, key=lambda shape: not set(shape.fields) <= set(names) or _is_part(shape, form))
        )
        """The form's shapes, those that are named in whole first: but for one that is a part of another."""
        self._of_row = {own: given for own, given in names.items() if own not in _OF_MESSAGES}
        self._of_message = {own: given for own, given in names.items() if own in _OF_MESSAGES and own != given}
        self._lists = tuple(name for name in form.own_fields if name not in (form.number.names if form.number else ()))

    def rename(self, row: Row) -> Row:
        """Return `row` with the fields of the form by their own names; raises RowFault where one is not there."""
        if not self.names:
            return row
        for own, given in self._of_row.items():
            if given not in row:
                near = closest(given, row)
                fix = f"did you mean `{shown(near)}`?" if near else f"correct {{field:{FIELD}}}, or add the field"
                rule = f"`{shown(given)}` is missing, which {{field:{FIELD}}} names for `{own}`"
                raise RowFault(Reason.MISSING_FIELD, rule, fix)
        given_names = set(self._of_row.values())
        renamed = {name: value for name, value in row.items() if name not in given_names}
        for own, given in self._of_row.items():
            if is_given(renamed.get(own)):
                rule = f"`{own}` is there beside `{shown(given)}`, which {{field:{FIELD}}} names for it"
                raise RowFault(Reason.AMBIGUOUS, rule, "keep one of them")
            renamed[own] = row[given]
        if self._of_message:
            for name in self._lists:
                if isinstance(renamed.get(name), list):
                    renamed[name] = [
                        self._message(item, f"{name}[{index}]") for index, item in enumerate(renamed[name])
                    ]
        return renamed

    def _message(self, item: Any, at: str) -> Any:
        if not isinstance(item, Mapping):
            return item
        renamed = dict(item)
        for own, given in self._of_message.items():
            if given not in item:
                rule = f"a message has no `{shown(given)}`, which {{field:{FIELD}}} names for `{own}`"
                raise RowFault(Reason.MISSING_FIELD, rule, f"correct {{field:{FIELD}}}, or add it", at=at)
            if is_given(item.get(own)) and own not in self._of_message.values():
                rule = f"`{own}` of a message is there beside `{shown(given)}`, which {{field:{FIELD}}} names for it"
                raise RowFault(Reason.AMBIGUOUS, rule, "keep one of them", at=at)
        for given in self._of_message.values():
            renamed.pop(given, None)
        return renamed | {own: item[given] for own, given in self._of_message.items()}


def _is_part(shape: Shape, form: RowForm) -> bool:
    return any(set(shape.fields) < set(other.fields) for other in form.shapes)


def find_column_problems(form: RowForm, names: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what is wrong with `names`, whatever is in the file."""
    where = f"{{field:{FIELD}}}"
    known = form.fields
    for own in names:
        if own not in known:
            fix = did_you_mean(own, known, otherwise=f"the fields of {form.mode} rows are {', '.join(known)}")
            yield Problem(FIELD, f"{where} has no field `{shown(own)}` to name", fix, field=FIELD)
    for own in LABELS if isinstance(form.number, LabelField) else ():
        if plain(names.get(own, "")) in _SAY_BAD:
            rule = f"`{shown(names[own])}` is true of a bad answer by its name, and `{own}` is true of a good one"
            fix = "write the opposite into a column of another name, such as `label`, and leave this one out"
            yield Problem(FIELD, rule, fix, field=FIELD)
    for own in RATINGS if form.number is not None else ():
        if plain(names.get(own, "")) in _LOW_IS_GOOD:
            given = shown(names[own])
            rule = f"`{given}` is lowest for the best answer by its name, and `{own}` is highest for it"
            fix = f"write its negative into a column of another name, such as `{own}`, and leave this one out"
            yield Problem(FIELD, rule, fix, field=FIELD)
    given_names = list(names.values())
    for twice in dict.fromkeys(name for name in given_names if given_names.count(name) > 1):
        rule = f"`{shown(twice)}` stands for {' and '.join(f'`{shown(o)}`' for o, g in names.items() if g == twice)}"
        yield Problem(FIELD, rule, "name a column once", field=FIELD)
