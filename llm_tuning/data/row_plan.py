"""What the fields of a row mean beside its shape, worked out once for all rows with the same fields.

Most files have the same fields in every row, so a row costs a look-up of its plan and a look at the values that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llm_tuning.data.faults import Reason, RowFault, shown
from llm_tuning.data.labels import BAD, GOOD, LABELS, RATINGS, LabelField
from llm_tuning.data.messages import convert_messages
from llm_tuning.data.row_fields import (
    ANSWER_NAMES,
    ANSWER_TO_TEXT_NAMES,
    ASKED_NAMES,
    FLAG_NAMES,
    HISTORY_NAMES,
    KINDS,
    LABEL_OF_TEXT_NAMES,
    READ_ROW_NAMES,
    REMARKS,
    SCORES_OF_SIDES,
    SYSTEM_NAMES,
    TEXT_NAMES,
    FieldKind,
    kind_of,
    plain,
)
from llm_tuning.data.rows import FORMS, Conversation, Row, RowForm, Shape
from llm_tuning.data.values import check_text, flag, is_given, is_set, texts_in

_JUDGEMENTS = {plain(name) for kind in KINDS if kind.name in ("label", "judgement") for name in kind.row}
_ORDER = [kind.name for kind in KINDS]
_ROLE_NAMES = frozenset(("role", "from", "speaker"))


@dataclass(slots=True)
class RowPlan:
    """The fields of rows that have a shape and the same names, by what they mean."""

    refused: list[tuple[str, FieldKind]] = field(default_factory=list)
    """Fields that refuse a row where their value matters."""
    texts: list[str] = field(default_factory=list)
    """Fields that could be what is asked or answered, and that the shape does not read."""
    labels: list[str] = field(default_factory=list)
    """Beside plain text: what it would be labelled with."""
    systems: list[str] = field(default_factory=list)
    histories: list[str] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)
    """Fields that declare tools, or say something of calls."""
    reasoning: list[str] = field(default_factory=list)
    has_flags: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    """The columns that the file's author has named."""
    judgements: list[str] = field(default_factory=list)
    """Beside a label or a rating that is read: what may say the same of the answer in another field."""
    scores: tuple[str, str] | None = None
    """Fields with a score of the better answer and one of the worse, where the row has two."""
    unnoted: list[str] = field(default_factory=list)
    """Fields that nothing uses, until a note names them."""

    @property
    def is_plain(self) -> bool:
        """Nothing but the fields of the shape, and what cannot matter."""
        beside = self.systems or self.histories or self.tools or self.reasoning
        return not (self.refused or self.texts or self.labels or beside or self.has_flags)


def build_plan(form: RowForm, shape: Shape | None, row: Row, columns: Mapping[str, str]) -> RowPlan:
    """Build the plan of all rows with the fields of `row`; `columns` are those that their author has named."""
    plan = RowPlan(columns=columns)
    own = form.own_fields if shape is None else _read_by(form, shape)
    decided = shape is not None and set(shape.fields) <= columns.keys()
    kinds_decided = {kind.name for name in columns.values() if (kind := kind_of(plain(name))) is not None}
    others = {name for other in form.shapes for name in other.fields}
    for name in row:
        key = plain(name)
        kind = kind_of(key)
        if name in own:
            continue
        if key in SYSTEM_NAMES:
            plan.systems.append(name)
        elif key in HISTORY_NAMES:
            plan.histories.append(name)
        elif key in FLAG_NAMES:
            plan.has_flags = True
        elif READ_ROW_NAMES.get(key) in form.takes:
            (plan.tools if READ_ROW_NAMES[key] == "tools" else plan.reasoning).append(name)
        else:
            plan.unnoted.append(name)
            is_label = shape is not None and shape.is_text and (key in LABEL_OF_TEXT_NAMES or key in _ROLE_NAMES)
            takes_it = kind is not None and kind.name in form.takes and not kind.read
            if kind is not None and not is_label and not takes_it and kind.name not in kinds_decided:
                plan.refused.append((name, kind))
            if is_label:
                plan.labels.append(name)
            elif not decided and (
                name in others
                or (takes_it and key not in REMARKS)
                or key in TEXT_NAMES
                or (shape and shape.is_text and key in ANSWER_TO_TEXT_NAMES)
            ):
                plan.texts.append(name)
    if isinstance(form.number, LabelField) and not columns.keys() & {*LABELS, *RATINGS}:
        plan.judgements = [name for name in plan.unnoted if plain(name) in _JUDGEMENTS]
    if form.sides:
        by_key = {"": ""} | {plain(name): name for name in row}
        pairs = [(by_key[one], by_key[other]) for one, other in SCORES_OF_SIDES if {one, other} <= by_key.keys()]
        plan.scores = next(iter(pairs), None)
    # Two answers first: what else a row has, such as a rationale, is most often of them.
    plan.refused.sort(key=lambda entry: (entry[1].name != "preference", _ORDER.index(entry[1].name)))
    return plan


