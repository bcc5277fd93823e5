"""A whole cluster, from `kubectl apply` to a served, proven adapter: what `make demo` runs.

A real one-node Kubernetes is started on this machine (see devcluster/), with a hub in it that has a base model (see
cluster/hub/), and the operator is installed by helm. Three TuningJobs name that base: one with a mistake in its data,
an SFT, and a PPO that starts from the SFT's adapter. An InferenceService then serves both adapters with vLLM, proves
them, and shifts clients from one to the other. At last a script of OpenAI's SDK runs against the fine-tuning API, which
makes its models routes of that service. Every command is shown as it is run. The demo is a check as well: the
first thing that is not as it should be ends it with exit code 1. It needs root, since it makes network namespaces;
elsewhere it says how to use kind.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import stages
from stages import ROOT, STOP_SECONDS, Disappointed, bold, environment, expect, run, run_demo, script, stage

sys.path.insert(0, str(ROOT))
from devcluster.cluster import bin_dir, kubeconfig

CLUSTER = "demo"
NAMESPACE = "tuning-demo"
BASE = Path("base/tiny-python")
REPOSITORY, HUB = "demo/tiny-python", f"http://hub.{NAMESPACE}"
IMAGES = {name: f"localhost/llm-tuning/{name}:dev" for name in ("operator", "trainer", "vllm")}
MISTAKE, SFT, PPO = "help-desk-mistake", "help-desk-sft", "help-desk-ppo"
SERVICE, PORT = "help-desk", 8399
API, API_PORT = "llm-tuning-api", 8398
QUESTION = "What does `shutil.which` do?"
READY_SECONDS = 300.0
USERS = 40
CHAIN_SECONDS = 600.0
"""How long the two jobs may take on the slowest machine."""

WITHOUT_ROOT = """The demo starts a real Kubernetes node, which needs root. Without it, use kind:

  kind create cluster --name llm-tuning
  docker build -t localhost/llm-tuning/operator:dev .
  docker build -t localhost/llm-tuning/trainer:dev -f trainer_image/Dockerfile .
  docker build -t localhost/llm-tuning/vllm:dev -f devcluster/images/vllm/Dockerfile .
  kind load docker-image --name llm-tuning localhost/llm-tuning/{operator,trainer,vllm}:dev
  kubectl apply -f examples/demo/cluster/namespace.yaml
  kubectl apply -k examples/demo/cluster/hub
  helm install llm-tuning charts/llm-tuning --namespace tuning-demo --wait \\
    --set images.operator=localhost/llm-tuning/operator:dev \\
    --set images.trainer=localhost/llm-tuning/trainer:dev \\
    --set images.vllm=localhost/llm-tuning/vllm:dev \\
    --set sources.endpoint=http://hub.tuning-demo

and go on in docs/start-platform.md with "A first TuningJob";

or `make demo-local`, which needs neither root nor a cluster."""


def show() -> None:
    """All stages."""
    os.environ |= environment() | {"PYTHONPATH": str(ROOT)}
    stages.FOLDER.mkdir(exist_ok=True)
    build()
    with cluster():
        load_images()
        publish_the_base()
        install()
        copy_the_data()
        refuse_a_mistake()
        tune()
        look_around()
        serve()
        shift_clients()
        run_the_openai_script()


def build() -> None:
    """What takes long the first time, and is found again the next."""
    stage(
        "Programs and images",
        "The first time: Kubernetes is compiled (about 5 minutes), then the operator's and the trainer's image are "
        "built from their Dockerfiles, and vLLM's (about 6 minutes, mostly PyTorch). The next time all of it is found.",
    )
    run("python -m devcluster build")
    for name in IMAGES:
        run(f"python -m devcluster image build {name}")
    stage("A base model and data", "A small Llama learns Python's documentation: about a minute, once (it is kept).")
    run(f"python {script('make_base_model.py')} {BASE}")
    run(f"python {script('make_datasets.py')} data")


@contextmanager
def cluster() -> Iterator[None]:
    """The node, gone at the end however the demo ends."""
    stage("A Kubernetes node", "API server, kubelet, containerd and the rest, the real ones: half a minute.")
    try:
        run(f"python -m devcluster up --name {CLUSTER}")
        os.environ["KUBECONFIG"] = str(kubeconfig(CLUSTER))
        os.environ["PATH"] = f"{bin_dir()}{os.pathsep}{os.environ['PATH']}"
        yield
    finally:
        run(f"python -m devcluster down --name {CLUSTER}")


def load_images() -> None:
    """No registry: images go straight into the node's containerd."""
    stage(
        "Images into the node", "Those with PyTorch have 6 GB each: seconds, since their layers are linked, not copied."
    )
    for image in IMAGES.values():
        run(f"python -m devcluster load {image} --name {CLUSTER}")


