"""Which adapter answers: shares by weight, users who stay, targets that must not answer."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from llm_tuning.agent.contract import DesiredRoute, DesiredTarget
from llm_tuning.agent.routing import NotServed, choose

USERS = [f"user-{number}" for number in range(10_000)]


def route(**weights: int) -> DesiredRoute:
    return DesiredRoute(name="support", targets=tuple(DesiredTarget(model_id=n, weight=w) for n, w in weights.items()))


def open_(model_id: str) -> str | None:
    return None


def by_user(given: DesiredRoute) -> dict[str, str]:
    found = {user: choose(given, open_, user) for user in USERS}
    assert all(isinstance(name, str) for name in found.values())
    return {user: str(name) for user, name in found.items()}


def chi_square(counts: Counter[str], shares: dict[str, float]) -> float:
    total = counts.total()
    return sum((counts[name] - total * share) ** 2 / (total * share) for name, share in shares.items())


@pytest.mark.parametrize("sticky", [False, True], ids=["nobody in particular", "by user"])
@pytest.mark.parametrize(
    "weights", [{"a": 1, "b": 1}, {"a": 90, "b": 10}, {"a": 5, "b": 3, "c": 2}, {"a": 999, "b": 1}], ids=str
)
def test_shares_are_by_weight(weights: dict[str, int], sticky: bool) -> None:
    random.seed(7)
    given = route(**weights)
    counts = Counter(str(choose(given, open_, user if sticky else None)) for user in USERS)
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    # 99.9 % of draws with 1 and 2 degrees of freedom are below 10.8 and 13.8; the draws here are always the same.
    assert chi_square(counts, shares) < 10.8, counts


def test_a_user_stays_with_one_target_whatever_the_order() -> None:
    there, back = route(a=2, b=1, c=1), route(c=1, b=1, a=2)
    assert by_user(there) == by_user(there) == by_user(back)


def test_a_canary_takes_its_share_and_moves_nobody_else() -> None:
    before, after = by_user(route(old=100)), by_user(route(old=90, new=10))
    moved = Counter(after[user] for user in USERS if before[user] != after[user])
    assert set(moved) == {"new"}
    assert 900 <= moved["new"] <= 1100


def test_a_changed_weight_moves_only_the_share_that_it_must() -> None:
    before, after = by_user(route(a=60, b=30, c=10)), by_user(route(a=60, b=30, c=40))
    moves = Counter((before[user], after[user]) for user in USERS if before[user] != after[user])
    assert {to for _, to in moves} == {"c"}, "none between targets whose weights stayed"
    needed = len(USERS) * (40 / 130 - 10 / 100)
    assert abs(moves.total() - needed) < 150


def test_back_to_the_old_weights_is_back_to_the_old_targets() -> None:
    before = by_user(route(a=95, b=5))
    by_user(route(a=5, b=95))
    assert by_user(route(a=95, b=5)) == before


def test_equal_factors_move_nobody() -> None:
    assert by_user(route(a=3, b=1)) == by_user(route(a=300, b=100))


def test_weight_0_gets_nothing_and_no_user_moves_when_it_goes() -> None:
    random.seed(7)
    given = route(a=1, b=0)
    assert set(by_user(given).values()) == {"a"}
    assert {choose(given, open_, None) for _ in range(1000)} == {"a"}
    assert by_user(route(a=2, b=1, c=0)) == by_user(route(a=2, b=1))


def test_a_target_that_must_not_answer_gets_nothing_and_the_others_share() -> None:
    random.seed(7)
    given = route(a=1, b=98, c=1)

    def blocked(model_id: str) -> str | None:
        return "Proving: not yet" if model_id == "b" else None

    counts = Counter(choose(given, blocked, user) for user in USERS)
    assert set(counts) == {"a", "c"}
    assert chi_square(Counter({str(name): count for name, count in counts.items()}), {"a": 0.5, "c": 0.5}) < 10.8
    stayed = by_user(given)
    assert all(choose(given, blocked, user) == stayed[user] for user in USERS if stayed[user] != "b")
    assert "b" not in {choose(given, blocked, None) for _ in range(1000)}


def test_nobody_can_answer_every_reason_is_said() -> None:
    given = DesiredRoute(
        name="support",
        targets=(
            DesiredTarget(model_id="a"),
            DesiredTarget(model_id="off", weight=0),
            DesiredTarget(tuning_job="nightly", reason="WaitingForTuningJob", message="it is still training"),
            DesiredTarget(tuning_job="lost", reason="TuningJobNotFound"),
            DesiredTarget(tuning_job="new"),
        ),
    )
    for user in (None, "anna"):
        chosen = choose(given, lambda name: "NoEffect: it does nothing", user)
        assert isinstance(chosen, NotServed)
        assert chosen.why == (
            "a: NoEffect: it does nothing; nightly: it is still training; lost: TuningJobNotFound; new: not there yet"
        )


def test_no_blocked_target_is_taken_for_want_of_another() -> None:
    """Weight 0 is not an answer of last resort either."""
    chosen = choose(route(a=1, b=0), lambda name: "EngineDown" if name == "a" else None, "anna")
    assert isinstance(chosen, NotServed)


@pytest.mark.parametrize("user", ["\ud800", "\0", "ä" * 5000, "💡"])
def test_every_user_name_of_json_has_its_target(user: str) -> None:
    given = route(a=1, b=1)
    assert choose(given, open_, user) == choose(given, open_, user)