def _read_by(form: RowForm, shape: Shape) -> Iterable[str]:
    numbers = form.number.names if form.number is not None and shape.numbered else ()
    return (*shape.fields, *shape.optional, *numbers)


def refuse_kinds(
    form: RowForm, plan: RowPlan, row: Row, shape: Shape | None, propose: Callable[[], Mapping[str, str] | None]
) -> None:
    """Raise RowFault for a field of the row that changes what should be learned, and that the mode does not take.

    `propose` finds columns for a row without a shape.
    """
    for name, kind in plan.refused:
        if not kind.matters(row[name]):
            continue
        if kind.name == "label" and shape is not None and not shape.numbered:
            rule = f"`{shown(name)}` beside two answers is not read: the chosen one is taken to be better"
            fix = (
                "remove it where that is so in every row, else write the better answer as `chosen`, and remove it then"
            )
            raise RowFault(Reason.UNSUPPORTED_FIELD, rule, fix)
        if kind.name not in form.takes:
            raise kind.fault(name, advice=advice_on(kind, form))
        columns = propose() if shape is None else None
        is_pair = (shape is not None and not shape.numbered) or any(side in (columns or row) for side in form.sides)
        raise kind.unread_fault(name, columns=columns, one_answer=not is_pair)


def refuse_judgements(plan: RowPlan, row: Row, number: float) -> None:
    """Raise RowFault where another field says the opposite of what is learned of the answer."""
    for name in plan.judgements:
        said = flag(row[name])
        if said is not None and number != (GOOD if said else BAD):
            read = next(own for own in (*LABELS, *RATINGS) if is_set(row.get(own)))
            rule = f"`{read}` and `{shown(name)}` say different things"
            raise RowFault(
                Reason.AMBIGUOUS,
                rule,
                f"keep the one that is meant, or {_columns({read: read})} to leave `{shown(name)}` out",
            )


def advice_on(kind: FieldKind, form: RowForm) -> str:
    """Return what the mode itself wants in their place, then which modes take such rows, then what each other wants."""
    forms = sorted(
        (FORMS | {form.mode: form}).values(),
        key=lambda other: (other.mode != form.mode, kind.name not in other.takes),
    )
    return "; ".join(filter(None, (_advice_of(other, kind) for other in forms)))


def _advice_of(form: RowForm, kind: FieldKind) -> str:
    if kind.name in form.takes:
        return f"{{set:mode={form.mode}}}, which learns from it"
    return f"for {form.mode} {form.advice[kind.name]}" if kind.name in form.advice else ""


def refuse_labels(plan: RowPlan, row: Row) -> None:
    """Raise RowFault for a row of plain text that is a classifier's, or one message of a conversation."""
    for name in plan.labels:
        if not is_set(row[name]):
            continue
        if plain(name) in _ROLE_NAMES:
            rule = f"`{shown(name)}` beside `text`: the row is one message, and a conversation is to be one row"
            raise RowFault(Reason.AMBIGUOUS, rule, 'write {"messages": [...]} with all messages of a conversation')
        rule = f"`{shown(name)}` labels `text`, and all of `text` would be learned without it"
        fix = f"{_columns({'prompt': 'text', 'output': name})} to learn it as the answer"
        if not isinstance(row[name], str):
            fix = f"write it as text, such as the name of its class, and {fix}"
        raise RowFault(Reason.AMBIGUOUS, rule, f"{fix}, or remove it to learn the text alone")