def publish_the_base() -> None:
    """A repository on a hub in the cluster, which has no way out."""
    stage(
        f"A hub that has hf://{REPOSITORY}",
        "It stands for the public one: a small read-only server in a pod. Beside it a claim with nothing on it yet.",
    )
    run(f"kubectl apply -f {script('cluster/namespace.yaml')}")
    run(f"kubectl apply -k {script('cluster/hub')}")
    run(f"kubectl -n {NAMESPACE} wait --for=condition=Ready pod/hub pod/volume --timeout=90s")
    run(f"kubectl -n {NAMESPACE} exec hub -- mkdir demo")
    run(f"kubectl -n {NAMESPACE} cp --no-preserve {BASE} hub:/repositories/{REPOSITORY}")


def install() -> None:
    """The operator, by its chart."""
    stage("Install the operator", "Waiting until it is ready to work: it reads what is there and takes its Lease.")
    run(
        f"helm install llm-tuning {os.path.relpath(ROOT / 'charts/llm-tuning', stages.FOLDER)} --namespace {NAMESPACE} "
        f"--set images.operator={IMAGES['operator']} --set images.trainer={IMAGES['trainer']} "
        f"--set images.vllm={IMAGES['vllm']} --set sources.endpoint={HUB} --wait --timeout 2m"
    )
    run(f"kubectl -n {NAMESPACE} get deployments,tuningjobs")


def copy_the_data() -> None:
    """The rows are ours, and on no hub."""
    stage("Data on the claim", "The data sets are copied to the claim `tuning`. Nobody copies the base to it.")
    run(f"kubectl -n {NAMESPACE} cp --no-preserve data volume:/workspace/datasets")


def refuse_a_mistake() -> None:
    """No trainer starts for bad data."""
    stage("A mistake in the data", "Waiting for the data check, which is to name row 7 before any trainer starts.")
    run(f"kubectl apply -f {script('cluster/mistake.yaml')}")
    run(f"kubectl -n {NAMESPACE} wait --for=condition=Finished tj/{MISTAKE} --timeout=90s")
    run(f"kubectl -n {NAMESPACE} get tj {MISTAKE}")
    valid = _condition(_job(MISTAKE), "DatasetValid")
    print(f"{valid['reason']}: {valid['message']}")
    expect(valid["status"] == "False" and "row" in valid["message"] and "7" in valid["message"], "row 7 is named")
    role = "jsonpath={.items[*].metadata.labels.tuning\\.llmtuning\\.dev/role}"
    pods = f"kubectl -n {NAMESPACE} get pods -l tuning.llmtuning.dev/job={MISTAKE} -o '{role}'"
    expect(sorted(run(pods, quiet=True).split()) == ["check", "fetch"], "and no trainer was started for it")


def tune() -> None:
    """The chain, watched as a person would."""
    stage(
        "SFT, then PPO from its adapter",
        "Applied at once; each names the base by its uri, is checked, and the second waits for the first. "
        "`kubectl get tj -w` shows what goes on:",
    )
    run(f"kubectl apply -f {script('cluster/help-desk.yaml')}")
    _watch_until_finished(SFT, PPO)
    for name in (SFT, PPO):
        job = _job(name)
        succeeded = _condition(job, "Succeeded")
        expect(succeeded["status"] == "True", f"{name} succeeded ({succeeded['message']})")
    sft, ppo = (_job(name)["status"] for name in (SFT, PPO))
    commit = sft["model"]["revision"]
    expect(sft["model"]["path"] == f"sources/hf/{REPOSITORY}/{commit}", f"the base was fetched at commit {commit[:12]}")
    expect(ppo["model"] == sft["model"], "and is the same for both")
    expect(sft["evaluation"]["tunedLoss"] < sft["evaluation"]["baseLoss"] / 2, "SFT halves the loss on held-out rows")
    expect(ppo["startAdapterModelId"] == sft["modelId"], "PPO started from the SFT's adapter")


