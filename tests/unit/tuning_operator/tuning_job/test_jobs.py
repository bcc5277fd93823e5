"""A TuningJob in, its Jobs out, as YAML pairs: `data/input/X.yaml` gives `data/output/X.yaml`.

The operator of these pairs sets everything that it can set. After a wanted change: run this file with
REWRITE_EXPECTED=1 in the environment and read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_tuning.pod.contract import ROOT, PodInput
from llm_tuning.pod.roles import CHECK, FETCH, REPORT, ROLES, TRAIN
from tests.support.operator_objects import SETTINGS, Raw, make_observed, make_status, make_tuning_job
from tuning_operator.core.settings import Settings
from tuning_operator.pods.template import threads
from tuning_operator.tuning_job.job import build_job, model_id
from tuning_operator.tuning_job.stage import JobStage
from tuning_operator.tuning_job.stages import STAGES

DATA = Path(__file__).resolve().parents[1] / "data"
REWRITE = "REWRITE_EXPECTED"
"""Environment variable that writes the expected files anew."""
FULL = Settings(
    namespace="llm-tuning",
    operator_image="operator:1",
    trainer_image="trainer:1",
    image_pull_policy="Always",
    image_pull_secrets=("registry",),
    progress_url="https://llm-tuning-operator.llm-tuning.svc:8443",
    ca_pem="PEM",
    check_cpu="250m",
    check_memory="512Mi",
)


def build(role: str, raw: Raw | None = None, settings: Settings = SETTINGS, start: str | None = None) -> Raw:
    raw = raw if raw is not None else make_tuning_job()
    if role == FETCH:
        raw = {**raw, "spec": {**raw["spec"], "model": {"uri": "hf://owner/tiny@main"}}}
    observed = make_observed(raw)
    assert observed.spec is not None, observed.problems
    (stage,) = (stage for stage in STAGES if isinstance(stage, JobStage) and stage.role.name == role)
    parts = stage.parts(observed, observed.spec, settings)
    return build_job(observed, observed.spec, settings, role=stage.role, parts=parts, start_model_id=start)


def pod_of(job: Raw) -> dict[str, Any]:
    return dict(job["spec"]["template"]["spec"])


def container_of(job: Raw) -> dict[str, Any]:
    (container,) = pod_of(job)["containers"]
    return dict(container)


def environment_of(job: Raw) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container_of(job)["env"]}


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_a_tuning_job_gives_these_jobs(name: str) -> None:
    raw = yaml.safe_load((DATA / "input" / f"{name}.yaml").read_text())
    roles = [role for role in ROLES if role != FETCH]  # that is test_fetch's
    made = [build(role, raw, FULL if name == "everything" else SETTINGS, "ft_sft_start") for role in roles]
    path = DATA / "output" / f"{name}.yaml"
    if os.environ.get(REWRITE):
        path.write_text(yaml.dump_all(made, Dumper=_NoAliases, sort_keys=False, width=120))
    assert made == list(yaml.safe_load_all(path.read_text()))


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


# --- what holds for every pod ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_every_pod_fits_the_restricted_profile_and_has_no_token_for_the_api(role: str) -> None:
    raw = yaml.safe_load((DATA / "input" / "everything.yaml").read_text())
    pod = pod_of(build(role, raw, FULL))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False
    for field in ("hostNetwork", "hostPID", "hostIPC", "serviceAccountName"):
        assert field not in pod
    allowed = {"persistentVolumeClaim", "emptyDir", "configMap", "projected", "secret"}
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= allowed


@pytest.mark.parametrize("role", ROLES)
def test_a_cluster_that_assigns_users_finds_none_in_the_pod(role: str) -> None:
    ours = pod_of(build(role, make_tuning_job()))
    assigned = pod_of(build(role, make_tuning_job(), SETTINGS.model_copy(update={"cluster_assigns_user": True})))
    user = {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}
    assert ours["securityContext"] == assigned["securityContext"] | user
    assert assigned["securityContext"]["runAsNonRoot"] is True
    assert not user.keys() & assigned["securityContext"].keys()


@pytest.mark.parametrize("role", ROLES)
def test_every_job_is_its_tuning_jobs_and_kueues_to_suspend(role: str) -> None:
    job = build(role, make_tuning_job(queueName="team-a"))
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("TuningJob", "faq", True)
    assert owner["blockOwnerDeletion"] is False
    assert job["metadata"]["name"] == f"faq-{role}"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert "suspend" not in job["spec"]


@pytest.mark.parametrize("role", ROLES)
def test_bad_input_is_never_retried_and_disruptions_cost_nothing(role: str) -> None:
    spec = build(role, make_tuning_job(retries=7))["spec"]
    assert spec["backoffLimit"] == 7
    assert spec["podReplacementPolicy"] == "Failed"
    refuse, ignore = spec["podFailurePolicy"]["rules"]
    assert refuse["action"] == "FailJob"
    assert refuse["onExitCodes"] == {"containerName": ROLES[role].container, "operator": "In", "values": [64]}
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("role", ROLES)
def test_every_pod_has_the_same_place(role: str) -> None:
    placement = {"nodeSelector": {"gpu": "a"}, "priorityClassName": "high", "tolerations": [{"operator": "Exists"}]}
    pod = pod_of(build(role, make_tuning_job(resources=placement)))
    assert pod["nodeSelector"] == {"gpu": "a"}
    assert pod["priorityClassName"] == "high"
    assert pod["tolerations"] == [{"operator": "Exists"}]


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("role", ROLES)
def test_only_the_pod_that_has_gpus_gets_the_runtime_class(role: str, gpus: int) -> None:
    pod = pod_of(build(role, make_tuning_job(resources={"gpus": gpus, "runtimeClassName": "nvidia"})))
    assert pod.get("runtimeClassName") == ("nvidia" if role == TRAIN and gpus else None)


@pytest.mark.parametrize("role", [CHECK, TRAIN, REPORT])
def test_every_pod_knows_what_to_do_and_has_the_claim(role: str) -> None:
    job = build(role, start="ft_sft_start")
    assert environment_of(job)["HF_HUB_OFFLINE"] == "1"
    given = PodInput.model_validate_json(environment_of(job)["LLM_TUNING_POD"])
    assert (given.start_model_id, given.gpus, given.spec.mode) == ("ft_sft_start", 1, "sft")
    assert container_of(job)["command"] == ["python", "-m", "llm_tuning.pod", role]
    mounts = {mount["mountPath"]: mount for mount in container_of(job)["volumeMounts"]}
    assert "readOnly" not in mounts[str(ROOT)]
    assert pod_of(job)["volumes"][0]["persistentVolumeClaim"] == {"claimName": "tuning"}


def test_a_secret_is_mounted_and_never_the_containers_environment() -> None:
    """Its keys would decide what the interpreter runs."""
    trainer = build(TRAIN, yaml.safe_load((DATA / "input" / "everything.yaml").read_text()), FULL)
    assert "envFrom" not in container_of(trainer)
    assert "secretKeyRef" not in str(pod_of(trainer))
    assert {"name": "credentials", "secret": {"secretName": "llm-tuning-mlflow"}} in pod_of(trainer)["volumes"]
    folder = environment_of(trainer)["LLM_TUNING_CREDENTIALS"]
    (mount,) = [mount for mount in container_of(trainer)["volumeMounts"] if mount["name"] == "credentials"]
    assert (mount["mountPath"], mount["readOnly"]) == (folder, True)


def test_only_the_trainer_has_gpus_secrets_and_a_place_to_report_to() -> None:
    raw = yaml.safe_load((DATA / "input" / "everything.yaml").read_text())
    for role in (CHECK, REPORT):
        job = build(role, raw, FULL)
        assert "nvidia.com/gpu" not in str(container_of(job)["resources"])
        assert "secretName" not in str(pod_of(job)["volumes"])
        assert "serviceAccountToken" not in str(pod_of(job)["volumes"])
        assert "LLM_TUNING_REQUIRE_GPU" not in environment_of(job)
        assert "annotations" not in job["spec"]["template"]["metadata"]


def test_a_dataset_in_a_config_map_is_one_read_only_file_and_not_needed_for_the_report() -> None:
    raw = make_tuning_job(dataset={"configMap": {"name": "rows", "key": "faq.json"}})
    for role in (CHECK, TRAIN):
        (mount,) = [m for m in container_of(build(role, raw))["volumeMounts"] if m["name"] == "dataset"]
        assert mount == {"name": "dataset", "mountPath": "/dataset", "readOnly": True}
    assert "configMap" not in str(pod_of(build(REPORT, raw))["volumes"])


# --- the trainer -----------------------------------------------------------------------------------------------------


def test_the_token_names_this_tuning_job_alone() -> None:
    job = build(TRAIN, settings=FULL)
    (volume,) = [v for v in pod_of(job)["volumes"] if v["name"] == "reporting"]
    token, authority = volume["projected"]["sources"]
    audience = "tuningjob.tuning.llmtuning.dev/team/faq/11111111-2222-3333-4444-555555555555"
    assert token["serviceAccountToken"]["audience"] == audience
    (item,) = authority["downwardAPI"]["items"]
    assert "tuning.llmtuning.dev/progress-ca" in item["fieldRef"]["fieldPath"]
    assert job["spec"]["template"]["metadata"]["annotations"] == {"tuning.llmtuning.dev/progress-ca": "PEM"}
    url = environment_of(job)["KUBEFLOW_TRAINER_SERVER_URL"]
    assert url == "https://llm-tuning-operator.llm-tuning.svc:8443/v1/namespaces/team/tuningjobs/faq/status"


@pytest.mark.parametrize("gpus", [1, 2])
def test_the_pod_leaves_it_to_the_process_how_torch_and_cuda_are_set(gpus: int) -> None:
    """`llm_tuning.run` sets these, so that one machine has them as well; what the pod set would win."""
    names = environment_of(build(TRAIN, make_tuning_job(resources={"gpus": gpus}))).keys()
    assert [name for name in names if name.startswith(("PYTORCH", "CUDA", "NVIDIA", "NCCL"))] == []


def test_without_a_progress_server_there_is_no_token() -> None:
    assert "projected" not in str(pod_of(build(TRAIN)))


@pytest.mark.parametrize(
    ("gpus", "fallback", "required"), [(1, False, True), (1, True, False), (0, False, False), (0, True, False)]
)
def test_missing_cuda_is_an_error_where_gpus_were_asked_for(gpus: int, fallback: bool, required: bool) -> None:
    settings = Settings(namespace="n", operator_image="o", trainer_image="t", allow_cpu_fallback=fallback)
    job = build(TRAIN, make_tuning_job(resources={"gpus": gpus}), settings)
    assert (environment_of(job).get("LLM_TUNING_REQUIRE_GPU") == "1") is required
    assert ("nvidia.com/gpu" in container_of(job)["resources"]["limits"]) is (gpus > 0)


@pytest.mark.parametrize(
    ("gpus", "nodes", "memory"), [(0, 1, False), (1, 1, False), (2, 1, True), (1, 2, True), (0, 2, False)]
)
def test_pods_of_a_run_with_several_gpus_have_shared_memory(gpus: int, nodes: int, memory: bool) -> None:
    job = build(TRAIN, make_tuning_job(resources={"gpus": gpus, "nodes": nodes}))
    assert ("/dev/shm" in str(container_of(job)["volumeMounts"])) is memory


@pytest.mark.parametrize(
    ("cpu", "gpus", "each"), [("2", 0, "2"), ("500m", 1, "1"), ("2.5", 1, "3"), ("8", 4, "2"), ("1", 2, "1")]
)
def test_threads_are_shared_among_the_processes(cpu: str, gpus: int, each: str) -> None:
    job = build(TRAIN, make_tuning_job(resources={"cpu": cpu, "gpus": gpus}))
    assert environment_of(job)["OMP_NUM_THREADS"] == each


@pytest.mark.parametrize(("cpu", "count"), [("1", 1), ("100m", 1), ("1001m", 2), ("0.25", 1), ("3.1", 4)])
def test_whole_threads(cpu: str, count: int) -> None:
    assert threads(cpu) == count


# --- names -----------------------------------------------------------------------------------------------------------


def id_of(raw: Raw) -> str:
    observed = make_observed(raw)
    assert observed.spec is not None
    return model_id(observed, observed.spec)


def test_the_model_id_follows_from_the_object_and_differs_for_a_namesake() -> None:
    assert id_of(make_tuning_job()) == id_of(make_tuning_job()) == "ft_sft_tiny_1767323045_666ff6"
    assert id_of(make_tuning_job(uid="another")) != id_of(make_tuning_job())


def test_a_recorded_model_id_stays_whatever_a_newer_operator_would_call_it() -> None:
    raw = make_tuning_job(status=make_status() | {"modelId": "as_it_was"})
    assert id_of(raw) == "as_it_was"
    given = PodInput.model_validate_json(environment_of(build(TRAIN, raw))["LLM_TUNING_POD"])
    assert given.model_id == "as_it_was"


@pytest.mark.parametrize("path", ["base/Qwen 3+x", "ä", "b" * 500, "base/.hidden"])
def test_any_base_gives_a_model_id_that_is_allowed(path: str) -> None:
    raw = make_tuning_job(model={"path": path})
    given = PodInput.model_validate_json(environment_of(build(CHECK, raw))["LLM_TUNING_POD"])
    assert given.model_id == id_of(raw)


def test_builders_change_nothing_and_repeat_themselves() -> None:
    raw = make_tuning_job(resources={"nodeSelector": {"a": "b"}})
    before = str(raw)
    for role in ROLES:
        assert build(role, raw, FULL) == build(role, raw, FULL)
    assert str(raw) == before
