"""What a key has left, and what it is told when that is nothing."""

from __future__ import annotations

import pytest

from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.limits import Allowance, Allowances, KeyLimits, duration


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_requests_are_let_through_until_the_minute_is_used_up_and_come_back_evenly(clock: Clock) -> None:
    allowance = Allowance(KeyLimits(requests_per_minute=60), clock)
    for left in reversed(range(60)):
        headers = allowance.take_request()
        assert headers["x-ratelimit-limit-requests"] == "60"
        assert headers["x-ratelimit-remaining-requests"] == str(left)
    assert headers["x-ratelimit-reset-requests"] == "1m0s"
    with pytest.raises(ApiError) as raised:
        allowance.take_request()
    error = raised.value
    assert (error.status, error.code, error.type) == (429, "rate_limit_exceeded", "requests")
    assert error.headers["retry-after"] == "1"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert "60 requests a minute; try again in 1s" in error.message
    clock.now += 2
    allowance.take_request()
    allowance.take_request()
    with pytest.raises(ApiError):
        allowance.take_request()
    clock.now += 3600
    assert allowance.take_request()["x-ratelimit-remaining-requests"] == "59", "never more than a minute's"


def test_answers_at_once_are_counted_while_they_last(clock: Clock) -> None:
    allowance = Allowance(KeyLimits(parallel_answers=2), clock)
    with allowance.answering():
        with pytest.raises(ZeroDivisionError), allowance.answering():
            raise ZeroDivisionError
        with allowance.answering(), pytest.raises(ApiError) as raised, allowance.answering():
            pass
        assert (raised.value.status, raised.value.headers["retry-after"]) == (429, "1")
        with allowance.answering():
            pass


def test_uploads_are_counted_by_bytes_and_no_sdk_waits_for_hours(clock: Clock) -> None:
    allowance = Allowance(KeyLimits(upload_bytes_per_day=86_400), clock)
    allowance.check_upload(86_400)
    allowance.take_upload(80_000)
    with pytest.raises(ApiError, match=r"may upload 86.4 kB a day, and this would be more; try again in 1h0m0s"):
        allowance.check_upload(10_000)
    allowance.take_upload(6_400)
    with pytest.raises(ApiError) as raised:
        allowance.take_upload(1)
    assert (raised.value.status, raised.value.headers["x-should-retry"]) == (429, "false")
    clock.now += 3600
    allowance.take_upload(3600)


def test_zero_is_no_limit(clock: Clock) -> None:
    allowance = Allowance(KeyLimits(0, 0, 0), clock)
    for _ in range(10_000):
        assert allowance.take_request() == {}
        allowance.take_upload(2**40)
        allowance.check_upload(2**60)
    with allowance.answering(), allowance.answering():
        pass


def test_each_key_has_its_own(clock: Clock) -> None:
    allowances = Allowances(KeyLimits(requests_per_minute=1), clock)
    allowances.of("alice").take_request()
    allowances.of("bob").take_request()
    with pytest.raises(ApiError):
        allowances.of("alice").take_request()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0123, "13ms"), (1, "1s"), (59.2, "1m0s"), (60, "1m0s"), (360, "6m0s"), (7380, "2h3m0s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
