"""What stands in for what a custom resource leaves out, and that nothing that was given is touched."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.api.inference_service import InferenceServiceSpec
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.errors import InputError
from llm_tuning.pod.contract import INPUT_VARIABLE, PodInput
from llm_tuning.pod.roles import CHECK
from tests.support.operator_objects import SETTINGS, START, jobs_in, make_job, make_observed, make_tuning_job
from tests.support.service_objects import make_service
from tuning_operator.core.cache import DEPLOYMENTS
from tuning_operator.core.defaults import Defaults, with_defaults, with_service_defaults
from tuning_operator.core.settings import Settings
from tuning_operator.inference_service.desire import desire_service
from tuning_operator.inference_service.observed import build_observed_service
from tuning_operator.tuning_job.desire import desire

SELECTOR = {"gpu": "a100"}
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
DEFAULTS = Defaults.parse(
    {
        "tracking": {"uri": "http://mlflow.mlops.svc:5000", "credentialsSecret": {"name": "llm-tuning-mlflow"}},
        "queueName": "everyone",
        "gpu": {"nodeSelector": SELECTOR, "tolerations": [TOLERATION], "runtimeClassName": "nvidia"},
    }
)
GIVING = SETTINGS.model_copy(update={"defaults": DEFAULTS, "gpu_resource": "example.com/gpu"})
OTHER = {"key": "mine", "operator": "Equal", "value": "yes"}


def spec_of(**spec: Any) -> TuningJobSpec:
    return TuningJobSpec.parse(make_tuning_job(**spec)["spec"])


def filled(**spec: Any) -> dict[str, Any]:
    """What differs from the spec as it was given."""
    before, after = spec_of(**spec), with_defaults(spec_of(**spec), DEFAULTS)
    old, new = (each.model_dump(by_alias=True, exclude_none=True) for each in (before, after))
    return {name: value for name, value in new.items() if old.get(name) != value}


def test_a_plain_job_gets_all_of_them() -> None:
    changed = filled()
    assert set(changed) == {"tracking", "queueName", "resources"}
    assert changed["queueName"] == "everyone"
    assert changed["tracking"]["uri"] == "http://mlflow.mlops.svc:5000"
    assert changed["tracking"]["credentialsSecret"] == {"name": "llm-tuning-mlflow"}
    assert changed["resources"]["nodeSelector"] == SELECTOR
    assert changed["resources"]["tolerations"] == [TOLERATION]
    assert changed["resources"]["runtimeClassName"] == "nvidia"


@pytest.mark.parametrize(
    "given",
    [
        {"queueName": "mine"},
        {"tracking": {"uri": "http://mine:5000"}},
        {"resources": {"nodeSelector": {"mine": "yes"}, "tolerations": [OTHER], "runtimeClassName": "mine"}},
        {"resources": {"nodeSelector": {}, "tolerations": [], "runtimeClassName": "mine"}},
    ],
)
def test_what_was_given_stays_as_a_whole(given: dict[str, Any]) -> None:
    [name] = given
    assert name not in filled(**given)


def test_the_default_credentials_never_go_to_another_server() -> None:
    own = with_defaults(spec_of(tracking={"uri": "http://mine:5000"}), DEFAULTS)
    assert own.tracking.credentials_secret is None


def test_own_credentials_go_to_the_default_server() -> None:
    own = with_defaults(spec_of(tracking={"credentialsSecret": {"name": "llm-tuning-team"}}), DEFAULTS)
    assert own.tracking.credentials_secret is not None
    assert own.tracking.credentials_secret.name == "llm-tuning-team"
    assert own.tracking.uri == "http://mlflow.mlops.svc:5000"


def test_no_gpu_no_placement() -> None:
    assert "resources" not in filled(resources={"gpus": 0})


def test_without_defaults_the_very_same_spec_comes_back() -> None:
    job, service = spec_of(), InferenceServiceSpec.parse(make_service()["spec"])
    assert with_defaults(job, Defaults()) is job
    assert with_service_defaults(service, Defaults()) is service


def trainer(settings: Settings = GIVING, **spec: Any) -> dict[str, Any]:
    """The check's Job, which is made first and placed like the trainer."""
    [job] = jobs_in(desire(make_observed(make_tuning_job(**spec)), settings, START))
    return job


def test_they_reach_the_jobs() -> None:
    job = trainer()
    pod = job["spec"]["template"]["spec"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "everyone"
    assert pod["nodeSelector"] == SELECTOR
    assert pod["tolerations"] == [TOLERATION]
    [container] = pod["containers"]
    given = PodInput.model_validate_json(next(e["value"] for e in container["env"] if e["name"] == INPUT_VARIABLE))
    assert given.spec.tracking.uri == "http://mlflow.mlops.svc:5000"


def test_the_same_job_is_built_at_every_pass() -> None:
    assert trainer() == trainer()
    assert trainer(SETTINGS, resources={"gpus": 0}) == trainer(
        GIVING.model_copy(update={"defaults": Defaults()}), resources={"gpus": 0}
    )


def test_a_queued_job_names_the_default_queue() -> None:
    observed = make_observed(jobs=[make_job(CHECK, suspended=True)])
    status = desire(observed, GIVING, START).status
    assert status is not None
    [reconciling] = [c for c in status["conditions"] if c["type"] == "Reconciling"]
    assert "LocalQueue everyone" in reconciling["message"]


def test_replicas_are_placed_and_ask_for_that_resource() -> None:
    observed = build_observed_service(make_service(resources={"gpus": 2}), spec=None, parts={})
    [deployment] = [body for kind, body in desire_service(observed, GIVING, START).create if kind == DEPLOYMENTS]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == SELECTOR
    assert pod["runtimeClassName"] == "nvidia"
    [engine] = [container for container in pod["containers"] if container["name"] == "vllm"]
    assert engine["resources"]["limits"]["example.com/gpu"] == "2"
    assert "nvidia.com/gpu" not in engine["resources"]["limits"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"tracking": {"credentialsSecret": {"name": "llm-tuning-a"}}}, "tracking.credentialsSecret.*needs uri"),
        ({"tracking": {"uri": "http://m", "credentialsSecret": {"name": "db-password"}}}, "credentialsSecret.name"),
        ({"queueName": "Team A"}, "queueName"),
        ({"gpu": {"tolerations": [{"operator": "Equal"}]}}, "without a key the operator must be Exists"),
        ({"gpus": 1}, "gpus.*is not a known field"),
    ],
)
def test_wrong_defaults_are_named(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Defaults.parse(values)
