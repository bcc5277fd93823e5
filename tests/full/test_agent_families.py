"""The agent beside a real vLLM on a base that also sees and whose layers are no attention: Qwen3.5.

Trained as the language model alone, in float32; served for text by the whole class, in the one dtype of its CPU kernel.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llm_tuning.models.base import read_config
from llm_tuning.models.families import family_of, published_name
from tests.engine.test_agent import ask
from tests.support.lora_adapters import copy_adapter, make_adapter
from tests.support.serving import PROMPT
from tests.support.serving_pod import serving_pod
from tests.support.vllm_server import require_vllm
from tests.support.zoo import make_base

FAMILY = "qwen3_5"
WEIGHTS = "adapter_model.safetensors"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def with_published_names(adapter: Path, folder: Path, base: Path) -> Path:
    """A copy whose tensors are named as training publishes them."""
    copy_adapter(adapter, folder)
    family = family_of(read_config(base))
    weights = {published_name(name, family): tensor for name, tensor in load_file(adapter / WEIGHTS).items()}
    assert not weights.keys() & load_file(adapter / WEIGHTS).keys()
    save_file(weights, folder / WEIGHTS)
    for name in ("model.json", "parity.json"):
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(value | {"model_id": folder.name}))
    return folder


@pytest.mark.asyncio
@pytest.mark.timeout(1500)
async def test_a_family_is_proven_by_its_published_names_and_refused_by_others(tmp_path: Path) -> None:
    require_vllm()
    claim = tmp_path / "claim"
    base = make_base(FAMILY, claim / "base" / FAMILY)
    old = make_adapter(claim / "models" / "ft_old", base, b_scale=0.3)
    with_published_names(old, claim / "models" / "ft_new", base)
    async with serving_pod(tmp_path, f"base/{FAMILY}", {"new": "ft_new", "old": "ft_old"}) as pod:
        await pod.until(pod.settled, seconds=1200)
        print(pod.adapter("ft_new"))
        assert pod.adapter("ft_new").reason == "Effective"
        assert pod.adapter("ft_old").reason == "TargetModulesMismatch"
        assert "model.layers... to model.language_model.layers..." in pod.adapter("ft_old").message
        assert (await ask(pod, "new")).status == 200
        refused = await ask(pod, "old")
        assert (refused.status, "it would load the adapter and change nothing" in refused.error) == (503, True)
        seen = [{"role": "user", "content": [IMAGE, {"type": "text", "text": PROMPT[0]["content"]}]}]
        answer = await ask(pod, "new", messages=seen)
        assert (answer.status, "At most 0 image" in answer.error) == (400, True)
