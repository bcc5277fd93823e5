"""Certificates by cert-manager: for the names that pods use, in the Secret that is mounted, and no right to Secrets."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.api.inference_service import ApiKeySecretRef
from llm_tuning.api.kube import SecretRef
from llm_tuning.errors import InputError
from tests.support.chart import NAMESPACE, Chart
from tuning_operator.reports.tls import SECRET_NAME, serving_names
from tuning_operator.reports.tls_folder import NAMES

BY_CERT_MANAGER = {"certManager": {"enabled": True}}


def by_name(chart: Chart, kind: str, **values: Any) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in chart.objects(kind, **values)}


def test_the_certificate_is_for_the_names_that_pods_are_given(chart: Chart) -> None:
    certificate = by_name(chart, "Certificate", tls=BY_CERT_MANAGER)["llm-tuning-operator"]
    assert certificate["spec"]["dnsNames"] == serving_names(NAMESPACE)
    assert set(certificate["spec"]["usages"]) == {"digital signature", "server auth"}


def test_each_issuer_has_its_secret_and_each_certificate_its_issuer(chart: Chart) -> None:
    certificates = by_name(chart, "Certificate", tls=BY_CERT_MANAGER)
    issuers = by_name(chart, "Issuer", tls=BY_CERT_MANAGER)
    assert {each["spec"]["issuerRef"]["name"] for each in certificates.values()} == set(issuers)
    [ca] = [each["spec"]["ca"] for each in issuers.values() if "ca" in each["spec"]]
    authority = certificates["llm-tuning-operator-authority"]["spec"]
    assert ca["secretName"] == authority["secretName"]
    assert authority["isCA"] is True
    assert authority["privateKey"]["rotationPolicy"] == "Never", "running pods trust it"


def test_an_issuer_of_ones_own_is_used_and_none_is_made(chart: Chart) -> None:
    reference = {"name": "company", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    values = {"tls": {"certManager": {"enabled": True, "issuerRef": reference}}}
    assert by_name(chart, "Issuer", **values) == {}
    [certificate] = by_name(chart, "Certificate", **values).values()
    assert certificate["spec"]["issuerRef"] == reference


def test_the_operator_and_the_test_have_that_secret_mounted(chart: Chart) -> None:
    objects = chart.objects(tls=BY_CERT_MANAGER)
    [secret] = {
        each["spec"]["secretName"]
        for each in objects
        if each["metadata"]["name"] == "llm-tuning-operator" and each["kind"] == "Certificate"
    }
    [pod] = [each["spec"]["template"]["spec"] for each in objects if each["kind"] == "Deployment"]
    [container] = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["tls"]["secret"] == {"secretName": secret}
    assert mounts["tls"]["mountPath"] == environment["TUNING_OPERATOR_TLS_FOLDER"]
    assert mounts["tls"]["readOnly"] is True
    [test] = [each["spec"] for each in objects if each["kind"] == "Pod"]
    assert test["volumes"][0]["secret"]["secretName"] == secret
    assert test["volumes"][0]["secret"]["items"][0]["key"] in NAMES


@pytest.mark.parametrize("tls", [{}, BY_CERT_MANAGER], ids=str)
def test_no_custom_resource_can_name_a_secret_of_the_operator(chart: Chart, tls: dict[str, Any]) -> None:
    made = {each["spec"]["secretName"] for each in chart.objects("Certificate", tls=tls)}
    for name in made or {SECRET_NAME}:
        for reference in (SecretRef, ApiKeySecretRef):
            with pytest.raises(InputError, match="are the operator's own; give yours another name"):
                reference.parse({"name": name})


def test_without_it_nothing_is_mounted(chart: Chart) -> None:
    [deployment] = chart.objects("Deployment")
    assert "TLS_FOLDER" not in str(deployment)
