"""Three families from a TuningJob to a proven InferenceService on a real node, with real tokenizers and templates.

One is plain, one has fused layers and a long rope, and one also sees, with layers that are no attention: trained as
text, published under the names of the whole model, served for text in the one dtype of its kernel.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import VLLM_IMAGE, condition_of, status_of, wait_for
from tests.support.tuning_namespace import (
    CLAIM,
    STAND_IN_IMAGE,
    TRAINER_IMAGE,
    TuningNamespace,
    pod,
    tuning_job,
    tuning_namespace,
)
from tests.support.zoo import make_base

pytestmark = [pytest.mark.alone]

FAMILIES = ("qwen3", "phi3_128k", "qwen3_5")
CONTEXT = {"qwen3": {"maxModelLen": 512}, "qwen3_5": {"maxModelLen": 512}}
"""A long rope is served as trained within the original context alone, which is vLLM's own choice."""
SERVICES = "inferenceservices.tuning.llmtuning.dev"
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Which is larger, {number} or {number + 3}?"},
            {"role": "assistant", "content": f"{number + 3} is larger, by 3."},
        ]
    }
    for number in range(48)
]
TRAINING = {"maxSteps": 8, "batchSize": 16, "learningRate": 1e-2, "maxLength": 256}


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    images = {"trainer": TRAINER_IMAGE, "values": {"images.vllm": VLLM_IMAGE}, "images": (VLLM_IMAGE,)}
    with tuning_namespace(cluster, **images) as namespace:
        namespace.apply(pod("claim", STAND_IN_IMAGE, ["sleep", "infinity"], claim=CLAIM))
        namespace.kubectl("wait", "--for=condition=Ready", "pod/claim", "--timeout=60s")
        rows = "\n".join(map(json.dumps, ROWS))
        write = "import pathlib, sys; pathlib.Path('/workspace/datasets/chats.jsonl').write_text(sys.stdin.read())"
        namespace.kubectl("exec", "-i", "claim", "--", "python", "-c", write, input=rows)
        yield namespace


def copy_base(namespace: TuningNamespace, base: Path) -> None:
    """Copy a base's folder to base/ on the claim: some 60 MB, by the pod that has it mounted."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(base, f"base/{base.name}")
    unpack = (
        "import base64, io, sys, tarfile\n"
        "tarfile.open(fileobj=io.BytesIO(base64.b64decode(sys.stdin.read()))).extractall('/workspace')"
    )
    text = base64.b64encode(packed.getvalue()).decode()
    namespace.kubectl("exec", "-i", "claim", "--", "python", "-c", unpack, input=text)


def ask(namespace: TuningNamespace, service: str, model: str) -> tuple[int, str, str]:
    """Status, X-Model-Id and words of one request from inside the cluster: Qwen's are reasoning until it ends."""
    body = {"model": model, "messages": ROWS[0]["messages"][:1], "max_tokens": 8, "temperature": 0}
    code = f"""
import json, urllib.request
request = urllib.request.Request("http://{service}/v1/chat/completions", {json.dumps(body).encode()!r},
                                 {{"Content-Type": "application/json"}})
answer = urllib.request.urlopen(request, timeout=120)
message = json.load(answer)["choices"][0]["message"]
print(json.dumps([answer.status, answer.headers["X-Model-Id"], message["content"] or message["reasoning"]]))
"""
    status, served, content = json.loads(namespace.kubectl("exec", "claim", "--", "python", "-c", code))
    return status, served, content


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_served_and_proven(space: TuningNamespace, family: str, tmp_path: Path) -> None:
    base, name = make_base(family, tmp_path / family), f"{family.replace('_', '-')}-chat"
    copy_base(space, base)
    shutil.rmtree(base)
    served = {"name": name, "resources": {"gpus": 0, "cpu": "200m", "memory": "5Gi"}, "vllm": CONTEXT.get(family, {})}
    space.apply(
        tuning_job(
            name,
            model={"path": f"base/{family}"},
            dataset="datasets/chats.jsonl",
            training=TRAINING,
            resources={"gpus": 0, "cpu": "1", "memory": "5Gi"},
            serve=served,
        )
    )
    job = space.wait(name, "Finished", seconds=420)
    assert space.conditions(name)["Succeeded"]["status"] == "True", job["status"]
    wait_for(space, name, seconds=420)
    (adapter,) = status_of(space, name)["adapters"]
    print(f"{family}: {adapter}")
    assert (adapter["effective"], adapter["reason"]) == ("True", "Effective")
    assert condition_of(space, name, "AdaptersEffective")[0] == "True"
    status, model_id, content = ask(space, name, name)
    assert (status, model_id) == (200, job["status"]["modelId"])
    assert content
    space.kubectl("delete", SERVICES, name, "--wait")
    space.kubectl(
        "wait", "--for=delete", "pod", "-l", f"tuning.llmtuning.dev/inference-service={name}", "--timeout=200s"
    )
