"""Every reason has its entry in docs/troubleshooting.md, and no other word has."""

from __future__ import annotations

import re

from docs.tools.reference import read_troubles
from llm_tuning.api.conditions import AdapterReason, ConditionType, Phase, Reason, ServiceConditionType, ServiceReason
from llm_tuning.pod.contract import PodReason
from tests.support.pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
REASONS = {str(reason) for kind in (Reason, PodReason, ServiceReason, AdapterReason) for reason in kind}


def test_every_reason_has_an_entry_and_no_other_word_has() -> None:
    assert set(read_troubles(PAGE)) == REASONS


def test_every_entry_says_what_to_do() -> None:
    entries = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    assert len(entries) > 50
    assert [entry.split("\n")[0] for entry in entries if entry.count("*What to do:* ") != 1] == []


def test_every_phase_and_condition_of_a_tuning_job_has_its_line() -> None:
    page = (ROOT / "docs" / "tuningjob.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| ([A-Z]\w+(?:, [A-Z]\w+)*) \|", page, flags=re.MULTILINE)
    named = {word for line in lines for word in line.split(", ")}
    assert {str(word) for word in (*Phase, *ConditionType)} <= named


def test_words_like_reasons_on_other_pages_are_reasons() -> None:
    """A reason that was renamed is found wherever it is written as code."""
    known = REASONS | {str(word) for kind in (Phase, ConditionType, ServiceConditionType) for word in kind}
    for name in ("tuningjob.md", "operations.md", "datasets.md"):
        text = re.sub(r"^```.*?^```", "", (ROOT / "docs" / name).read_text(), flags=re.MULTILINE | re.DOTALL)
        words = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+)`", text))
        assert words <= known, name


def test_every_reason_an_adapter_may_have_is_said_to_be_served_or_not() -> None:
    page = (ROOT / "docs" / "inferenceservice.md").read_text(encoding="utf-8")
    table = "\n".join(re.findall(r"^\| (?:True|False|Unknown) \|.*$", page, flags=re.MULTILINE))
    assert {str(reason) for reason in AdapterReason} <= set(re.findall(r"\b[A-Z]\w+\b", table))
