"""What tokenising makes of a row: its sequences as the model sees them, or why it cannot learn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llm_tuning.data.calls import Tools
from llm_tuning.data.faults import Fact, Reason, RowFault
from llm_tuning.data.messages import Message
from llm_tuning.data.rows import Example

_FEWEST_TOKENS = 2
"""Of a row: the first token has nothing before it to be predicted from."""


@dataclass(frozen=True, slots=True)
class TokenisedSequence:
    """One sequence as the model sees it, cut to the maximum length; arrays of shape (tokens,)."""

    input_ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    """Loss mask: whether each token is a target of the loss; the first never is."""
    full_length: int
    """Tokens before the cut."""
    learns_end: bool
    """The last token in the loss is one at which generation stops."""
    messages: list[Message] | None = None
    """The messages of which it was made: the last one is an answer. None for plain text."""
    tools: Tools | None = None
    """The tools of their prompts."""
    text: str | None = None
    prompt_tokens: int = 0
    """How many of the ids a server makes of the messages before the last one; 0 where it cannot be asked for them."""
    answers: int = 1
    """Answers in the loss, before the cut."""
    answers_cut: int = 0
    """Those of them that begin behind the cut."""
    facts: frozenset[Fact] = frozenset()


@dataclass(frozen=True, slots=True)
class TokenisedRow:
    """The sequences of one row: of each conversation of its Example in turn, one or more."""

    sequences: tuple[TokenisedSequence, ...]
    facts: frozenset[Fact] = frozenset()
    answers: int = 1
    """Answers that are learned, at least in part."""
    answers_cut: int = 0
    """Answers that begin behind the maximum length."""


@dataclass(slots=True)
class Parts:
    """What becomes of one conversation."""

    sequences: list[TokenisedSequence] = field(default_factory=list)
    facts: set[Fact] = field(default_factory=set)
    unseen: int = 0
    """Answers that were not even rendered, for they begin behind the cut."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the sequences of a row have to keep to."""

    max_length: int
    embeddings: int | None
    """How many tokens the base has embeddings for; None where it does not say."""
    added: Mapping[int, str]
    """The tokens that were added to the tokenizer: any other one is a piece of the row's text."""


def build_row(example: Example, parts: Sequence[Parts | RowFault], limits: Limits) -> TokenisedRow | RowFault:
    """Build the row of what became of its conversations; the first fault among them is the row's."""
    is_whole = len(example.sequences) > 1 or example.number == example.number  # a pair, or a row with a number
    sequences: list[TokenisedSequence] = []
    facts: set[Fact] = set()
    answers = cut = 0
    for part in parts:
        if isinstance(part, RowFault):
            return part
        if is_whole and len(part.sequences) + part.unseen > 1:
            return _several_texts()
        kept = [sequence for sequence in part.sequences if sequence.learned.any()]
        fault = _fault_of(kept or part.sequences, limits)
        if fault is not None:
            return fault
        sequences += kept
        facts |= part.facts | ({Fact.SEVERAL_SEQUENCES} if len(part.sequences) + part.unseen > 1 else set())
        answers += sum(sequence.answers - sequence.answers_cut for sequence in part.sequences)
        cut += part.unseen + sum(sequence.answers_cut for sequence in part.sequences)
    return TokenisedRow(tuple(sequences), frozenset(facts), answers, cut)


def _fault_of(sequences: Sequence[TokenisedSequence], limits: Limits) -> RowFault | None:
    """Return why the model cannot learn from the sequences of a conversation, None if it can."""
    for sequence in sequences:
        ids = sequence.input_ids
        if limits.embeddings is not None and len(ids) and ids.max() >= limits.embeddings:
            return _without_embedding(int(ids[ids >= limits.embeddings][0]), limits.embeddings, limits.added)
    first = sequences[0]
    if first.learned.any():
        return None
    if first.full_length > limits.max_length:
        limit = f"{{field:training.max_length}} ({limits.max_length} tokens)"
        rule = f"nothing is left to learn: the answer starts after {limit}"
        return RowFault(Reason.NOTHING_TO_LEARN, rule, "raise {field:training.max_length} or shorten the prompt")
    if first.full_length < _FEWEST_TOKENS:
        cause = f"it has {first.full_length} of the {_FEWEST_TOKENS} tokens needed (the first is only context)"
    else:
        cause = "the answer has no token of its own"
    rule = f"no token would be trained on: {cause}"
    return RowFault(Reason.NOTHING_TO_LEARN, rule, "give more text or remove the row")


def _without_embedding(number: int, embeddings: int, added: Mapping[int, str]) -> RowFault:
    token = f"token {added[number]} ({number})" if number in added else f"token {number}"
    rule = f"has {token}, and the base has {embeddings:,} embeddings: 0 to {embeddings - 1}"
    fix = "resize_token_embeddings() of the base and save it with its tokenizer, or use the tokenizer it came with"
    return RowFault(Reason.TOKEN_WITHOUT_EMBEDDING, rule, fix)


def _several_texts() -> RowFault:
    return RowFault(
        Reason.TEMPLATE_REFUSES,
        "the chat template rewrites earlier answers, so several of them cannot be learned as the one answer of the row",
        "let the row learn one answer, with the earlier ones in its prompt",
    )