def with_system(conversations: Iterable[Conversation], plan: RowPlan, row: Row, shape: Shape) -> Iterator[Conversation]:
    """Yield the conversations with the row's own system message before them; raises RowFault."""
    given = {name: row[name] for name in plan.systems if is_given(row[name])}
    texts = {name: read_system(row, name) for name in given}
    if len({text.strip() for text in texts.values()}) > 1:
        rule = f"{' and '.join(f'`{shown(name)}`' for name in texts)} differ"
        raise RowFault(Reason.AMBIGUOUS, rule, "keep one of them")
    for name, text in list(texts.items())[:1]:
        if shape.is_text:
            rule = f"`{shown(name)}` beside `text`, which is learned as it stands"
            raise RowFault(Reason.UNSUPPORTED_FIELD, rule, "write `messages`, or put it into `text`")
        conversations = [_after_system(conversation, name, text) for conversation in conversations]
    yield from conversations


def read_system(row: Row, name: str) -> str:
    """Return the text of a system message given beside the turns; raises RowFault."""
    if isinstance(row[name], list):
        content: str = convert_messages({name: [{"role": "system", "content": row[name]}]}, name).messages[0]["content"]
        return content
    return check_text(row, name)


def _after_system(conversation: Conversation, name: str, text: str) -> Conversation:
    first = (conversation.messages or [])[0]
    if first["role"] != "system":
        learns_all = not conversation.learn_from  # then the system message alone is not what is asked, either
        return conversation.after([{"role": "system", "content": text}], learned=learns_all)
    if first["content"].strip() not in ("", text.strip()):
        rule = f"`{shown(name)}` and the first message are two system messages that differ"
        raise RowFault(Reason.AMBIGUOUS, rule, "keep one of them")
    first["content"] = text
    return conversation


def with_history(
    conversations: Iterable[Conversation], plan: RowPlan, row: Row, shape: Shape, *, learned: bool
) -> Iterator[Conversation]:
    """Yield the conversations with the row's history before them; raises RowFault."""
    given = [name for name in plan.histories if is_given(row[name])]
    if not given:
        yield from conversations
        return
    if len(given) > 1:
        rule = f"{' and '.join(f'`{shown(name)}`' for name in given)} are both turns before the prompt"
        raise RowFault(Reason.AMBIGUOUS, rule, "keep the one that is meant")
    name = given[0]
    if not shape.history or isinstance(row[shape.fields[0]], list):
        rule = f"`{shown(name)}` beside {shape.name if shape.is_text else 'messages'} has no place of its own"
        raise RowFault(Reason.AMBIGUOUS, rule, "write its turns into the messages, or remove it")
    turns = _history(row, name)
    for conversation in conversations:
        yield conversation.after(turns, learned=learned)


def _history(row: Row, name: str) -> list[dict[str, str]]:
    pairs = row[name]
    if isinstance(pairs, list) and all(isinstance(pair, dict) for pair in pairs):
        turns = convert_messages(row, name)
        if turns.messages[-1]["role"] != "assistant":
            rule = f"`{shown(name)}` ends with a turn without its answer, and the prompt is the next turn of the user"
            raise RowFault(Reason.AMBIGUOUS, rule, "end it with the assistant's turn before the prompt")
        if not turns.flags and not turns.prefixes:
            return turns.messages
    messages = []
    for index, pair in enumerate(pairs if isinstance(pairs, list) else [pairs]):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            rule = f"`{shown(name)}` must be a list of pairs of a question and an answer"
            raise RowFault(Reason.NOT_MESSAGES, rule, 'write [["question", "answer"], ...]')
        texts = {"question": pair[0], "answer": pair[1]}
        for role, part in (("user", "question"), ("assistant", "answer")):
            messages.append({"role": role, "content": check_text(texts, part, at=f"{name}[{index}]")})
    return messages


