"""A base and adapters that answer recognisably, on the claim of a namespace, and clients that know who answered."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.lora_adapters import make_adapter
from tests.support.tiny_base import make_base
from tests.support.tuning_namespace import CLAIM, STAND_IN_IMAGE, TuningNamespace, pod, wait_until

VLLM_IMAGE = "localhost/llm-tuning/vllm:dev"
BASE = "served"
PROMPT = [{"role": "user", "content": "What is a tuple?"}]
ANSWER_TOKENS = 8


@dataclass(frozen=True)
class ServedFiles:
    """`folder` is laid out as a claim; `answers` holds, by model_id and for the base, what it says to PROMPT."""

    folder: Path
    answers: dict[str, str]

    @property
    def base(self) -> Path:
        return self.folder / "base" / BASE


def make_files(folder: Path, adapters: dict[str, dict[str, Any]]) -> ServedFiles:
    """A tiny base, and adapters on it with the arguments of `make_adapter`."""
    base = make_base(folder / "base" / BASE)
    answers = {BASE: greedy_answer(base, None)}
    for name, options in adapters.items():
        path = make_adapter(folder / "models" / name, base, **options)
        answers[name] = greedy_answer(base, path)
    return ServedFiles(folder, answers)


def greedy_answer(base: Path, adapter: Path | None) -> str:
    """What transformers and PEFT say to PROMPT; vLLM says the same in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    given = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**given, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    return str(tokenizer.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True))


def put(namespace: TuningNamespace, folder: Path, name: str = "put") -> None:
    """Copy what is in `folder` onto the claim."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    namespace.apply(pod(name, STAND_IN_IMAGE, ["sleep", "600"], claim=CLAIM))
    namespace.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
    unpack = (
        "import base64,io,sys,tarfile; data=io.BytesIO(base64.b64decode(sys.stdin.read()));"
        "tarfile.open(fileobj=data).extractall('/workspace')"
    )
    text = base64.b64encode(packed.getvalue()).decode()
    namespace.kubectl("exec", "-i", name, "--", "python", "-c", unpack, input=text)
    namespace.kubectl("delete", "pod", name, "--wait=false", "--grace-period=0")


def inference_service(name: str, routes: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """On the CPU, with the tiny base; `routes` maps a name to a model_id, or to its list of targets."""
    return {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "model": {"path": f"base/{BASE}"},
            "volume": {"claimName": CLAIM},
            "routes": [
                {"name": route, "targets": [{"modelId": targets}] if isinstance(targets, str) else targets}
                for route, targets in routes.items()
            ],
            "resources": {"gpus": 0, "cpu": "200m", "memory": "4Gi"},
            "vllm": {"maxModelLen": 512},
            **spec,
        },
    }


def status_of(namespace: TuningNamespace, name: str) -> dict[str, Any]:
    return dict((namespace.get("inferenceservices.tuning.llmtuning.dev", name) or {}).get("status") or {})


def condition_of(namespace: TuningNamespace, name: str, kind: str = "Ready") -> tuple[str, str, str]:
    """Status, reason and message."""
    for condition in status_of(namespace, name).get("conditions", []):
        if condition["type"] == kind:
            return condition["status"], condition["reason"], condition["message"]
    return "", "", ""


def wait_for(
    namespace: TuningNamespace,
    name: str,
    *,
    status: str = "True",
    reason: str = "",
    kind: str = "Ready",
    seconds: float = 240,
) -> None:
    """Until the condition is so."""

    def reached() -> bool:
        found = condition_of(namespace, name, kind)
        return found[0] == status and reason in ("", found[1])

    wait_until(reached, seconds, lambda: f"{kind}={status} {reason} of {name}; is {_shown(namespace, name)}")


def _shown(namespace: TuningNamespace, name: str) -> str:
    pods = namespace.kubectl("get", "pods", "-o", "wide")
    return json.dumps(status_of(namespace, name), indent=1) + "\n" + pods
