"""The fine-tuning API on a cluster, installed as its README says, with OpenAI's SDK on a forwarded port."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob

from devcluster.cluster import bin_dir
from tests.support.openai_sdk import StrictSyncOpenAI
from tests.support.pages import ROOT, snippets
from tests.support.tuning_namespace import CLAIM, OPERATOR_IMAGE, TuningNamespace, tuning_namespace

CHART = ROOT / "charts" / "llm-tuning-api"
NAME, TEST = "llm-tuning-api", "llm-tuning-api-test"
PODS = f"app.kubernetes.io/name={NAME}"
ENDED = ("succeeded", "failed", "cancelled")
JOB_SECONDS = 240.0
"""Of a training of some steps in a pod, with its data check; about 40 s on two free cores."""
TRAINER = {"gpus": 0, "cpu": "200m", "memory": "4Gi"}
"""What the real trainer may ask for beside others on the devcluster's one node."""
KEY_SECONDS = 150.0
"""Until the kubelet has brought a changed Secret into a pod: its sync takes a minute, and its cache as long at most."""
SUBSTITUTIONS = {
    "registry.example/llm-tuning/operator:0.1.0": OPERATOR_IMAGE,
    "base/qwen3-8b": "base/tiny",
    "claimName=tuning": f"claimName={CLAIM}",
}


@dataclass(frozen=True)
class ApiSite:
    """One installation."""

    space: TuningNamespace

    def type_readme(self, start: str, *more: str) -> str:
        """Type the README's one command that begins so, in this namespace; returns what it says."""
        [command] = [each.text for each in snippets(CHART / "README.md") if each.text.startswith(start)]
        program, *words = [self._mine(word) for word in shlex.split(command.replace("\\\n", " "))]
        if program == "helm":
            return str(self.space.cluster.helm(*words, *more))
        assert (program, *words[:2]) == ("kubectl", "tuning", "api-key")
        return self.api_key(*words[2:], *more)

    def _mine(self, word: str) -> str:
        for theirs, ours in SUBSTITUTIONS.items():
            word = word.replace(theirs, ours)
        return str(ROOT / word) if word.startswith("charts/") else word.replace("team-a", self.space.name)

    def install(self, bases: dict[str, Any], *more: str) -> None:
        """Install as the README says, with settings of bases; `gpt-4.1-mini` is there anyway."""
        self.type_readme("helm install", "--timeout", "120s", "--set-json", f"bases={json.dumps(bases)}", *more)

    def upgrade(self, *sets: str) -> None:
        """Change values, and wait for the pods."""
        given = [part for each in sets for part in ("--set", each)]
        command = ("upgrade", NAME, str(CHART), "-n", self.space.name, "--reset-then-reuse-values", *given)
        self.space.cluster.helm(*command, "--wait", "--timeout", "120s")

    def api_key(self, *arguments: str) -> str:
        """What `kubectl tuning api-key` prints on its standard output."""
        command = [sys.executable, "-m", "llm_tuning.kubectl.main", "api-key", *arguments]
        command += [] if "--namespace" in arguments else ["-n", self.space.name]
        environment = {**os.environ, "KUBECONFIG": str(self.space.cluster.kubeconfig)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def pods(self) -> list[dict[str, Any]]:
        """Those of the API that are not about to go."""
        return [pod for pod in self.space.list("pods", PODS) if "deletionTimestamp" not in pod["metadata"]]

    @contextmanager
    def client(
        self, key: str, target: str = f"service/{NAME}", *, port: int = 80, strict: bool = True
    ) -> Iterator[openai.OpenAI]:
        """OpenAI's SDK on the Service or on one pod (`pod/NAME`, port 8000); `strict`: nothing that its types lack."""
        kind = StrictSyncOpenAI if strict else openai.OpenAI
        with (
            self.base_url(target, port=port) as base_url,
            kind(base_url=base_url, api_key=key, timeout=60, _strict_response_validation=strict) as client,
        ):
            yield client

    @contextmanager
    def base_url(self, target: str = f"service/{NAME}", *, port: int = 80) -> Iterator[str]:
        """The address on loopback that leads there."""
        kubectl = [str(bin_dir() / "kubectl"), "-n", self.space.name, "port-forward", target, f":{port}"]
        environment = {**os.environ, "KUBECONFIG": str(self.space.cluster.kubeconfig)}
        with subprocess.Popen(kubectl, env=environment, stdout=subprocess.PIPE, text=True) as forward:
            try:
                assert forward.stdout is not None
                found = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
                assert found is not None, "kubectl says no port"
                yield f"http://127.0.0.1:{found[1]}/v1"
            finally:
                forward.terminate()


@contextmanager
def api_site(cluster: Any, bases: dict[str, Any], *more: str, **operator: Any) -> Iterator[tuple[ApiSite, str]]:
    """The API in a namespace with an operator, and a key of the role full that the pods know from the start."""
    with tuning_namespace(cluster, **operator) as space:
        site = ApiSite(space)
        key = site.api_key("create", "first")
        site.install(bases, *more)
        yield site, key


def wait_until_taken(client: openai.OpenAI, *, taken: bool = True) -> float:
    """Ask until the client's key is taken, or is not; returns the seconds."""
    began = time.monotonic()
    while True:
        try:
            client.files.list()
            now = True
        except openai.PermissionDeniedError:
            now = True
        except openai.AuthenticationError:
            now = False
        waited = time.monotonic() - began
        if now is taken:
            return waited
        assert waited < KEY_SECONDS, f"the key is {'not ' * taken}taken after {waited:.0f} s"
        time.sleep(1)


def data_file(folder: Path, rows: int = 20) -> Path:
    """A file of chats."""
    path = folder / "train.jsonl"
    line = '{"messages": [{"role": "user", "content": "Ask %d"}, {"role": "assistant", "content": "Answer."}]}\n'
    path.write_text("".join(line % number for number in range(rows)))
    return path


def wait_for(
    client: openai.OpenAI, job_id: str, holds: Callable[[FineTuningJob], bool], seconds: float = JOB_SECONDS
) -> FineTuningJob:
    """Read a job until that holds; fails with what happened to it."""
    deadline = time.monotonic() + seconds
    while not holds(job := client.fine_tuning.jobs.retrieve(job_id)):
        if time.monotonic() > deadline:
            happened = "\n".join(event.message for event in client.fine_tuning.jobs.list_events(job_id))
            raise AssertionError(f"{job_id} is {job.status} after {seconds:.0f} s, {job.error}:\n{happened}")
        time.sleep(0.3)
    return job


def wait_for_end(client: openai.OpenAI, job_id: str, seconds: float = JOB_SECONDS) -> FineTuningJob:
    """Read a job until it has ended."""
    return wait_for(client, job_id, lambda job: job.status in ENDED, seconds)
