"""The devcluster is a Kubernetes: what a pod, a client and an operator may expect of one, and nothing left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from devcluster import launcher
from devcluster.__main__ import main
from devcluster.cleaning import cgroup_folders
from devcluster.cluster import Cluster, KubectlError
from devcluster.paths import state_dir
from tests.support.devcluster import NO_ROOT, cluster_name, own_cluster, remove
from tests.support.toolbox import box, put_toolbox
from tests.support.tuning_namespace import CLAIM, TuningNamespace, claim, wait_until

pytestmark = [
    pytest.mark.skipif(NO_ROOT, reason="a node needs root"),
]

READY_SECONDS = 60.0


@pytest.fixture(scope="module")
def node() -> Iterator[Cluster]:
    """A cluster of these tests alone, with an image of busybox."""
    started = time.monotonic()
    with own_cluster("node", gpus=2, volumes=3) as cluster:
        ready = time.monotonic() - started
        print(f"ready after {ready:.1f} s")
        assert ready < READY_SECONDS
        put_toolbox(cluster)
        yield cluster


@pytest.fixture
def space(node: Cluster) -> Iterator[TuningNamespace]:
    with node.namespace() as name:
        yield TuningNamespace(node, name)


def phase(space: TuningNamespace, name: str) -> str:
    return str((space.get("pod", name) or {}).get("status", {}).get("phase"))


def wait_phase(space: TuningNamespace, name: str, wanted: str) -> None:
    wait_until(
        lambda: phase(space, name) == wanted, 60, lambda: f"{name} {wanted}: {space.kubectl('describe', 'pod', name)}"
    )


def test_a_job_with_a_claim_and_a_memory_limit(space: TuningNamespace) -> None:
    space.apply(claim(CLAIM))
    script = (
        "busybox id -u; echo kept > /workspace/file && busybox ls -ln /workspace/file; echo said > /dev/termination-log"
    )
    template = box("unused", script, limits={"memory": "64Mi", "cpu": "100m"}, with_claim=True)
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "job"},
        "spec": {"template": {"spec": template["spec"]}},
    }
    space.apply(job)
    space.kubectl("wait", "--for=condition=Complete", "job/job", "--timeout=60s")
    assert "65532" in space.kubectl("logs", "job/job")
    [ended] = space.list("pods", "job-name=job")
    assert ended["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == "said\n"
    assert ended["status"]["podIP"].startswith("10.244.")


def test_what_needs_too_much_memory_is_ended(space: TuningNamespace) -> None:
    space.apply(box("greedy", "busybox dd if=/dev/zero of=/dev/null bs=512M", limits={"memory": "32Mi"}))
    wait_phase(space, "greedy", "Failed")
    state = (space.get("pod", "greedy") or {})["status"]["containerStatuses"][0]["state"]["terminated"]
    assert state["reason"] == "OOMKilled"


def test_services_have_names_and_exec_and_port_forward_work(space: TuningNamespace, node: Cluster) -> None:
    server = box("server", "echo hello > /www/index.html; busybox httpd -f -p 8000 -h /www")
    server["spec"]["volumes"] = [{"name": "www", "emptyDir": {}}]
    server["spec"]["containers"][0]["volumeMounts"] = [{"name": "www", "mountPath": "/www"}]
    server["metadata"]["labels"] = {"app": "server"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "greeter"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    space.apply(server, service)
    wait_phase(space, "server", "Running")
    name = f"greeter.{space.name}.svc.cluster.local"
    ask = f"for i in 1 2 3 4 5 6 7 8 9; do busybox wget -q -O - http://{name}/ && exit 0; busybox sleep 1; done; exit 1"
    space.apply(box("client", ask))
    wait_phase(space, "client", "Succeeded")
    assert space.kubectl("logs", "client") == "hello\n"
    assert space.kubectl("exec", "server", "--", "/bin/busybox", "cat", "/www/index.html") == "hello\n"
    command = [
        str(node.plan.programs / "kubectl"),
        "-n",
        space.name,
        "port-forward",
        "--address=127.0.0.1",
        "pod/server",
        ":8000",
    ]
    forward = subprocess.Popen(
        command, env={**os.environ, "KUBECONFIG": str(node.kubeconfig)}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert forward.stdout is not None
        port = forward.stdout.readline().split("127.0.0.1:")[1].split()[0]
        shown = subprocess.run(
            ["curl", "-s", "--noproxy", "*", f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True
        )
        assert shown.stdout == "hello\n"
    finally:
        forward.terminate()
        forward.wait(10)


def test_a_projected_token_is_verified_by_the_published_keys(space: TuningNamespace, node: Cluster) -> None:
    made = box("token", "busybox cat /token/token")
    source = {"serviceAccountToken": {"path": "token", "audience": "tests", "expirationSeconds": 600}}
    made["spec"]["volumes"] = [{"name": "token", "projected": {"sources": [source]}}]
    made["spec"]["containers"][0]["volumeMounts"] = [{"name": "token", "mountPath": "/token"}]
    space.apply(made)
    wait_phase(space, "token", "Succeeded")
    token = space.kubectl("logs", "token")
    keys = jwt.PyJWKSet.from_dict(json.loads(node.kubectl("get", "--raw", "/openid/v1/jwks")))
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key.key, algorithms=["RS256"], audience="tests")
    assert claims["kubernetes.io"]["pod"]["name"] == "token"


def test_pod_security_is_enforced(space: TuningNamespace) -> None:
    made = box("root", "busybox id")
    del made["spec"]["securityContext"]
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        space.apply(made)


def test_rbac_is_enforced(space: TuningNamespace) -> None:
    account = f"system:serviceaccount:{space.name}:default"
    with pytest.raises(KubectlError, match="forbidden"):
        space.kubectl("get", "pods", f"--as={account}")


def test_pretended_gpus_are_scheduled(space: TuningNamespace) -> None:
    space.apply(
        box("two", "busybox sleep 60", limits={"nvidia.com/gpu": "2"}),
        box("many", "busybox true", limits={"nvidia.com/gpu": "99"}),
    )
    wait_phase(space, "two", "Running")
    condition = (space.get("pod", "many") or {})["status"]["conditions"][0]
    assert "Insufficient nvidia.com/gpu" in condition["message"]


def test_a_released_volume_is_wiped_and_offered_again(node: Cluster) -> None:
    for number in range(4):  # of three volumes
        with node.namespace() as name:
            space = TuningNamespace(node, name)
            space.apply(claim(CLAIM), box("user", "busybox ls /workspace; echo x > /workspace/left", with_claim=True))
            wait_phase(space, "user", "Succeeded")
            assert space.kubectl("logs", "user") == "", f"round {number} found files of an earlier one"


def test_two_at_once_and_nothing_left_of_one_that_was_killed(node: Cluster) -> None:
    second_name = cluster_name("second")
    launcher.up(second_name, volumes=1)
    second = Cluster(second_name)
    assert second.plan.node_address != node.plan.node_address
    assert "node" in second.kubectl("get", "nodes", "-o", "name")
    os.kill(int((state_dir(second_name) / "launcher.pid").read_text()), signal.SIGKILL)
    wait_until(lambda: not (state_dir(second_name) / "launcher.pid").exists(), 40, "the janitor")
    assert_nothing_left(second)
    remove(second_name)
    assert "node" in node.kubectl("get", "nodes", "-o", "name")


def test_nothing_left_after_down() -> None:
    name = cluster_name("third")
    command = [sys.executable, "-m", "devcluster"]
    root = Path(__file__).resolve().parents[3]
    subprocess.run([*command, "up", "--name", name], cwd=root, check=True, stdout=subprocess.DEVNULL)
    cluster = Cluster(name)
    subprocess.run([*command, "down", "--name", name], cwd=root, check=True)
    assert_nothing_left(cluster)
    remove(name)


def assert_nothing_left(cluster: Cluster) -> None:
    """No process, cgroup, network interface or mount of the cluster."""
    state = str(cluster.plan.state)
    processes = [path for path in Path("/proc").glob("[0-9]*/cmdline") if state in _text(path)]
    assert processes == [], [_text(path) for path in processes]
    assert cgroup_folders(cluster.plan.cgroup) == []
    cable = f"devcl{cluster.plan.node_address.split('.')[2]}"
    assert cable not in subprocess.check_output(["ip", "-o", "link"], text=True)
    assert state not in Path("/proc/self/mounts").read_text()


def _text(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def test_without_root_it_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(launcher.ClusterError, match="kind"):
        launcher.up("nobody")


def test_a_name_that_does_not_run_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down", "--name", "nobody"]) == 0
    assert "no cluster nobody runs here; running: " in capsys.readouterr().err
    assert main(["load", "localhost/llm-tuning/operator:dev", "--name", "nobody"]) == 64
    assert "error: cluster nobody is not up" in capsys.readouterr().err


def test_an_image_that_is_not_there_is_told(node: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "localhost/llm-tuning/nothing:dev", "--name", node.name]) == 64
    assert "error: there is no image localhost/llm-tuning/nothing:dev" in capsys.readouterr().err
