"""What `launch_llm.sh` decides before it starts vLLM, and which adapters it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.engines.vllm.adapter import inspect_adapter
from llm_tuning.engines.vllm.command import PLAIN_TEMPLATE
from llm_tuning.engines.vllm.install import Vllm
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.base import inspect_base
from llm_tuning.serving.launch import serve
from llm_tuning.serving.plan import ServePlan, plan_serving
from tests.support.lora_adapters import copy_adapter
from tests.support.plain_base import make_plain_adapter
from tests.support.vllm_server import VLLM_PYTHON, free_port

CPU_BUILD = Vllm(str(VLLM_PYTHON), cpu_build=True)
CUDA_BUILD = Vllm("/opt/vllm/bin/python", cpu_build=False)
SHORT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A rank-24 adapter of the base, trained with another chat template than the base's."""
    folder = tmp_path_factory.mktemp("models") / "ft_sft_tiny"
    return make_plain_adapter(folder, tiny_base, rank=24, chat_template=SHORT_TEMPLATE)


def plan(
    base: Path,
    adapter: Path | None = None,
    *,
    gpu_id: str = "cpu",
    vllm: Vllm = CPU_BUILD,
    gpus: int | None = 0,
    **environment: str,
) -> ServePlan:
    lora = str(adapter) if adapter else None
    return plan_serving(str(free_port()), gpu_id, str(base), lora, environment=environment, vllm=vllm, gpus=gpus)


def value_of(plan: ServePlan, flag: str) -> str | None:
    return plan.command[plan.command.index(flag) + 1] if flag in plan.command else None


