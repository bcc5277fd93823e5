"""Counts what pairs and labels have to tell apart: lengths, contradictions, prompts with one kind of answer.

A model learns whatever tells the better answers from the worse ones. Where that is their length, it learns length.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from llm_tuning.data.calls import calls_of, key_text, tools_key
from llm_tuning.data.messages import Message
from llm_tuning.data.pairing import PairingCounts
from llm_tuning.data.rows import Conversation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Unit = Literal["tokens", "characters"]
ONE_SIDED = 0.75
"""From so many of the pairs on, the longer answer being the better one is worth a note."""
FEWEST_TO_TELL = 20
"""Pairs below which a share of them says nothing."""
MUCH_LONGER = 1.5
"""How many times longer good answers are than bad ones, or the other way round, to be worth a note."""


_ODD = 0x9E3779B97F4A7C15
"""Makes of two keys one that knows their order."""


class ComparedReport(BaseModel):
    """A part of a data check's report that tells answers apart."""

    # Reports of other versions, beside their adapters, have other fields.
    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)
    title: ClassVar[str]

    @abstractmethod
    def line(self) -> str:
        """Return the counts as one line of a report."""

    @abstractmethod
    def notes(self) -> Iterator[str]:
        """Yield what somebody who trains on the answers should know."""

    @abstractmethod
    def warnings(self) -> Iterator[str]:
        """Yield what is most likely a fault of the data."""


class PairReport(ComparedReport):
    """Pairs of answers, as they are trained on."""

    title = "Pairs"

    count: int = 0
    unit: Unit = "tokens"
    """What lengths are counted in: tokens where there is a tokenizer."""
    chosen_longer: int = 0
    """Pairs whose chosen answer is the longer one."""
    rejected_longer: int = 0
    mean_difference: float = 0.0
    """Length of the chosen answer minus that of the rejected one, a pair."""
    contradicted: int = 0
    """Pairs that are there the other way round, too; the pairs of a ranking are not."""
    from_ratings: bool = False
    """Made of rows with one rated answer each; the counts below are of these."""
    prompts: int = 0
    one_answer: int = 0
    """Prompts without a pair, since they have one answer."""
    tied: int = 0
    """Prompts without a pair, since no two of their answers are rated far enough apart."""
    averaged: int = 0
    """Answers that were rated several times and differently; their mean is taken."""
    spaced: int = 0
    """Prompts that are another one but for white space: the answers of the two are not compared."""
    in_training: int = 0
    """Of pairs to evaluate on, those whose prompt is among the training rows."""

    def line(self) -> str:
        longer = f"the chosen answer is the longer one in {self.chosen_longer / self.count:.0%}" if self.count else ""
        mean = f", by {self.mean_difference:+.1f} {self.unit} a pair on average" if self.count else ""
        made = f"{self.count:,}" + (f" of {self.prompts:,} prompts" if self.from_ratings else "")
        return "; ".join(filter(None, (made, longer + mean)))

    def notes(self) -> Iterator[str]:
        if without := self.one_answer + self.tied:
            why = f"{self.one_answer:,} have one answer, {self.tied:,} have ratings that are too near"
            yield f"prompts that make no pair: {without:,} of {self.prompts:,} ({why})"
        if self.averaged:
            yield f"answers that are rated several times, and differently: {self.averaged:,}; their mean is taken"
        share = max(self.chosen_longer, self.rejected_longer) / max(1, self.count)
        if self.count >= FEWEST_TO_TELL and share >= ONE_SIDED:
            which = "longer" if self.chosen_longer > self.rejected_longer else "shorter"
            yield (
                f"the chosen answer is the {which} one in {share:.0%} of the pairs "
                f"({self.mean_difference:+.1f} {self.unit} on average): a model could learn length alone"
            )

    def warnings(self) -> Iterator[str]:
        if self.spaced:
            yield (
                f"prompts that are another one but for white space: {self.spaced:,}; answers are compared where their "
                "prompts are the same exactly: write them alike"
            )
        if self.contradicted:
            yield (
                f"pairs that are there the other way round, too: {self.contradicted:,}; one of them takes back what "
                "the other teaches"
            )


class LabelReport(ComparedReport):
    """Answers that are marked as good or bad."""

    title = "Labels"

    good: int = 0
    bad: int = 0
    prompts: int = 0
    one_sided: int = 0
    """Prompts whose answers are all good, or all bad."""
    contradicted: int = 0
    """Answers of a prompt that are good in one row and bad in another."""
    unit: Unit = "tokens"
    mean_good: float = 0.0
    """Mean length of good answers."""
    mean_bad: float = 0.0

    def line(self) -> str:
        lengths = f"mean length {self.mean_good:.1f} and {self.mean_bad:.1f} {self.unit}"
        return f"{self.good:,} good and {self.bad:,} bad answers; {lengths}"

    def notes(self) -> Iterator[str]:
        if self.one_sided:
            yield f"prompts with good or with bad answers alone: {self.one_sided:,} of {self.prompts:,}"
        low, high = sorted((self.mean_good, self.mean_bad))
        if min(self.good, self.bad) >= FEWEST_TO_TELL and high >= MUCH_LONGER * low:
            which = "longer" if self.mean_good > self.mean_bad else "shorter"
            yield (
                f"good answers are {which} than bad ones ({self.mean_good:.1f} and {self.mean_bad:.1f} {self.unit} "
                "on average): a model could learn length alone"
            )

    def warnings(self) -> Iterator[str]:
        if self.contradicted:
            yield f"answers that are good in one row and bad in another, of one prompt: {self.contradicted:,}"


