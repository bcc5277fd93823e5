from __future__ import annotations

import json
import random

import pytest

from llm_tuning.api.tuning_job import Evaluation
from llm_tuning.pod.contract import RESULT_BYTES, CheckResult, PodInput, TrainResult, encode_result, parse_result

ALPHABET = ["a", " ", "\n", "\x00", '"', "\\", "ä", "語", "🧪", "\ud800", "\x7f", "e\u0301", "/"]


def made_result(rng: random.Random) -> CheckResult | TrainResult:
    message = "".join(rng.choices(ALPHABET, k=rng.choice([0, 5, 200, 1500, 2040, 5000])))
    if rng.random() < 0.5:
        return CheckResult(ok=rng.random() < 0.5, reason="DatasetInvalid", message=message)
    return TrainResult(
        ok=True,
        reason="Trained",
        message=message,
        model_id="m" * rng.choice([1, 128]),
        adapter_path="models/" + "m" * 128,
        mlflow_run_id="".join(rng.choices(ALPHABET[7:9], k=rng.choice([32, 700]))),
        evaluation=Evaluation(base_loss=rng.random(), tuned_loss=rng.random() * 1e300),
        held_out_rows=rng.randrange(10**9),
        registered=True,
    )


def test_a_result_is_never_longer_than_its_bound_and_always_read_again() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        result = made_result(rng)
        text = encode_result(result)
        assert len(text.encode()) <= RESULT_BYTES
        json.loads(text)
        again = parse_result(text, type(result))
        assert again is not None
        assert (again.ok, again.reason) == (result.ok, result.reason)
        kept = again.message.removesuffix("...")
        assert result.message.startswith(kept.rstrip())


def test_a_message_is_cut_no_more_than_it_must() -> None:
    for character in ("a", "語", "🧪", '"'):
        size = len(encode_result(CheckResult(ok=True, reason="DatasetValid", message=character * 5000)).encode())
        assert RESULT_BYTES - 4 < size <= RESULT_BYTES


def test_a_short_result_comes_back_whole() -> None:
    result = TrainResult(
        ok=True,
        reason="Trained",
        message="3 steps",
        model_id="m",
        adapter_path="models/m",
        mlflow_run_id="5" * 32,
        evaluation=Evaluation(base_loss=3.0, tuned_loss=2.5),
        held_out_rows=2,
        registered=True,
    )
    assert parse_result(encode_result(result), TrainResult) == result


def test_a_message_is_one_line() -> None:
    assert CheckResult(ok=False, reason="X", message=" two\n\tlines ").message == "two lines"


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "Traceback (most recent call last):\n  File ...",
        '{"percent":33,"step":1}',
        '{"ok":true,"reason":"Trained"',
        "[]",
        "null",
        "\x00\xff",
        '{"ok":"perhaps","reason":"X"}',
    ],
)
def test_what_is_no_result_is_none(text: str | None) -> None:
    assert parse_result(text, CheckResult) is None
    assert parse_result(text, TrainResult) is None


def test_fields_of_a_newer_version_are_passed_over() -> None:
    text = '{"ok":true,"reason":"Trained","modelId":"m","novel":1,"evaluation":{"baseLoss":2,"novelScore":7}}'
    result = parse_result(text, TrainResult)
    assert result is not None
    assert result.evaluation is not None
    assert result.evaluation.base_loss == 2


def test_the_input_survives_its_way_through_the_environment() -> None:
    values = {
        "model_id": "m",
        "gpus": 2,
        "start_model_id": "earlier",
        "spec": {
            "model": {"path": "base/tiny"},
            "dataset": {"config_map": {"name": "rows", "key": "rows.json"}},
            "volume": {"claim_name": "tuning"},
        },
    }
    given = PodInput.parse(values)
    assert PodInput.model_validate_json(given.encode()) == given
