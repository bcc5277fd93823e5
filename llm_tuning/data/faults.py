"""Why a row is refused: a CamelCase reason for machines, and rule and fix in words.

No text of the data set is in a fault, so that logs, statuses and terminals of others never show it: `got()` names a
value's kind instead of the value. Names of fields are.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Every reason a row can be refused for."""

    NOT_JSON = "NotJson"
    TRUNCATED_ROW = "TruncatedRow"
    NOT_UTF8 = "NotUtf8"
    ROW_TOO_LARGE = "RowTooLarge"
    NOT_AN_OBJECT = "NotAnObject"
    NOT_CSV = "NotCsv"
    DUPLICATE_FIELD = "DuplicateField"
    UNKNOWN_SHAPE = "UnknownShape"
    COLUMNS_NOT_ROWS = "ColumnsNotRows"
    MIXED_SHAPES = "MixedShapes"
    AMBIGUOUS = "Ambiguous"
    MISSING_FIELD = "MissingField"
    NULL_FIELD = "NullField"
    EMPTY_FIELD = "EmptyField"
    NOT_TEXT = "NotText"
    NOT_UNICODE = "NotUnicode"
    NOT_MESSAGES = "NotMessages"
    UNKNOWN_ROLE = "UnknownRole"
    SYSTEM_NOT_FIRST = "SystemNotFirst"
    NO_USER_TURN = "NoUserTurn"
    NO_ASSISTANT_TURN = "NoAssistantTurn"
    EQUAL_SIDES = "EqualSides"
    PROMPTS_DIFFER = "PromptsDiffer"
    MISSING_LABEL = "MissingLabel"
    LABEL_NOT_A_FLAG = "LabelNotAFlag"
    UNSUPPORTED_FIELD = "UnsupportedField"
    MISSING_REWARD = "MissingReward"
    REWARD_NOT_A_NUMBER = "RewardNotANumber"
    REWARD_NOT_FINITE = "RewardNotFinite"
    NOT_TOOLS = "NotTools"
    BROKEN_SCHEMA = "BrokenSchema"
    NOT_A_CALL = "NotACall"
    UNKNOWN_TOOL = "UnknownTool"
    CALL_DOES_NOT_FIT = "CallDoesNotFit"
    RESULT_WITHOUT_CALL = "ResultWithoutCall"
    CALL_WITHOUT_RESULT = "CallWithoutResult"
    REASONING_IN_TEXT = "ReasoningInText"
    TEMPLATE_REFUSES = "TemplateRefuses"
    ALREADY_RENDERED = "AlreadyRendered"
    TOKEN_WITHOUT_EMBEDDING = "TokenWithoutEmbedding"
    NOTHING_TO_LEARN = "NothingToLearn"


class Fact(StrEnum):
    """What is worth saying of a row that is learned; the values are the fields of `report.TokenReport`."""

    SEVERAL_SEQUENCES = "several_sequences"
    BOUNDARY_MERGES = "boundary_merges"
    PROMPT_DIFFERS = "prompt_differs"
    UNPAIRED_THINK = "unpaired_think"
    LEFT_OUT = "left_out"
    SERVED_OTHERWISE = "served_otherwise"
    ENDS_REMOVED = "ends_removed"
    SPECIAL_TOKENS = "special_tokens"
    MARKED_TEXTS = "marked_texts"
    FOREIGN_MARKERS = "foreign_markers"


class RowFault(Exception):  # noqa: N818 - a row is refused; the program has no error
    """One row cannot be used. `at` is the place inside the row (field, or line and column), "" for the whole row."""

    def __init__(self, reason: Reason, rule: str, fix: str, *, at: str = "") -> None:
        self.reason = reason
        self.rule = rule
        self.fix = fix
        self.at = at
        super().__init__(f"{at}: {rule}" if at else rule)


def shown(name: str) -> str:
    """Return a field's name for a message, short and on one line whatever characters it has."""
    return repr(name[:40])[1:-1]


def got(value: object) -> str:
    """Return the kind of a JSON value in words, never the value."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "text" if value else "an empty text"
        case int() | float():
            return "a number"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
    return type(value).__name__
