"""What operator and agents tell each other: lenient across versions, short, and no word of a body in an error."""

from __future__ import annotations

import json

import pytest

from llm_tuning.agent.contract import (
    REPORTED_CHARACTERS,
    AdapterReport,
    DesiredRoutes,
    Report,
    ServeInput,
    parse_desired,
    parse_report,
)
from llm_tuning.api.conditions import AdapterReason
from llm_tuning.api.inference_service import VllmSpec
from llm_tuning.errors import InputError
from tests.unit.llm_tuning.agent.conftest import DesiredTarget, desire


def test_desired_goes_there_and_back() -> None:
    waiting = DesiredTarget(tuning_job="nightly", reason="WaitingForTuningJob", message="it is still training")
    desired = desire({"support": {"ft_a": 90, "ft_b": 10}, "faq": [waiting]}, rank=32)
    assert parse_desired(desired.encode()) == desired
    assert parse_desired(desired.encode().encode()).revision == desired.revision
    target = json.loads(desired.encode())["routes"][0]["targets"][0]
    assert target == {"modelId": "ft_a", "weight": 90, "reason": "", "message": ""}


def test_each_adapter_is_wanted_once_and_only_those_that_are_there() -> None:
    waiting = DesiredTarget(tuning_job="nightly")
    desired = desire({"one": {"ft_b": 1, "ft_a": 0}, "two": "ft_b", "three": [waiting]})
    assert desired.model_ids == ["ft_b", "ft_a"]


def test_the_revision_is_of_the_content() -> None:
    one = desire({"support": {"ft_a": 90, "ft_b": 10}})
    assert one.revision == desire({"support": {"ft_a": 90, "ft_b": 10}}).revision
    others = [
        desire({"support": {"ft_a": 10, "ft_b": 90}}),
        desire({"help": {"ft_a": 90, "ft_b": 10}}),
        desire({"support": {"ft_a": 90, "ft_b": 10}}, rank=8),
        DesiredRoutes(),
    ]
    assert len({one.revision, *(other.revision for other in others)}) == 5


def test_what_another_version_says_besides_is_left_out() -> None:
    text = '{"routes":[{"name":"a","targets":[{"modelId":"ft_a","shadow":true}],"new":1}],"other":{}}'
    assert parse_desired(text) == desire({"a": "ft_a"})
    report = parse_report(b'{"engineUp":true,"adapters":[{"modelId":"ft_a","new":[]}],"new":1}')
    assert report == Report(engine_up=True, adapters=(AdapterReport(model_id="ft_a"),))


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"routes":[{"name":"a"}]}', '{"routes":[{"name":"a","targets":[{"modelId":"../../etc"}]}]}', "\ud800"],
    ids=ascii,
)
def test_unreadable_desired_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="desired state"):
        parse_desired(text.encode(errors="surrogatepass"))


def test_negative_weights_are_refused() -> None:
    with pytest.raises(InputError):
        parse_desired('{"routes":[{"name":"a","targets":[{"modelId":"ft_a","weight":-1}]}]}')


def test_a_report_goes_there_and_back() -> None:
    adapter = AdapterReport(
        model_id="ft_a", loaded=True, effective="True", settled=True, reason=AdapterReason.EFFECTIVE, message="it works"
    )
    report = Report(revision="abc", engine_up=True, ready=True, adapters=(adapter,))
    assert parse_report(report.encode().encode()) == report
    assert json.loads(report.encode())["adapters"][0]["modelId"] == "ft_a"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"secret", "body"),
        (b'"secret"', "body"),
        (b'{"engineUp":"secret"}', "engineUp"),
        (b'{"adapters":[{"loaded":true,"reason":"secret"}]}', "adapters.0.modelId"),
        (b'{"adapters":[{"modelId":"a","effective":"secret"}]}', "adapters.0.effective"),
        (json.dumps({"adapters": [{"modelId": "secret"}] * 2049}).encode(), "adapters"),
        (b"\xff\xfe secret", "body"),
    ],
)
def test_a_wrong_report_is_refused_with_its_place_and_no_word_of_it(body: bytes, where: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_report(body)
    assert str(caught.value) == f"{where}: is not what an agent reports"
    assert "secret" not in str(caught.value)


def test_long_messages_are_cut_to_one_short_line() -> None:
    said = AdapterReport(model_id="a", message="no\n  way: " + "x" * 1000).message
    assert len(said) == REPORTED_CHARACTERS
    assert said.startswith("no way: xxx")
    assert said.endswith("x...")
    assert AdapterReport(model_id="a", message="y" * REPORTED_CHARACTERS).message == "y" * REPORTED_CHARACTERS


def test_the_input_of_a_pod_goes_there_and_back() -> None:
    given = ServeInput(model_path="base/tiny", base_name="tiny", gpus=0, vllm=VllmSpec(max_lora_rank=32))
    assert ServeInput.decode(given.encode()) == given
    for text in ("", "{}", "null"):
        with pytest.raises(InputError, match="LLM_TUNING_SERVE"):
            ServeInput.decode(text)