def refuse_texts(form: RowForm, shape: Shape, plan: RowPlan, row: Row, conversations: Sequence[Conversation]) -> None:
    """Raise RowFault where a text that the shape does not read says something that the conversations do not."""
    given = [name for name in plan.texts if is_given(row[name])]
    if isinstance(form.number, LabelField):  # whose "true" is no text
        given = [name for name in given if plain(name) not in _JUDGEMENTS or flag(row[name]) is None]
    if not given:
        return
    own = _normal(text for conversation in conversations for text in _turns(conversation))
    for other in form.shapes if len(conversations) == 1 else ():
        if other is not shape and set(other.fields) & set(given) and other.fits(row):
            _compare(shape, other, plan, row, own)
            given = [name for name in given if name not in (*other.fields, *other.optional)]
    seen = _normal(text for conversation in conversations for text in conversation.texts)
    for name in given:
        for text in _normal(texts_in(row[name])):
            if not any(text in content for content in seen) and not all(content in text for content in own):
                raise _text_beside(form, shape, plan, row, name)


def _text_beside(form: RowForm, shape: Shape, plan: RowPlan, row: Row, name: str) -> RowFault:
    rule = f"`{shown(name)}` beside {shape.name} is not part of what would be learned"
    if _is_answer_to_turns(form, shape, row, name):
        field = shape.fields[0]
        named = {own: given for own, given in plan.columns.items() if own != field}
        columns = named | {"prompt": plan.columns.get(field, field), "output": name}
        return RowFault(Reason.AMBIGUOUS, rule, f"{_columns(columns)} to learn it as the answer to these turns")
    fix = "put it where it belongs"
    if shape.is_text and plain(name) in ASKED_NAMES:
        fix = f"{_columns({'prompt': name, 'output': 'text'})} where `text` is its answer"
    elif shape.is_text and plain(name) in ANSWER_TO_TEXT_NAMES:
        fix = f"{_columns({'prompt': 'text', 'output': name})} to learn it as the answer to `text`"
    return RowFault(Reason.AMBIGUOUS, rule, f"{fix}, or {_decide(shape, plan)} to leave it out")


def _is_answer_to_turns(form: RowForm, shape: Shape, row: Row, name: str) -> bool:
    """Return whether the turns of a row end with the user, and the text in `name` could be their answer."""
    turns = row.get(shape.fields[0])
    if len(shape.fields) > 1 or not isinstance(turns, list) or not {"prompt", "output"} <= set(form.own_fields):
        return False
    last = turns[-1] if turns else None
    role = last.get("role", last.get("from")) if isinstance(last, Mapping) else None
    return role in ("user", "human") and isinstance(row[name], str) and plain(name) in ANSWER_NAMES


def _compare(shape: Shape, other: Shape, plan: RowPlan, row: Row, own: list[str]) -> None:
    said = _normal(_turns(other.convert(row)[0]))
    values = [row.get(name) for name in (*shape.fields, *shape.optional)]
    if other.is_text and all(isinstance(value, str | None) for value in values):
        # a template may write between them, as Alpaca's does between an instruction and its input
        own = _normal(value for value in values if value)
    if not (all(content in said[0] for content in own) if other.is_text else said == own):
        rule = f"has the shapes {shape.name} and {other.name}, which say different things"
        fix = ", or ".join(f"{_decide(one, plan)} to learn {one.name}" for one in (shape, other))
        raise RowFault(Reason.AMBIGUOUS, rule, fix)


def _decide(shape: Shape, plan: RowPlan) -> str:
    """Return how an author says that a shape alone is meant: its fields are named, if only by their own names."""
    return _columns(dict(plan.columns) | {name: plan.columns.get(name, name) for name in shape.fields})


def _columns(names: Mapping[str, str]) -> str:
    return f"{{set:dataset.columns={','.join(f'{own}={given}' for own, given in names.items())}}}"


def _turns(conversation: Conversation) -> list[str]:
    """Return the texts of a conversation but for its system message."""
    if conversation.messages is None:
        return [conversation.text or ""]
    return [message["content"] for message in conversation.messages if message["role"] != "system"]


def _normal(texts: Iterable[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts if text.strip()]
