"""A burst of ten, then five a second, each sender for itself."""

from __future__ import annotations

from tuning_operator.reports.rate_limit import MAX_SENDERS, RateLimit


def test_a_burst_passes_then_five_a_second() -> None:
    now = [0.0]
    limit = RateLimit(clock=lambda: now[0])
    assert [limit.allows("a") for _ in range(12)] == [True] * 10 + [False] * 2
    assert limit.allows("b")
    now[0] += 1.0
    assert [limit.allows("a") for _ in range(7)] == [True] * 5 + [False] * 2


def test_a_pause_gives_back_no_more_than_a_burst() -> None:
    now = [0.0]
    limit = RateLimit(clock=lambda: now[0])
    assert limit.allows("a")
    now[0] += 1e6
    assert sum(limit.allows("a") for _ in range(100)) == 10


def test_senders_that_went_are_forgotten() -> None:
    now = [0.0]
    limit = RateLimit(clock=lambda: now[0])
    for number in range(5 * MAX_SENDERS):
        now[0] += 0.01
        limit.allows(str(number))
    assert len(limit._left) <= MAX_SENDERS + 1
