"""The API as charts/llm-tuning-api/README.md has it, on a real node: keys come and go, each may what its role says.

What the tests wait for is the kubelet, which brings a changed Secret into a pod within about a minute.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from devcluster.cluster import KubectlError
from tests.support.api_rights import ALLOWED, DENIED
from tests.support.api_site import NAME, TEST, ApiSite, data_file, wait_until_taken
from tests.support.operator_rights import Asked, may_each
from tests.support.tuning_namespace import tuning_namespace, wait_until

BASE = r"bases.gpt-4\.1-mini"
SMALL = {"gpus": "0", "cpu": "100m", "memory": "256Mi"}
"""What a training may ask for on the devcluster's one node."""
KEYS: dict[str, str] = {}
"""By name; made by the first test."""


@pytest.fixture(scope="module")
def site(cluster: Any) -> Iterator[ApiSite]:
    with tuning_namespace(cluster) as space:
        made = ApiSite(space)
        small = [part for name, value in SMALL.items() for part in ("--set", f"{BASE}.resources.{name}={value}")]
        said = made.type_readme("helm install", "--timeout", "120s", *small)
        assert f"http://{NAME}.{space.name}.svc/v1" in said
        yield made


def test_a_key_that_kubectl_makes_counts_in_running_pods(site: ApiSite) -> None:
    """There is no Secret before, and the pods run already."""
    before = [pod["metadata"]["uid"] for pod in site.pods()]
    KEYS["full"] = site.type_readme("kubectl tuning api-key create")
    for role in ("read", "chat"):
        KEYS[role] = site.api_key("create", role, "--role", role)
    for role, key in KEYS.items():
        with site.client(key) as client:
            print(f"the key {role} counts after {wait_until_taken(client):.0f} s more")
    assert [pod["metadata"]["uid"] for pod in site.pods()] == before
    kept = site.space.kubectl("get", "secret", "llm-tuning-api-keys", "-o", "json")
    assert not any(key in kept for key in KEYS.values())
    listed = site.api_key("list")
    assert [line.split()[:2] for line in listed.splitlines()[1:]] == [
        ["alice", "full"],
        ["chat", "chat"],
        ["read", "read"],
    ]


def test_helm_test_runs_the_sdk_and_leaves_nothing(site: ApiSite) -> None:
    said = site.type_readme("helm test", "--logs")
    assert "Succeeded" in said
    steps = {line for line in said.splitlines() if line.startswith(("ok: ", "failed: "))}
    assert len(steps) == 5, said
    assert all(step.startswith("ok: ") for step in steps), said
    left = site.space.kubectl("get", "secrets,roles,rolebindings,serviceaccounts,pods", "-o", "name")
    assert TEST not in left
    with site.client(KEYS["full"]) as client:
        assert list(client.files.list()) == []


def test_each_role_may_what_it_says(site: ApiSite, tmp_path: Any) -> None:
    file = data_file(tmp_path)
    with site.client(KEYS["full"]) as client:
        made = client.files.create(file=file, purpose="fine-tune")
    with site.client(KEYS["read"]) as client:
        assert client.files.content(made.id).read() == file.read_bytes()
        assert list(client.fine_tuning.jobs.list()) == []
        for ask in (
            lambda: client.files.create(file=file, purpose="fine-tune"),
            lambda: client.files.delete(made.id),
            lambda: client.fine_tuning.jobs.create(model="gpt-4.1-mini", training_file=made.id),
            lambda: client.chat.completions.create(model="gpt-4.1-mini", messages=[]),
        ):
            with pytest.raises(openai.PermissionDeniedError, match="the key read has the role read"):
                ask()
    assert site.space.list("tuningjobs") == []
    refused = pytest.raises(openai.PermissionDeniedError, match="chat and completions, and the list of models")
    with site.client(KEYS["chat"]) as client, refused:
        client.files.list()
    with site.client("sk-llmtuning-nobody-made-this") as client, pytest.raises(openai.AuthenticationError):
        client.files.list()