def look_around() -> None:
    """What the jobs have left."""
    stage("What is left", "Conditions and Events on the object; base, adapter, its report and registry on the claim.")
    run(f"kubectl -n {NAMESPACE} describe tj {SFT}")
    run(f"kubectl -n {NAMESPACE} exec volume -- tune-llm sources list")
    model_id = _job(PPO)["status"]["modelId"]
    run(f"kubectl -n {NAMESPACE} exec volume -- ls models/{model_id}")
    run(f"kubectl -n {NAMESPACE} exec volume -- tune-llm report {model_id}")
    run(f"kubectl -n {NAMESPACE} exec volume -- tune-llm registry list")
    listed = run(f"kubectl -n {NAMESPACE} exec volume -- tune-llm registry list --json", quiet=True)
    registered = {model["model_id"] for model in json.loads(listed)["models"]}
    made = {_job(name)["status"]["modelId"] for name in (SFT, PPO)}
    expect(made <= registered, "both adapters are registered")
    listed = run(f"kubectl -n {NAMESPACE} exec volume -- tune-llm sources list --json", quiet=True)
    [base] = json.loads(listed)["sources"]
    expect(set(base["used_by"]) == made, "one copy of the base was fetched, and both were made of it")


def serve() -> None:
    """Both adapters behind one name, each proven on the running engine."""
    stage(
        "Serve both, proven",
        "vLLM starts (half a minute), its agent loads both adapters and holds what they do against what the training "
        "noted. Ready means that the proof was good:",
    )
    run(f"kubectl apply -f {script('cluster/help-desk-service.yaml')}")
    with _watched("tisvc"):
        _wait(lambda: _condition(_service(), "Ready")["status"] == "True", READY_SECONDS, f"{SERVICE} is Ready")
    for adapter in _service()["status"]["adapters"]:
        print(f"{adapter['modelId']}: {adapter['reason']}: {adapter['message']}")
        expect(adapter["effective"] == "True", f"the adapter of {adapter['tuningJob']} is proven to take effect")


def shift_clients() -> None:
    """A canary by weight and back, on the same engine."""
    stage(
        "A call, a canary, and all clients at once to the other adapter",
        f"{USERS} users ask; each stays with an adapter, and the header X-Model-Id says with which. Then the weights "
        "are changed: nothing is loaded, nothing restarts.",
    )
    sft, ppo = (_job(name)["status"]["modelId"] for name in (SFT, PPO))
    with _forwarded(SERVICE, PORT):
        _wait(lambda: _ask("nobody") is not None, 30, "kubectl port-forward")
        body = json.dumps({"model": SERVICE, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 60})
        run(
            f"curl -s http://127.0.0.1:{PORT}/v1/chat/completions -D - -H 'Content-Type: application/json' "
            f"-d {shlex.quote(body)}"
        )
        before = [_ask(f"user-{number}") for number in range(USERS)]
        print(f"{before.count(sft)} of {USERS} users are with the SFT's adapter, {before.count(ppo)} with the PPO's")
        expect(before.count(sft) + before.count(ppo) == USERS, "every answer came from one of the two")
        expect(before.count(sft) > before.count(ppo) > 0, "and about one in ten from the canary")
        patch = [
            {"op": "replace", "path": "/spec/routes/0/targets/0/weight", "value": 0},
            {"op": "replace", "path": "/spec/routes/0/targets/1/weight", "value": 1},
        ]
        run(f"kubectl -n {NAMESPACE} patch tisvc {SERVICE} --type json -p {shlex.quote(json.dumps(patch))}")
        began = time.monotonic()
        _wait(lambda: {_ask(f"user-{number}") for number in range(8)} == {ppo}, 30, "the new weights")
        expect(True, f"all clients are with the PPO's adapter after {time.monotonic() - began:.1f} s")
        run(f"kubectl -n {NAMESPACE} get tisvc {SERVICE}")
        run(f"kubectl -n {NAMESPACE} get pods -l tuning.llmtuning.dev/inference-service={SERVICE}")


