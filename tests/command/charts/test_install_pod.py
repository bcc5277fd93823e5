"""The pod of `helm test`: restricted, without rights, told the same URL that training pods are."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from tests.support.chart import NAMESPACE, Chart


@pytest.fixture
def pod(chart: Chart) -> dict[str, Any]:
    [found] = chart.objects("Pod", images={"operator": "o", "trainer": "t", "pullSecrets": ["registry"]})
    return found


def test_it_is_a_test_and_goes_when_it_has_passed(pod: dict[str, Any]) -> None:
    annotations = pod["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "test"
    assert set(annotations["helm.sh/hook-delete-policy"].split(",")) == {"before-hook-creation", "hook-succeeded"}
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["activeDeadlineSeconds"] > 60


def test_it_is_restricted_and_has_no_right(pod: dict[str, Any], chart: Chart) -> None:
    [deployment] = chart.objects("Deployment")
    operator = deployment["spec"]["template"]["spec"]
    [container], [operators] = pod["spec"]["containers"], operator["containers"]
    assert pod["spec"]["securityContext"] == operator["securityContext"]
    assert container["securityContext"] == operators["securityContext"]
    assert pod["spec"]["serviceAccountName"] == "default"
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert container["resources"]["limits"]["memory"]


def test_the_service_does_not_take_it_for_the_operator(pod: dict[str, Any], chart: Chart) -> None:
    [service] = chart.objects("Service")
    assert not service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_it_sees_the_certificate_and_no_key(pod: dict[str, Any]) -> None:
    [volume] = pod["spec"]["volumes"]
    assert [item["key"] for item in volume["secret"]["items"]] == ["ca.crt"]


def test_it_runs_what_is_there_with_what_that_reads(pod: dict[str, Any], chart: Chart) -> None:
    [container] = pod["spec"]["containers"]
    assert container["command"][:2] == ["python", "-m"]
    assert find_spec(container["command"][2]) is not None
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    [mount] = container["volumeMounts"]
    assert given["CA_FILE"] == f"{mount['mountPath']}/ca.crt"
    [deployment] = chart.objects("Deployment")
    [operators] = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "TUNING_OPERATOR_PROGRESS_URL", "value": given["PROGRESS_URL"]} in operators["env"]
    assert given["HTTP_URL"] == f"http://llm-tuning-operator.{NAMESPACE}.svc:8080"
