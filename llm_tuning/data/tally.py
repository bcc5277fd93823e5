"""Counts a data set while it streams by, in eight bytes a row and memory that does not grow, and writes the report."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from llm_tuning.data.calls import calls_of, key_text, tools_key
from llm_tuning.data.compared import LabelCounts, PairCounts, Unit, answer_characters
from llm_tuning.data.faults import RowFault
from llm_tuning.data.labels import GOOD, LabelField
from llm_tuning.data.messages import THINK_END
from llm_tuning.data.rated_rows import RatedRows
from llm_tuning.data.report import (
    Duplicates,
    Refused,
    Report,
    RewardSpread,
    RowList,
    TokenLengths,
    TokenReport,
    ToolReport,
)
from llm_tuning.data.rows import Conversation, Example, RowForm
from llm_tuning.data.splitting import PromptGroups
from llm_tuning.data.tokenised import TokenisedRow

MAX_DISTINCT_FAULTS = 100
"""Kinds of refused rows listed apart; there are fewer rules than that times fields."""
MAX_DIGESTS = 1 << 20
"""Row digests held to find duplicates: about 100 MB at most."""


class DuplicateCounter:
    """Counts rows equal to an earlier one by 16-byte digests.

    Exact up to `max_digests` different rows. Beyond, only digests that begin with one more zero bit are kept each time
    the set is full (a fair sample of the different rows, whatever their order), and the count is scaled up.
    """

    def __init__(self, max_digests: int = MAX_DIGESTS) -> None:
        self._max_digests = max_digests
        self._digests: set[bytes] = set()
        self._sampled_bits = 0
        self._repeats: Counter[int] = Counter()  # by zero bits at the start of the digest
        self._listed = RowList()

    def add(self, example: Example) -> None:
        digest = _digest(example)
        zero_bits = 64 - int.from_bytes(digest[:8]).bit_length()
        if zero_bits < self._sampled_bits:
            return
        if digest in self._digests:
            self._repeats[zero_bits] += 1
            self._listed.add(example.row_number)
            return
        self._digests.add(digest)
        while len(self._digests) > self._max_digests:
            self._sampled_bits += 1
            limit = 64 - self._sampled_bits
            self._digests = {kept for kept in self._digests if int.from_bytes(kept[:8]).bit_length() <= limit}

    def result(self) -> Duplicates:
        in_sample = sum(count for bits, count in self._repeats.items() if bits >= self._sampled_bits)
        return Duplicates(count=in_sample << self._sampled_bits, rows=self._listed.rows, exact=self._sampled_bits == 0)


def _digest(example: Example) -> bytes:
    digest = hashlib.blake2b(repr(example.number).encode(), digest_size=16)
    for conversation in example.sequences:
        for message in conversation.messages or ():
            digest.update(f"\x1e{message['role']}\x1f{message['content']}{key_text(message)}".encode())
        digest.update(tools_key(conversation.tools).encode())
        digest.update(b"\x1d" + (conversation.text or "").encode())
        if conversation.not_learned or conversation.prefixes:
            digest.update(f"\x1d{sorted(conversation.not_learned)}{sorted(conversation.prefixes.items())}".encode())
    return digest.digest()


class Tally:
    """What the report says, counted row by row."""

    def __init__(self, form: RowForm, max_length: int, *, with_tokens: bool, prompts: PromptGroups) -> None:
        """Count the rows of one file; `prompts` holds those of the files before it, whose rows train."""
        self._max_length = max_length
        unit: Unit = "tokens" if with_tokens else "characters"
        self._pairs = PairCounts(unit) if form.sides else None
        self._labels = LabelCounts(unit) if isinstance(form.number, LabelField) else None
        self._rated: RatedRows | None = None
        self._with_tokens = with_tokens
        self.read = 0
        self.kept = 0
        self._refused: dict[tuple[str, str], Refused] = {}
        self._duplicates = DuplicateCounter()
        self._prompts, self._before = prompts, len(prompts)
        self._row_numbers = array("q")
        self._rewards = _Spread()
        self._lengths: Counter[int] = Counter()
        self._tools = ToolReport()
        self._tokens = TokenReport(max_length=max_length)

    def refuse(self, row_number: int, fault: RowFault, *, line: int = 0) -> None:
        """Count a refused row; `line` is the one on which it begins, where its number does not say so."""
        key = (str(fault.reason), fault.rule)
        if key not in self._refused and len(self._refused) >= MAX_DISTINCT_FAULTS:
            key = next(reversed(self._refused))
        at = f"line {line}" if line and not fault.at.startswith("line ") else ""
        at = ", ".join(filter(None, (at, fault.at)))
        entry = self._refused.setdefault(key, Refused(reason=fault.reason, rule=fault.rule, fix=fault.fix, at=at))
        entry.add(row_number)

    def keep(self, example: Example, row: TokenisedRow | None) -> None:
        self.kept += 1
        self._duplicates.add(example)
        first = example.sequences[0]
        self._prompts.add(
            first.messages,
            first.text,
            tools=first.tools,
            learn_from=first.learn_from,
            not_learned=first.not_learned,
        )
        self._count_tools(example)
        if self._before:
            self._row_numbers.append(example.row_number)
        if self._labels is not None:
            self._labels.add(first, good=example.number == GOOD, length=_length(first, row, 0))
        elif not math.isnan(example.number):
            self._rewards.add(example.number)
        if self._pairs is not None and len(example.sequences) == 2:
            one, other = example.sequences
            self._pairs.add(one, other, lengths=(_length(one, row, 0), _length(other, row, 1)))
        if row is not None:
            self._count_tokens(example.row_number, row)

    def _count_tools(self, example: Example) -> None:
        """Count tools, calls and reasoning of a row, of a pair both sides."""
        found, tools = False, self._tools
        counts = [0]
        for conversation in example.sequences:
            tools.declaring += conversation.tools is not None and conversation is example.sequences[0]
            for message in conversation.messages or ():
                if message["role"] != "assistant":
                    continue
                found = found or "reasoning_content" in message or THINK_END in message["content"]
                if len(message) > 2:
                    counts.append(len(calls_of(message)))
        tools.reasoning += found
        tools.calls += sum(counts)
        tools.calling += max(counts) > 0
        tools.several_at_once += max(counts) > 1

    def keep_pairs(self, rated: RatedRows) -> None:
        """Count the pairs that kept rows make, in whose place they are trained on, and write them."""
        assert self._pairs is not None
        self._rated, tokens = rated, self._tokens
        self._lengths.clear()
        tokens.learned = tokens.tokens_lost = tokens.sequences = 0
        for pair in rated.pairs():
            one, other = rated.learned(pair.chosen), rated.learned(pair.rejected)
            self._pairs.add_rated(pair.chosen, lengths=(one, other))
            for place, learned in ((pair.chosen, one), (pair.rejected, other)):
                full = rated.full_length(place)
                self._lengths[full] += 1
                tokens.learned += learned
                tokens.tokens_lost += max(0, full - self._max_length)
                tokens.sequences += 1

    def _count_tokens(self, number: int, row: TokenisedRow) -> None:
        """Count lengths by sequence, which max_length cuts, and what warnings list by row."""
        tokens, sequences = self._tokens, row.sequences
        for sequence in sequences:
            self._lengths[sequence.full_length] += 1
            tokens.learned += int(sequence.learned.sum())
            tokens.tokens_lost += max(0, sequence.full_length - self._max_length)
        tokens.sequences += len(sequences)
        tokens.answers += row.answers
        tokens.answers_cut += row.answers_cut
        tokens.rows_learning_end += all(sequence.learns_end for sequence in sequences)
        if row.answers_cut or any(sequence.full_length > self._max_length for sequence in sequences):
            tokens.truncated.add(number)
        for fact in row.facts:
            getattr(tokens, fact).add(number)

    def write(self, report: Report) -> None:
        """Put the counts into the report."""
        report.rows = self.read
        report.kept = self.kept
        report.refusals = sorted(self._refused.values(), key=lambda refused: -refused.count)
        report.refused = sum(refused.count for refused in report.refusals)
        report.duplicates = self._duplicates.result()
        in_training = self._write_prompts(report)
        if self._labels is not None:
            report.labels = self._labels.result()
        if self._pairs is not None:
            made = self._rated.counts if self._rated is not None else None
            report.pairs = self._pairs.result(
                made=made, prompts=self._prompts.count(self._before), in_training=in_training
            )
        report.rewards = self._rewards.result()
        report.tools = self._tools
        if self._with_tokens:
            self._tokens.lengths = lengths_of(self._lengths)
            report.tokens = self._tokens

    def _write_prompts(self, report: Report) -> NDArray[np.bool_]:
        """Count the prompts, and return which of the kept rows have one of the files before."""
        keys = self._prompts.keys()
        trained, own = keys[: self._before], keys[self._before :]
        report.prompts = len(np.unique(own))
        in_training = np.isin(own, trained)
        for at in np.flatnonzero(in_training):
            report.in_training.add(self._row_numbers[at])
        return in_training


def _length(conversation: Conversation, row: TokenisedRow | None, number: int) -> int:
    """Return the learned tokens of a sequence, or the characters of its answer where there is no tokenizer."""
    return answer_characters(conversation) if row is None else int(row.sequences[number].learned.sum())


class _Spread:
    """Minimum, mean, maximum and standard deviation, each value seen once (Welford 1962, Technometrics 4(3))."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._squares = 0.0
        self._min, self._max = math.inf, -math.inf

    def add(self, value: float) -> None:
        self._count += 1
        delta = value - self._mean
        self._mean += delta / self._count
        self._squares += delta * (value - self._mean)
        self._min, self._max = min(self._min, value), max(self._max, value)

    def result(self) -> RewardSpread | None:
        if not self._count:
            return None
        std = math.sqrt(self._squares / self._count)
        return RewardSpread(min=self._min, mean=self._mean, max=self._max, std=std)


def lengths_of(histogram: Counter[int]) -> TokenLengths | None:
    """Compute exact nearest-rank percentiles of a histogram of lengths; None if it is empty."""
    if not histogram:
        return None
    lengths = sorted(histogram)
    up_to = list(accumulate(histogram[length] for length in lengths))

    def percentile(percent: int) -> int:
        rank = -(-up_to[-1] * percent // 100)
        return next(length for length, count in zip(lengths, up_to, strict=True) if count >= rank)

    return TokenLengths(
        p50=percentile(50),
        p90=percentile(90),
        p95=percentile(95),
        p99=percentile(99),
        max=lengths[-1],
        total=_weighted_sum(histogram.items()),
    )


def _weighted_sum(items: Iterable[tuple[int, int]]) -> int:
    return sum(length * count for length, count in items)