def run_the_openai_script() -> None:
    """The fine-tuning API, and a script that knows OpenAI's SDK alone."""
    stage(
        "A script written for OpenAI, unchanged",
        "It knows OpenAI's SDK alone, and by its environment the fine-tuning API of this namespace: it has a wrong row "
        "refused, trains SFT and then DPO, watches the events, chats with both models, and deletes what it has made. "
        "Its jobs are TuningJobs, its models routes of the service that runs already. A few minutes.",
    )
    key = run(f"kubectl tuning api-key create demo -n {NAMESPACE}", quiet=True).strip()
    run(
        f"helm install {API} {os.path.relpath(ROOT / 'charts/llm-tuning-api', stages.FOLDER)} --namespace {NAMESPACE} "
        f"--set image.name={IMAGES['operator']} -f {script('api-values.yaml')} --wait --timeout 2m"
    )
    url = f"http://127.0.0.1:{API_PORT}/v1"
    os.environ |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": key}
    print(f"\n{bold(f'$ export OPENAI_BASE_URL={url} OPENAI_API_KEY={key[:16]}...')}", flush=True)
    with _forwarded(API, API_PORT):
        run(f"python {script('../openai/script.py')}")
    run(f"kubectl -n {NAMESPACE} get tj")
    jobs = json.loads(run(f"kubectl -n {NAMESPACE} get tj -l openai.tuning.llmtuning.dev/api=true -o json", quiet=True))
    modes = sorted(job["spec"].get("mode", "sft") for job in jobs["items"])
    expect(modes == ["dpo", "sft", "sft"], "its three jobs are TuningJobs, and stay to be looked at")
    routes = [route["name"] for route in _service()["spec"]["routes"]]
    expect(routes == [SERVICE], f"no route of its models is left in {SERVICE}")
    left = run(f"kubectl -n {NAMESPACE} exec volume -- ls datasets/uploads", quiet=True)
    expect("file-" not in left, "and none of its files on the claim")


@contextmanager
def _forwarded(service: str, port: int) -> Iterator[None]:
    """A port of this machine to the service, once it takes connections."""
    command = ["kubectl", "-n", NAMESPACE, "port-forward", f"service/{service}", f"{port}:80"]
    forward = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait(lambda: _takes_connections(port), 30, shlex.join(command))
        yield
    finally:
        forward.terminate()
        with suppress(subprocess.TimeoutExpired):
            forward.wait(STOP_SECONDS)


def _takes_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _ask(user: str) -> str | None:
    """Which adapter answers the user; None where nothing answers."""
    body = {"model": SERVICE, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4, "user": user}
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return str(answer.headers["X-Model-Id"])
    except OSError:
        return None


def _service() -> dict[str, Any]:
    return dict(json.loads(run(f"kubectl -n {NAMESPACE} get tisvc {SERVICE} -o json", quiet=True)))


def _wait(reached: Callable[[], bool], seconds: float, what: str) -> None:
    """Raises Disappointed if it takes longer."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise Disappointed(f"not within {seconds:.0f} s: {what}")
        time.sleep(1)


@contextmanager
def _watched(kind: str) -> Iterator[None]:
    """Show `kubectl get KIND -w` meanwhile."""
    command = ["kubectl", "-n", NAMESPACE, "get", kind, "-w"]
    print(f"\n{bold('$ ' + ' '.join(command))}", flush=True)
    watch = subprocess.Popen(command)
    try:
        yield
        time.sleep(1)  # the last line of the watch
    finally:
        watch.terminate()
        with suppress(subprocess.TimeoutExpired):
            watch.wait(STOP_SECONDS)


def _watch_until_finished(*names: str) -> None:
    """Show `kubectl get tj -w` until all of `names` are Finished; raises Disappointed if they take too long."""

    def finished() -> bool:
        return all(_condition(_job(name), "Finished")["status"] == "True" for name in names)

    with _watched("tj"):
        _wait(finished, CHAIN_SECONDS, f"{', '.join(names)} are Finished")


def _job(name: str) -> dict[str, Any]:
    return dict(json.loads(run(f"kubectl -n {NAMESPACE} get tj {name} -o json", quiet=True)))


def _condition(job: dict[str, Any], kind: str) -> dict[str, Any]:
    """The condition of that type, or one that says that nothing is known."""
    found = [c for c in job.get("status", {}).get("conditions", []) if c["type"] == kind]
    return dict(found[0]) if found else {"status": "Unknown", "reason": "", "message": ""}


if __name__ == "__main__":
    if os.geteuid() != 0:
        print(WITHOUT_ROOT)
        sys.exit(1)
    sys.exit(run_demo(show))
