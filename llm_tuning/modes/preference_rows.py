"""The rows of the modes that learn from preferences: pairs of answers (dpo), answers marked as good or bad (kto)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llm_tuning.data.labels import LABELS, RATINGS, LabelField
from llm_tuning.data.pair_shapes import PAIR_SHAPES, SIDES, unfold_input
from llm_tuning.data.pairing import MAX_PAIRS_PER_PROMPT, Pairing
from llm_tuning.data.rows import NumberField, RowForm
from llm_tuning.data.shapes import (
    INSTRUCTION,
    LAST_OF_CONVERSATIONS,
    LAST_OF_MESSAGES,
    PROMPT_COMPLETION,
    PROMPT_OUTPUT,
)
from llm_tuning.errors import Problem

if TYPE_CHECKING:
    from llm_tuning.data.report import Report

FEWEST_PAIRS = 2
"""One pair cannot be told from its noise, and nothing could be held out."""


def dpo_rows(*, min_difference: float = 0.0, max_pairs_per_prompt: int = MAX_PAIRS_PER_PROMPT) -> RowForm:
    """Build the form of rows with two answers; rows of one rated answer are paired by prompt."""

    def judge(report: Report) -> Iterator[Problem]:
        if report.pairs is None or report.pairs.count >= FEWEST_PAIRS:
            return
        if report.pairs.count:
            yield Problem(report.path, "makes 1 pair", f"a run needs at least {FEWEST_PAIRS}")
            return
        apart = f"differ by at least {{field:dpo.min_difference}} ({min_difference:g})" if min_difference else "differ"
        rule = f"makes no pair: no two answers of one prompt have rewards that {apart}"
        fix = "give several answers to a prompt, rated, or {set:mode=ppo}, which needs one"
        yield Problem(f"{report.path}, reward", rule, fix)

    return RowForm(
        mode="dpo",
        shapes=(*PAIR_SHAPES, PROMPT_OUTPUT, PROMPT_COMPLETION),
        accepted="{prompt, chosen, rejected}, {messages or conversations, chosen, rejected}, {instruction, input, "
        "chosen, rejected}, {chosen, rejected} of whole conversations, {input, preferred_output, "
        "non_preferred_output} or {prompt, output, reward}",
        number=NumberField(
            RATINGS,
            needed="dpo compares answers: give each a reward, or write {prompt, chosen, rejected}; {set:mode=sft} to "
            "learn the answers",
        ),
        judge=judge,
        sides=SIDES,
        pairing=Pairing(min_difference, max_pairs_per_prompt),
        unfold=unfold_input,
        takes=frozenset(("preference", "tools", "reasoning")),
        is_right=lambda side, number: side == 0 and math.isnan(number),  # not the rejected answer, nor a rated one
        advice={"label": "write a good and a bad answer to one prompt as `chosen` and `rejected`"},
    )


def kto_rows(*, threshold: float | None = None) -> RowForm:
    """Build the form of rows with one answer that is good or bad, by its label or by its rating."""

    def judge(report: Report) -> Iterator[Problem]:
        labels = report.labels
        if labels is None or (labels.good and labels.bad):
            return
        kind, other = ("good", "bad") if labels.good else ("bad", "good")
        fix = f"add {other} answers"
        if threshold is not None:
            fix += f", or {'raise' if labels.good else 'lower'} {{field:kto.threshold}} ({threshold:g})"
        if labels.good:
            fix += ", or {set:mode=sft} to learn the good ones"
        yield Problem(f"{report.path}, label", f"every answer is {kind}: nothing tells good ones from bad ones", fix)

    return RowForm(
        mode="kto",
        shapes=(LAST_OF_MESSAGES, LAST_OF_CONVERSATIONS, PROMPT_OUTPUT, PROMPT_COMPLETION, INSTRUCTION),
        accepted="{prompt, completion or output, label}, {messages or conversations, label}, {instruction, input, "
        "output, label} or {prompt, output, reward} with a threshold",
        number=LabelField(
            (*LABELS, *RATINGS),
            needed="kto needs true (a good answer) or false (a bad one) in every row; {set:mode=sft} to learn answers "
            "that are all good",
            threshold=threshold,
            threshold_field="{field:kto.threshold}",
        ),
        judge=judge,
        takes=frozenset(("label", "judgement", "tools", "reasoning")),
        is_right=lambda side, number: number == 1.0,
        advice={
            "preference": "write each answer as a row of its own, with `label` true or false",
            "judgement": "learned from where `columns` names it as `label`",
        },
    )