class PairCounts:
    """Counts pairs while they stream by, in 16 bytes a pair."""

    def __init__(self, unit: Unit) -> None:
        self._report = PairReport(unit=unit)
        self._difference = 0
        self._chosen, self._rejected = array("Q"), array("Q")
        self._places = array("Q")

    def add(self, chosen: Conversation, rejected: Conversation, *, lengths: tuple[int, int]) -> None:
        """Count the pair of a row; `lengths` are those of the two answers."""
        self._chosen.append(content_key(chosen))
        self._rejected.append(content_key(rejected))
        self._count(*lengths)

    def add_rated(self, place: int, *, lengths: tuple[int, int]) -> None:
        """Count a pair of rated rows, of which the chosen one was kept at `place`."""
        self._places.append(place)
        self._count(*lengths)

    def _count(self, chosen: int, rejected: int) -> None:
        self._report.count += 1
        self._report.chosen_longer += chosen > rejected
        self._report.rejected_longer += chosen < rejected
        self._difference += chosen - rejected

    def result(self, *, made: PairingCounts | None, prompts: int, in_training: NDArray[np.bool_] | None) -> PairReport:
        """Return the counts; `made`: what became of rated rows, of which those `in_training` have a trained prompt.

        `prompts` are those of the rows, whatever white space they are written with.
        """
        import numpy as np  # reports are read by commands that need none

        report = self._report
        report.mean_difference = self._difference / max(1, report.count)
        chosen, rejected = (np.frombuffer(keys, dtype=np.uint64) for keys in (self._chosen, self._rejected))
        odd = np.uint64(_ODD)
        report.contradicted = int(np.isin(chosen * odd + rejected, rejected * odd + chosen).sum())
        if made is not None:
            report.from_ratings, report.prompts = True, made.prompts
            report.spaced = max(0, made.prompts - prompts)
            report.one_answer, report.tied, report.averaged = made.one_answer, made.tied, made.averaged
            if in_training is not None:
                report.in_training = int(in_training[np.frombuffer(self._places, dtype=np.uint64)].sum())
        return report


class LabelCounts:
    """Counts labelled answers while they stream by, in 16 bytes each."""

    def __init__(self, unit: Unit) -> None:
        self._report = LabelReport(unit=unit)
        self._lengths = [0, 0]
        self._prompts, self._answers = array("Q"), array("Q")

    def add(self, conversation: Conversation, *, good: bool, length: int) -> None:
        """Count the answer of a row."""
        self._report.good += good
        self._report.bad += not good
        self._lengths[good] += length
        self._prompts.append(_marked(prompt_identity(conversation), good))
        self._answers.append(_marked(content_key(conversation), good))

    def result(self) -> LabelReport:
        """Return the counts."""
        report = self._report
        bad, good = self._lengths
        report.mean_good, report.mean_bad = good / max(1, report.good), bad / max(1, report.bad)
        both, report.prompts = _both_sides(self._prompts)
        report.one_sided = report.prompts - both
        report.contradicted, _ = _both_sides(self._answers)
        return report


def _marked(key: int, good: bool) -> int:
    """Put a label into the last bit of a key."""
    return (key & ~1) | good


def _both_sides(marked: array[int]) -> tuple[int, int]:
    """Return how many keys are there with both labels, and how many there are."""
    import numpy as np  # reports are read by commands that need none

    different = np.unique(np.frombuffer(marked, dtype=np.uint64))
    keys = len(np.unique(different >> np.uint64(1)))
    return len(different) - keys, keys


def answer_characters(conversation: Conversation) -> int:
    """Count the characters of the turns that are learned: texts, reasoning, and calls as JSON."""
    messages = conversation.messages or []
    return sum(_characters(messages[index]) for index in conversation.learned_turns())


def _characters(message: Message) -> int:
    called = (call["function"] for call in calls_of(message))
    calls = sum(len(call["name"]) + len(json.dumps(call["arguments"], ensure_ascii=False)) for call in called)
    return len(message["content"]) + len(message.get("reasoning_content", "")) + calls


def prompt_identity(conversation: Conversation) -> int:
    """Hash what stands before the answers that are learned to 64 bits: equal for prompts that are the same exactly."""
    messages = (conversation.messages or [])[: conversation.learn_from]
    return _key(conversation, ((message, message["content"]) for message in messages))


def content_key(conversation: Conversation) -> int:
    """Hash a whole conversation to 64 bits, whatever white space is around its texts."""
    messages = conversation.messages or ()
    return _key(conversation, ((message, message["content"].strip()) for message in messages))


def _key(conversation: Conversation, contents: Iterable[tuple[Message, str]]) -> int:
    digest = hashlib.blake2b(tools_key(conversation.tools).encode(), digest_size=8)
    for message, content in contents:
        digest.update(f"\x1e{message['role']}\x1f{content}{key_text(message)}".encode())
    return int.from_bytes(digest.digest(), "little")