def test_a_job_is_a_tuning_job_with_the_name_of_its_key(site: ApiSite, tmp_path: Any) -> None:
    with site.client(KEYS["full"]) as client:
        made = client.files.create(file=data_file(tmp_path), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="gpt-4.1-mini", training_file=made.id, suffix="edge")
        assert site.space.get("tuningjobs", job.id) is not None
        site.space.wait(job.id, "Finished")
        assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"
    [body] = site.space.list("tuningjobs")
    assert body["metadata"]["labels"]["openai.tuning.llmtuning.dev/key"] == "alice"
    assert body["spec"]["volume"]["claimName"] == "tuning"


def test_the_pod_sees_uploads_and_models_alone_and_cannot_write_to_models(site: ApiSite) -> None:
    def in_pod(script: str) -> str:
        return site.space.kubectl("exec", f"deployment/{NAME}", "-c", "api", "--", "sh", "-c", script)

    assert in_pod("cd /workspace && ls -d * datasets/*").split() == ["datasets", "datasets/uploads", "models"]
    assert in_pod("ls /workspace/datasets/uploads").split() != []
    with pytest.raises(KubectlError, match="Read-only file system"):
        in_pod("touch /workspace/models/x")
    with pytest.raises(KubectlError, match="Read-only file system"):
        in_pod("touch /x")


def test_its_account_may_what_the_role_says_here_and_nothing_else(site: ApiSite) -> None:
    asked: list[Asked] = [(*one, where) for one in [*ALLOWED, *DENIED] for where in (site.space.name, "default")]
    allowed = may_each(site.space.cluster, site.space.name, asked, account=NAME)
    assert {one for one, may in allowed.items() if may} == {(*one, site.space.name) for one in ALLOWED}


def test_a_key_is_replaced_without_a_restart(site: ApiSite) -> None:
    before = [pod["metadata"]["uid"] for pod in site.pods()]
    KEYS["next"] = site.api_key("create", "next")
    old = KEYS.pop("read")
    with site.client(KEYS["next"]) as client:
        wait_until_taken(client)
    with site.client(old) as client:
        client.files.list()  # both count until the first is revoked
        site.api_key("revoke", "read")
        print(f"a revoked key ends after {wait_until_taken(client, taken=False):.0f} s")
    pods = site.pods()
    assert [pod["metadata"]["uid"] for pod in pods] == before
    assert pods[0]["status"]["containerStatuses"][0]["restartCount"] == 0


def test_two_pods_share_files_and_keys_at_once(site: ApiSite, tmp_path: Any) -> None:
    site.upgrade("replicas=2")
    wait_until(lambda: len(site.pods()) == 2, 60, "two pods")
    first, second = (f"pod/{pod['metadata']['name']}" for pod in site.pods())
    with site.client(KEYS["next"], first, port=8000) as client:
        made = client.files.create(file=data_file(tmp_path, rows=3), purpose="fine-tune")
    with site.client(KEYS["next"], second, port=8000) as client:
        assert client.files.retrieve(made.id).bytes == made.bytes
        client.files.delete(made.id)
    with site.client(KEYS["next"], first, port=8000) as client, pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_no_log_has_a_key(site: ApiSite) -> None:
    said = "".join(site.space.kubectl("logs", pod["metadata"]["name"], "--all-containers") for pod in site.pods())
    assert "POST /v1/files 200" in said
    assert "key=next" in said
    assert "Traceback" not in said
    for key in KEYS.values():
        assert key not in said
    events = json.dumps(site.space.list("events")) + json.dumps(site.space.list("tuningjobs"))
    assert not any(key in events for key in KEYS.values())


def test_the_end_of_the_release_keeps_what_was_made(site: ApiSite) -> None:
    site.type_readme("helm uninstall")
    wait_until(lambda: site.space.list("pods", f"app.kubernetes.io/name={NAME}") == [], 60, "the pods' end")
    assert site.space.get("secret", "llm-tuning-api-keys") is not None
    assert len(site.space.list("tuningjobs")) == 1