def with_pickle(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def without_config(adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()


def without_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def truncated(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"\x10")


def without_manifest(adapter: Path) -> None:
    (adapter / "model.json").unlink()


def changing(file: str, **values: object) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        path = adapter / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def with_another_base_in_its_probes(adapter: Path) -> None:
    changing("model.json", base=None)(adapter)
    changing("parity.json", base_weight_hash="f" * 64)(adapter)


BAD_ADAPTERS = [
    (with_pickle, "pickled weights (adapter_model.bin)"),
    (without_config, "has no adapter_config.json"),
    (without_weights, "has no adapter_model.safetensors"),
    (truncated, "cannot be read"),
    (without_manifest, "has no model.json, so it is not whole"),
    (changing("adapter_config.json", use_dora=True), "uses use_dora"),
    (changing("adapter_config.json", bias="all"), "uses bias"),
    (changing("adapter_config.json", modules_to_save=["lm_head"]), "uses modules_to_save"),
    (
        changing("adapter_config.json", init_lora_weights="pissa_niter_4"),
        "began with init_lora_weights='pissa_niter_4'",
    ),
    (changing("adapter_config.json", alora_invocation_tokens=[1]), "uses alora_invocation_tokens"),
    (changing("adapter_config.json", layer_replication=[[0, 1]]), "uses layer_replication"),
    (changing("adapter_config.json", peft_type="IA3"), "serves LoRA only"),
    (changing("adapter_config.json", r=0), "r must be a whole number from 1 on, got 0"),
    (changing("adapter_config.json", r=513), "rank 513, and vLLM serves at most 512"),
    (changing("model.json", base={"weight_hash": "f" * 64, "name": "other", "path": "/b/other"}), "serve /b/other"),
    (with_another_base_in_its_probes, "belongs to another base (weights ffffffffffff)"),
    (
        changing("model.json", files={"adapter_model.safetensors": "0" * 64}),
        "is not the file that model.json describes",
    ),
]


@pytest.mark.parametrize(("damage", "words"), BAD_ADAPTERS, ids=[words for _, words in BAD_ADAPTERS])
def test_an_adapter_that_may_not_be_served_is_refused(
    damage: Callable[[Path], None], words: str, tmp_path: Path, adapter: Path, tiny_base: Path
) -> None:
    copy = copy_adapter(adapter, tmp_path / "adapter")
    damage(copy)
    with pytest.raises(InputError, match=re.escape(words)):
        inspect_adapter(copy, inspect_base(tiny_base))


def test_a_foreign_adapter_is_served_though_nothing_is_known_of_it(
    tmp_path: Path, adapter: Path, tiny_base: Path
) -> None:
    copy = copy_adapter(adapter, tmp_path / "foreign")
    (copy / "model.json").unlink()
    (copy / "parity.json").unlink()
    found = inspect_adapter(copy, inspect_base(tiny_base))
    assert (found.model_id, found.dtype) == ("foreign", None)


@pytest.mark.parametrize(("rank", "served"), [(1, 8), (8, 8), (9, 16), (16, 16), (24, 32), (129, 256), (257, 320)])
def test_the_rank_is_rounded_up_to_what_vllm_allows(
    rank: int, served: int, tmp_path: Path, adapter: Path, tiny_base: Path
) -> None:
    copy = copy_adapter(adapter, tmp_path / "adapter")
    changing("adapter_config.json", r=rank)(copy)
    assert value_of(plan(tiny_base, copy), "--max-lora-rank") == str(served)


def test_names_template_and_modules_come_from_the_adapter(adapter: Path, tiny_base: Path) -> None:
    decided = plan(tiny_base, adapter)
    assert decided.names == ("lora", "ft_sft_tiny", "tiny-llama")
    assert value_of(decided, "--served-model-name") == "tiny-llama"
    assert value_of(decided, "--chat-template") == str(adapter / "chat_template.jinja")
    assert any("another chat template" in note for note in decided.notes)
    start = decided.command.index("--lora-target-modules") + 1
    modules = decided.command[start : decided.command.index("--lora-modules")]
    assert modules == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@pytest.mark.parametrize(
    ("trained_in", "where", "dtype"),
    [
        ("float32", {"gpu_id": "cpu"}, "float32"),
        ("bfloat16", {"gpu_id": "cpu"}, "bfloat16"),
        ("float32", {"gpu_id": "0"}, "float32"),
        ("float32", {"gpu_id": "0", "vllm": CUDA_BUILD, "gpus": 1}, "auto"),
        (None, {"gpu_id": "cpu"}, "float32"),  # what the base was saved in
    ],
)
def test_the_dtype_is_that_of_the_training_on_a_cpu(
    trained_in: str | None, where: dict[str, Any], dtype: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    copy = None
    if trained_in:
        copy = copy_adapter(request.getfixturevalue("adapter"), tmp_path / "adapter")
        changing("parity.json", dtype=trained_in)(copy)
    assert value_of(plan(request.getfixturevalue("tiny_base"), copy, **where), "--dtype") == dtype


def test_gpus_are_those_named(tiny_base: Path) -> None:
    one = plan(tiny_base, gpu_id="1", vllm=CUDA_BUILD, gpus=2)
    assert one.environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert "--enforce-eager" not in one.command
    two = plan(tiny_base, gpu_id="0,1", vllm=CUDA_BUILD, gpus=2)
    assert value_of(two, "--tensor-parallel-size") == "2"
    assert "CUDA_VISIBLE_DEVICES" not in plan(tiny_base, gpu_id="0").environment


MIG = "MIG-11111111-2222-3333-4444-555555555555"


@pytest.mark.parametrize(
    ("visible", "gpu_id", "cards"),
    [
        ("3,5", "0", "3"),
        ("3,5", "1,0", "5,3"),
        ("3, 5", "1", "5"),
        ("GPU-8932f937,GPU-01234567", "1", "GPU-01234567"),
        (MIG, "0", MIG),
    ],
)
def test_gpus_are_counted_among_those_that_the_caller_may_use(
    visible: str, gpu_id: str, cards: str, tiny_base: Path
) -> None:
    made = plan(tiny_base, gpu_id=gpu_id, vllm=CUDA_BUILD, gpus=8, CUDA_VISIBLE_DEVICES=visible)
    assert made.environment["CUDA_VISIBLE_DEVICES"] == cards
    assert "CUDA_DEVICE_ORDER" not in made.environment, "the caller's numbers are of the caller's order"


def test_numbers_are_those_of_nvidia_smi_unless_the_caller_orders_them(tiny_base: Path) -> None:
    gpu = {"gpu_id": "0", "vllm": CUDA_BUILD, "gpus": 2}
    assert plan(tiny_base, **gpu).environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "CUDA_DEVICE_ORDER" not in plan(tiny_base, **gpu, CUDA_DEVICE_ORDER="FASTEST_FIRST").environment


@pytest.mark.parametrize(
    ("visible", "gpu_id", "words"),
    [
        ("3,5", "2", "gpu_id 2: does not exist: CUDA_VISIBLE_DEVICES=3,5 leaves 2 GPUs, numbered from 0"),
        ("3", "3", "CUDA_VISIBLE_DEVICES=3 leaves 1 GPU, numbered from 0; give numbers below 1"),
        ("", "0", "CUDA_VISIBLE_DEVICES= leaves no GPU"),
        ("-1", "0", "CUDA_VISIBLE_DEVICES=-1 leaves no GPU"),
        ("0,-1,1", "1", "CUDA_VISIBLE_DEVICES=0,-1,1 leaves 1 GPU"),
        (f"{MIG},{MIG}1", "0,1", "MIG slices cannot be joined"),
        ("3,3", "0,1", "gpu_id 0,1: names a GPU twice"),
    ],
)
def test_a_gpu_that_the_caller_may_not_use_is_refused(visible: str, gpu_id: str, words: str, tiny_base: Path) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        plan(tiny_base, gpu_id=gpu_id, vllm=CUDA_BUILD, gpus=8, CUDA_VISIBLE_DEVICES=visible)


@pytest.mark.parametrize(
    ("gpu_id", "vllm", "gpus", "words"),
    [
        ("0", CUDA_BUILD, 0, "this machine has no GPU; for serving on the CPU make its build"),
        ("2", CUDA_BUILD, 2, "this machine has 2 GPUs, numbered from 0; give numbers below 2"),
        ("cpu", CUDA_BUILD, 1, "needs the CPU build of vLLM"),
        ("first", CUDA_BUILD, 1, "must be a GPU's number, several with commas between, or `cpu`, got 'first'"),
        ("0,0", CUDA_BUILD, 2, "gpu_id 0,0: names a GPU twice"),
        ("1,01", CUDA_BUILD, 2, "gpu_id 1,01: names a GPU twice"),
    ],
)
def test_a_device_that_is_not_there_is_refused(gpu_id: str, vllm: Vllm, gpus: int, words: str, tiny_base: Path) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        plan(tiny_base, gpu_id=gpu_id, vllm=vllm, gpus=gpus)


@pytest.mark.parametrize("arguments", [["8000", "0"], ["8000", "-1", "base"], ["--help"]])
def test_arguments_that_are_not_the_commands_are_shown(arguments: list[str]) -> None:
    words = f"arguments: must be 3 or 4, none a flag, got '{' '.join(arguments)}'; usage: launch_llm.sh <port>"
    with pytest.raises(InputError, match=re.escape(words)):
        serve(arguments, {})


def test_the_cpu_build_on_a_machine_with_gpus_says_that_it_uses_none(tiny_base: Path) -> None:
    assert any("no GPU is used" in note for note in plan(tiny_base, gpu_id="0", gpus=1).notes)
    assert any("this machine has no GPU" in note for note in plan(tiny_base, gpu_id="0", gpus=0).notes)


def test_listening_to_others_without_a_key_is_said(tiny_base: Path) -> None:
    assert any("VLLM_API_KEY" in note for note in plan(tiny_base, HOST="0.0.0.0").notes)
    assert plan(tiny_base, HOST="0.0.0.0").url.startswith("http://127.0.0.1:")
    assert not plan(tiny_base, HOST="0.0.0.0", VLLM_API_KEY="k").notes
    assert value_of(plan(tiny_base), "--host") == "127.0.0.1"


def test_a_base_without_template_gets_the_plain_one(tmp_path: Path, tiny_base: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_base, bare)
    (bare / "chat_template.jinja").unlink()
    assert value_of(plan(bare), "--chat-template") == str(PLAIN_TEMPLATE)
    assert PLAIN_TEMPLATE.is_file()
    assert "--chat-template" not in plan(tiny_base).command


def test_two_models_of_one_name_are_refused(tmp_path: Path, adapter: Path, tiny_base: Path) -> None:
    same = tmp_path / "lora"
    shutil.copytree(tiny_base, same)
    with pytest.raises(InputError, match="which is the adapter's name"):
        plan(same, adapter)
    assert plan(same).names == ("lora",)


def test_own_arguments_come_last_so_that_they_win(tiny_base: Path) -> None:
    assert plan(tiny_base, VLLM_ARGS="--max-model-len 64").command[-2:] == ("--max-model-len", "64")


QWEN35 = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "vision_config": {},
    "text_config": {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "head_dim": 256},
}
MOE = {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4, "head_dim": 32}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "n_head": 2, "n_embd": 64}
GPU = {"gpu_id": "0", "vllm": CUDA_BUILD, "gpus": 1}


@pytest.fixture
def served(tiny_base: Path, adapter: Path) -> tuple[Path, Path]:
    """A base and its adapter."""
    return tiny_base, adapter


def with_config(tiny_base: Path, folder: Path, config: dict[str, Any]) -> Path:
    """The tiny base, by its config.json of another family; the weights and so the adapters' hash stay."""
    shutil.copytree(tiny_base, folder / "base")
    (folder / "base" / "config.json").write_text(json.dumps(config))
    return folder / "base"


@pytest.mark.parametrize(
    ("config", "how", "words"),
    [
        (GPT2, {}, "is GPT2LMHeadModel, a class on which vLLM serves no LoRA; serve the base alone"),
        (GPT2, GPU, "is GPT2LMHeadModel, a class on which vLLM serves no LoRA; serve the base alone"),
        (MOE, {}, "serve it on a GPU, or the base alone"),
        (MOE | {"head_dim": 16}, {}, "has attention heads of 16"),
        (QWEN35, {"VLLM_ARGS": "--dtype float32"}, "VLLM_ARGS --dtype: float32 is asked for"),
    ],
)
def test_what_vllm_cannot_serve_is_refused_before_a_start(
    config: dict[str, Any], how: dict[str, Any], words: str, tmp_path: Path, served: tuple[Path, Path]
) -> None:
    base, adapter = served
    with pytest.raises(InputError, match=re.escape(words)):
        plan(with_config(base, tmp_path, config), adapter, **how)


@pytest.mark.parametrize(("config", "where"), [(GPT2, {}), (MOE, {}), (MOE, GPU)])
def test_the_base_alone_is_served_where_adapters_are_not(
    config: dict[str, Any], where: dict[str, Any], tmp_path: Path, tiny_base: Path
) -> None:
    assert "--enable-lora" not in plan(with_config(tiny_base, tmp_path, config), **where).command


def test_names_that_vllm_would_drop_are_refused(tmp_path: Path, adapter: Path, tiny_base: Path) -> None:
    """The weights say that the base's layers lie deeper; here by a header alone."""
    base = with_config(tiny_base, tmp_path, QWEN35)
    header = json.dumps({"model.language_model.norm.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    (base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    with pytest.raises(InputError) as refused:
        plan(base, adapter)
    told = "\n".join(map(str, refused.value.problems))
    assert "would load the adapter and change nothing; train it again" in told


def test_a_base_that_also_sees_is_served_for_text_in_the_dtype_of_its_kernel(tmp_path: Path, tiny_base: Path) -> None:
    base = with_config(tiny_base, tmp_path, QWEN35 | {"dtype": "float32"})
    made = plan(base)
    assert value_of(made, "--dtype") == "bfloat16"
    assert "--language-model-only" in made.command
    assert any("VLLM_ARGS=--no-language-model-only" in note for note in made.notes)
    all_of_it = plan(base, VLLM_ARGS="--no-language-model-only")
    assert "--language-model-only" not in all_of_it.command
    assert not all_of_it.notes
    assert value_of(plan(base, **GPU), "--dtype") == "auto"


def test_limits_of_the_cpu_build_are_no_matter_where_another_vllm_is_meant(
    tmp_path: Path, served: tuple[Path, Path]
) -> None:
    """A wrong gpu_id, or none found: what would be said of a CPU is not said."""
    base, adapter = served
    moe = with_config(base, tmp_path, MOE | {"head_dim": 16})
    for vllm in (CUDA_BUILD, InputError(Problem("vLLM", "was not found"))):
        with pytest.raises(InputError) as refused:
            plan_serving(str(free_port()), "first", str(moe), str(adapter), environment={}, vllm=vllm, gpus=1)
        assert not [problem for problem in refused.value.problems if problem.where.startswith("model")]


def rope_base(tmp_path: Path, tiny_base: Path, **config: object) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    changing("config.json", **config)(folder)
    return folder


LONGROPE = {"original_max_position_embeddings": 4096, "rope_parameters": None, "rope_scaling": {"type": "longrope"}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("", False), ("--max-model-len 4096", False), ("--max-model-len=8192", True), ("--max_model_len 8k", True)],
)
def test_a_context_beyond_a_ropes_original_length_is_said(
    tmp_path: Path, tiny_base: Path, arguments: str, said: bool
) -> None:
    base = rope_base(tmp_path, tiny_base, **LONGROPE)
    notes = plan(base, VLLM_ARGS=arguments).notes
    assert any("takes them for every prompt" in note for note in notes) == said


def test_a_dynamic_rope_is_served_with_the_context_that_it_has_angles_for(tmp_path: Path, tiny_base: Path) -> None:
    scaling = {"type": "dynamic", "factor": 4.0}
    base = rope_base(tmp_path, tiny_base, max_position_embeddings=2048, rope_parameters=None, rope_scaling=scaling)
    assert value_of(plan(base), "--max-model-len") == "2048"
    assert value_of(plan(tiny_base), "--max-model-len") == "auto"
    beyond = plan(base, VLLM_ARGS="--max-model-len 4096")
    assert beyond.command[-2:] == ("--max-model-len", "4096")
    assert any("vLLM has no angles there" in note for note in beyond.notes)


def test_the_parsers_are_those_that_read_the_template_or_that_the_variables_name(
    tmp_path: Path, tiny_base: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "chat_template.jinja").write_text('<tool_call>\n{"name": " tool_calls "arguments": ')
    derived = plan(base)
    assert value_of(derived, "--tool-call-parser") == "hermes"
    assert "--enable-auto-tool-choice" in derived.command
    named = plan(base, TOOL_CALL_PARSER="mistral", REASONING_PARSER="deepseek_r1")
    assert value_of(named, "--tool-call-parser") == "mistral"
    assert value_of(named, "--reasoning-parser") == "deepseek_r1"
    assert "--enable-auto-tool-choice" not in plan(base, TOOL_CALL_PARSER="none").command
    own = plan(base, VLLM_ARGS="--enable-auto-tool-choice --tool-call-parser=xlam")
    assert "hermes" not in own.command


def test_the_adapters_template_names_the_parsers(tmp_path: Path, adapter: Path, tiny_base: Path) -> None:
    copy = copy_adapter(adapter, tmp_path / "adapter")
    (copy / "chat_template.jinja").write_text("{{ message.tool_calls }} {{ messages }}")
    notes = plan(tiny_base, copy).notes
    assert [note for note in notes if note.endswith("TOOL_CALL_PARSER sets one")]


def test_chats_that_vllm_writes_without_a_template_are_said(tmp_path: Path, tiny_base: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    assert not [note for note in plan(base).notes if "Harmony" in note]
    (base / "config.json").write_text(json.dumps(config | {"model_type": "gpt_oss"}))
    assert [note for note in plan(base).notes if "Harmony" in note]


def test_a_parser_that_vllm_lacks_is_refused_with_the_nearest(tiny_base: Path) -> None:
    with pytest.raises(InputError, match=r"TOOL_CALL_PARSER.*hermes") as refused:
        plan(tiny_base, TOOL_CALL_PARSER="hermess", REASONING_PARSER="?")
    assert len(refused.value.problems) == 2
