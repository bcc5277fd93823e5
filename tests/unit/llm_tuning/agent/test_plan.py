"""How vLLM is started, by what is on the claim; an unfit adapter changes nothing of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.agent import commands as agent_main
from llm_tuning.agent.contract import DesiredRoutes, ServeInput
from llm_tuning.agent.fit import find_misfit
from llm_tuning.agent.plan import make_plan
from llm_tuning.api.conditions import AdapterReason
from llm_tuning.api.inference_service import VllmSpec
from llm_tuning.core.files import write_json
from llm_tuning.engines.plan import EnginePlan, Lookup
from llm_tuning.engines.vllm.command import PLAIN_TEMPLATE, SPARE_SLOTS
from llm_tuning.engines.vllm.pod import MOST_IN_MEMORY, adapter_bytes, linear_modules
from llm_tuning.errors import InputError
from llm_tuning.models.base import inspect_base, weight_hash
from tests.unit.llm_tuning.agent.conftest import MODULES, desire, write_adapter, write_safetensors

OTHER_HASH = "c" * 64
LAYER = "model.layers.0."
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (8, 4),
    "lm_head.weight": (8, 4),
    "model.norm.weight": (4,),
    f"{LAYER}input_layernorm.weight": (4,),
    **{f"{LAYER}self_attn.{name}_proj.weight": (4, 4) for name in "qkvo"},
    f"{LAYER}self_attn.q_proj.bias": (4,),
    **{f"{LAYER}mlp.{name}_proj.weight": (4, 4) for name in ("gate", "up", "down")},
    f"{LAYER}conv.weight": (4, 4, 3),
}


class Claim:
    """A claim with a base written by hand."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root, self.scratch = root, scratch
        self.base = root / "base" / "tiny"
        self.models = root / "models"
        self.base.mkdir(parents=True)
        scratch.mkdir()
        self.write("config.json", {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"})
        self.write("tokenizer_config.json", {})
        self.write("tokenizer.json", {})
        self.write("chat_template.jinja", "{{ own }}")
        write_safetensors(self.base / "model.safetensors", SHAPES)

    def write(self, name: str, value: object) -> None:
        (self.base / name).write_text(value if isinstance(value, str) else json.dumps(value))

    @property
    def hash(self) -> str:
        return weight_hash(inspect_base(self.base), self.scratch / "hash.json")

    def adapter(self, name: str, **options: Any) -> None:
        write_adapter(self.models, name, **{"base_hash": self.hash, **options})

    def plan(
        self,
        *names: str,
        gpus: int = 0,
        memory_bytes: int = 2**34,
        rank: int = 0,
        path: str = "base/tiny",
        **vllm: Any,
    ) -> EnginePlan:
        given = ServeInput(
            model_path=path, base_name="served", gpus=gpus, memory_bytes=memory_bytes, vllm=VllmSpec(**vllm)
        )
        desired = desire({name: name for name in names}, rank=rank)
        return make_plan(given, desired, self.root, scratch=self.scratch)


@pytest.fixture
def claim(tmp_path: Path) -> Claim:
    return Claim(tmp_path / "claim", tmp_path / "run")


def flag(plan: EnginePlan, name: str) -> str | None:
    """The value after a flag."""
    command = list(plan.command)
    return command[command.index(name) + 1] if name in command else None


def modules_of(plan: EnginePlan) -> tuple[str, ...]:
    command = plan.command
    start = command.index("--lora-target-modules") + 1
    end = next(n for n in range(start, len(command)) if command[n].startswith("--"))
    return command[start:end]


def test_what_does_not_depend_on_adapters(claim: Claim) -> None:
    plan = claim.plan()
    assert plan.command[:3] == ("python3", "-m", "vllm.entrypoints.openai.api_server")
    assert flag(plan, "--model") == str(claim.base)
    assert flag(plan, "--served-model-name") == "served"
    assert (flag(plan, "--host"), flag(plan, "--port")) == ("127.0.0.1", "8001"), "the loopback only"
    assert flag(plan, "--load-format") == "safetensors"
    assert "--enable-lora" in plan.command
    assert not {"--trust-remote-code", "--api-key", "--trust-request-chat-template"} & set(plan.command)
    assert plan.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert plan.environment["HF_HUB_OFFLINE"] == "1"
    assert (plan.base_name, plan.base_hash) == ("served", claim.hash)
    assert EnginePlan.decode(plan.encode()) == plan


def test_a_plan_says_which_chats_vllm_writes_without_a_template(claim: Claim) -> None:
    config = json.loads((claim.base / "config.json").read_text())
    claim.write("config.json", json.dumps(config | {"model_type": "gpt_oss"}))
    assert [note for note in claim.plan().notes if "Harmony" in note]


def test_modules_are_the_linear_layers_and_what_adapters_change_besides(claim: Claim) -> None:
    assert linear_modules(inspect_base(claim.base)) == set(MODULES)
    assert modules_of(claim.plan()) == MODULES
    claim.adapter("ft_a", modules=("q_proj", "embed_tokens"))
    plan = claim.plan("ft_a")
    assert plan.target_modules == modules_of(plan) == tuple(sorted((*MODULES, "embed_tokens")))


@pytest.mark.parametrize(
    ("ranks", "known", "field", "rank"),
    [
        ((), 0, None, 16),
        ((8,), 0, None, 16),
        ((17, 8), 0, None, 32),
        ((8,), 100, None, 128),
        ((512,), 0, None, 512),
        ((64,), 0, 8, 8),
        ((), 9999, None, 16),
    ],
)
def test_rank(claim: Claim, ranks: tuple[int, ...], known: int, field: int | None, rank: int) -> None:
    for number, value in enumerate(ranks):
        claim.adapter(f"ft_{number}", rank=value)
    plan = claim.plan(*(f"ft_{n}" for n in range(len(ranks))), rank=known, max_lora_rank=field)
    assert plan.max_lora_rank == rank
    assert flag(plan, "--max-lora-rank") == str(rank)


@pytest.mark.parametrize(
    ("gpus", "wanted", "field", "slots", "most"),
    [
        (1, 0, None, 1, MOST_IN_MEMORY),
        (1, 3, None, 3, MOST_IN_MEMORY),
        (1, 20, None, 8, MOST_IN_MEMORY),
        (1, 3, 16, 16, MOST_IN_MEMORY),
        (1, MOST_IN_MEMORY, None, 8, 2 * MOST_IN_MEMORY),
        (0, 0, None, 8 + SPARE_SLOTS, 8),
        (0, 3, None, 8 + SPARE_SLOTS, 8),
        (0, 10, None, 20 + SPARE_SLOTS, 20),
        (0, 3, 4, 4 + SPARE_SLOTS, 4),
        (0, 6, 4, 6 + SPARE_SLOTS, 6),
    ],
)
def test_slots(claim: Claim, *, gpus: int, wanted: int, field: int | None, slots: int, most: int) -> None:
    plan = claim.plan(*(f"ft_{number}" for number in range(wanted)), gpus=gpus, max_loras=field)
    assert flag(plan, "--max-loras") == str(slots)
    assert plan.max_adapters == most
    assert plan.max_loads == (None if gpus else most)
    assert int(flag(plan, "--max-cpu-loras") or 0) >= max(slots, most), "vLLM asks for it"


@pytest.mark.parametrize(
    ("gpus", "memory", "wanted", "rank", "most"),
    [
        (1, 400, 1, 16, 100),  # a quarter of it, in adapters of this size
        (2, 400, 1, 16, 50),  # each process of a tensor-parallel engine keeps its own
        (1, 400, 1, 64, 25),
        (1, 400, 80, 16, 160),  # what is wanted, and as much again for those that follow
        (1, 0, 3, 16, 6),
        (1, 10**6, 1, 16, MOST_IN_MEMORY),
    ],
)
def test_a_gpus_vllm_keeps_as_many_adapters_as_the_memory_holds(
    claim: Claim, *, gpus: int, memory: int, wanted: int, rank: int, most: int
) -> None:
    size = adapter_bytes(inspect_base(claim.base), 16)
    names = [f"ft_{number}" for number in range(wanted)]
    plan = claim.plan(*names, gpus=gpus, memory_bytes=memory * size, max_lora_rank=rank)
    assert plan.max_adapters == most
    assert flag(plan, "--max-cpu-loras") == str(max(most, int(flag(plan, "--max-loras") or 0)))
    assert plan.max_loads is None


def test_the_size_of_an_adapter_is_that_of_pinned_memory_in_powers_of_two(claim: Claim) -> None:
    base = inspect_base(claim.base)
    assert adapter_bytes(base, 16) == 7 * 2 * 4 * 16 * 2, "seven layers of 4 x 4, A and B, two bytes a number"
    assert adapter_bytes(base, 17) == 2 * adapter_bytes(base, 16)


def test_the_bases_own_template_is_left_to_vllm(claim: Claim) -> None:
    plan = claim.plan()
    assert flag(plan, "--chat-template") is None
    assert plan.template == "{{ own }}"
    assert plan.template_source == "base/tiny's own template"
    (claim.base / "chat_template.jinja").unlink()
    claim.write("tokenizer_config.json", {"chat_template": "{{ inside }}"})
    assert claim.plan().template == "{{ inside }}"
    assert flag(claim.plan(), "--chat-template") is None


def test_a_base_without_template_is_served_with_the_plain_one(claim: Claim) -> None:
    (claim.base / "chat_template.jinja").unlink()
    plan = claim.plan()
    written = Path(flag(plan, "--chat-template") or "")
    assert written.parent == claim.scratch
    assert written.read_text() == plan.template == PLAIN_TEMPLATE.read_text()
    assert plan.template_source == "the project's plain template"


@pytest.mark.parametrize(
    ("gpus", "field", "trained", "saved", "dtype"),
    [
        (1, None, ("float32",), "float32", "auto"),
        (1, "float16", ("float32",), "float32", "float16"),
        (0, None, (), "bfloat16", "auto"),
        (0, None, (), "float32", "float32"),
        (0, None, ("float32",), "bfloat16", "float32"),
        (0, None, ("bfloat16", "bfloat16"), "float32", "bfloat16"),
        (0, None, ("bfloat16", "float32"), "bfloat16", "auto"),
        (0, None, ("float32", ""), "bfloat16", "auto"),
        (0, None, ("int3",), "float32", "float32"),
        (0, "bfloat16", ("float32",), "float32", "bfloat16"),
    ],
)
def test_dtype(claim: Claim, *, gpus: int, field: Any, trained: tuple[str, ...], saved: str, dtype: str) -> None:
    claim.write("config.json", {"architectures": ["X"], "torch_dtype": saved})
    for number, value in enumerate(trained):
        claim.adapter(f"ft_{number}", dtype=value)
    plan = claim.plan(*(f"ft_{number}" for number in range(len(trained))), gpus=gpus, dtype=field)
    assert flag(plan, "--dtype") == dtype


@pytest.mark.parametrize(
    ("gpus", "field", "value"), [(1, None, None), (1, False, "0"), (2, True, "1"), (0, True, None), (0, False, None)]
)
def test_the_model_runner_is_vllms_choice_unless_it_is_said(
    claim: Claim, *, gpus: int, field: bool | None, value: str | None
) -> None:
    """The CPU build has the old one only, and ends where it is told to take the new one."""
    assert claim.plan(gpus=gpus, model_runner_v2=field).environment.get("VLLM_USE_V2_MODEL_RUNNER") == value


def test_engine_flags_are_passed_on(claim: Claim) -> None:
    plan = claim.plan(
        gpus=2,
        max_model_len=512,
        gpu_memory_utilization=0.5,
        max_num_seqs=7,
        max_num_batched_tokens=99,
        enable_prefix_caching=False,
    )
    flags = {"--max-model-len": "512", "--gpu-memory-utilization": "0.5", "--max-num-seqs": "7"}
    flags |= {"--max-num-batched-tokens": "99", "--tensor-parallel-size": "2"}
    assert {name: flag(plan, name) for name in flags} == flags
    assert "--no-enable-prefix-caching" in plan.command
    assert "--enable-prefix-caching" in claim.plan(enable_prefix_caching=True).command
    few = claim.plan(gpus=1)
    assert flag(few, "--max-model-len") == "auto"
    assert not [f for f in few.command if "prefix" in f or "parallel" in f or f.startswith("--max-num")]


@pytest.mark.parametrize(
    ("gpus", "field", "eager"), [(0, None, True), (0, False, False), (1, None, False), (1, True, True)]
)
def test_compiling(claim: Claim, gpus: int, field: bool | None, eager: bool) -> None:
    assert ("--enforce-eager" in claim.plan(gpus=gpus, enforce_eager=field).command) == eager


@pytest.mark.parametrize("how", ["not there", "another base", "damaged", "hostile header", "hostile ranks"])
def test_an_unfit_adapter_changes_nothing_for_the_others(claim: Claim, how: str) -> None:
    claim.adapter("ft_good", dtype="bfloat16")
    before = claim.plan("ft_good")
    weights = claim.models / "ft_bad" / "adapter_model.safetensors"
    if how == "another base":
        claim.adapter("ft_bad", base_hash=OTHER_HASH, rank=512, modules=("c_attn",), dtype="float32")
    elif how == "hostile ranks":
        claim.adapter("ft_bad", config={"rank_pattern": [512]})
    elif how != "not there":
        claim.adapter("ft_bad", rank=512)
        weights.write_bytes(b"no" if how == "damaged" else b"\3\0\0\0\0\0\0\0[1]")
    assert claim.plan("ft_good", "ft_bad") == before


def test_hashes_that_the_trainers_noted_are_used_and_the_claim_is_not_written(claim: Claim) -> None:
    file = (claim.base / "model.safetensors").resolve()
    key = f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}"
    write_json(claim.models / ".cache" / "base_hashes.json", {key: "d" * 64})
    before = sorted(claim.root.rglob("*"))
    plan = claim.plan()
    assert plan.base_hash != claim.hash
    (claim.models / ".cache" / "base_hashes.json").write_text("{")
    assert claim.plan().base_hash == claim.hash, "half a file is none"
    assert sorted(claim.root.rglob("*")) == before


@pytest.mark.parametrize("path", ["base/none", "../elsewhere", "base/link", "/etc"])
def test_a_base_that_is_not_on_the_claim(claim: Claim, path: str) -> None:
    (claim.root / "base" / "link").symlink_to(claim.scratch)
    with pytest.raises(InputError, match=f"model .*{path}"):
        claim.plan(path=path)


def test_a_base_with_pickled_weights_is_refused(claim: Claim) -> None:
    (claim.base / "model.safetensors").rename(claim.base / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled"):
        claim.plan()


# --- the container ---------------------------------------------------------------------------------------------------


@pytest.fixture
def container(claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Claim:
    for name, value in {
        "ROOT": claim.root,
        "RUN_DIR": claim.scratch,
        "CONFIG_DIR": tmp_path,
        "TERMINATION_LOG": tmp_path / "log",
    }.items():
        monkeypatch.setattr(agent_main, name, value)
    given = ServeInput(model_path="base/tiny", base_name="served", gpus=0, vllm=VllmSpec())
    monkeypatch.setenv("LLM_TUNING_SERVE", given.encode())
    return claim


def test_the_init_container_writes_the_plan(container: Claim, tmp_path: Path) -> None:
    container.adapter("ft_a", rank=64)
    (tmp_path / "desired.json").write_text(desire({"support": "ft_a"}).encode())
    assert agent_main.run(["plan"]) == 0
    assert EnginePlan.decode((container.scratch / "vllm.json").read_text()).max_lora_rank == 64


@pytest.mark.parametrize("desired", [None, "{", DesiredRoutes().encode()])
def test_without_a_readable_wish_the_base_is_planned(container: Claim, tmp_path: Path, desired: str | None) -> None:
    if desired is not None:
        (tmp_path / "desired.json").write_text(desired)
    assert agent_main.run(["plan"]) == 0
    assert (container.scratch / "vllm.json").exists()


def test_an_unfit_base_is_64_with_the_reason(container: Claim, tmp_path: Path) -> None:
    (container.base / "config.json").unlink()
    assert agent_main.run(["plan"]) == 64
    assert "has no config.json" in (tmp_path / "log").read_text()
    assert not (container.scratch / "vllm.json").exists()


def test_wrong_arguments_are_64() -> None:
    assert agent_main.run([]) == 64
    assert agent_main.run(["run"]) == 64


VISION = {"architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {}, "text_config": {"head_dim": 32}}
DELTA = {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "head_dim": 256}
QWEN35 = {"architectures": ["Qwen3_5ForConditionalGeneration"], "vision_config": {}, "text_config": DELTA}
NESTED = {name.replace("model.", "model.language_model.", 1): shape for name, shape in SHAPES.items()}
NESTED |= {"model.visual.blocks.0.mlp.linear_fc1.weight": (4, 4)}


def rename_base(claim: Claim, config: dict[str, Any], shapes: dict[str, tuple[int, ...]] = NESTED) -> None:
    claim.write("config.json", config)
    write_safetensors(claim.base / "model.safetensors", shapes)


def test_a_base_that_also_sees_is_started_for_text(claim: Claim) -> None:
    assert "--language-model-only" not in claim.plan().command
    rename_base(claim, VISION)
    plan = claim.plan()
    assert "--language-model-only" in plan.command
    assert plan.lookup == Lookup("Gemma3ForConditionalGeneration", nested=True, towers=False)
    assert EnginePlan.decode(plan.encode()) == plan
    assert "linear_fc1" not in plan.target_modules, "no layer that sees is prepared"
    seeing = claim.plan(language_model_only=False)
    assert "--language-model-only" not in seeing.command
    assert seeing.lookup.towers


@pytest.mark.parametrize(("asked", "text_only"), [(None, False), (True, True), (False, False)])
def test_an_adapter_of_layers_that_see_starts_them(claim: Claim, *, asked: bool | None, text_only: bool) -> None:
    rename_base(claim, VISION)
    claim.adapter("ft_a", inside="model.vision_tower.encoder.layers.0.mlp.", modules=("fc1",))
    assert ("--language-model-only" in claim.plan("ft_a", language_model_only=asked).command) == text_only


def test_an_adapter_whose_names_would_be_dropped_is_no_part_of_the_plan(claim: Claim) -> None:
    rename_base(claim, QWEN35)
    claim.adapter("ft_old", rank=64)
    claim.adapter("ft_new", rank=32, inside="model.language_model.layers.0.self_attn.")
    assert claim.plan("ft_old").max_lora_rank == 16
    assert claim.plan("ft_old", "ft_new").max_lora_rank == 32


def test_a_delta_net_is_computed_in_the_dtype_of_its_kernel(claim: Claim) -> None:
    rename_base(claim, QWEN35)
    claim.adapter("ft_a", dtype="float32", inside="model.language_model.layers.0.self_attn.")
    assert flag(claim.plan("ft_a"), "--dtype") == "bfloat16"
    assert flag(claim.plan("ft_a", gpus=1), "--dtype") == "auto"
    assert flag(claim.plan("ft_a", gpus=1, dtype="float32"), "--dtype") == "float32"
    with pytest.raises(InputError, match="computes in bfloat16 only"):
        claim.plan("ft_a", dtype="float32")


def test_what_the_cpu_build_cannot_run_is_refused_together(claim: Claim) -> None:
    rename_base(claim, QWEN35 | {"text_config": DELTA | {"head_dim": 16}})
    with pytest.raises(InputError) as refused:
        claim.plan(dtype="float16")
    assert [problem.where for problem in refused.value.problems] == ["model base/tiny", "spec.vllm.dtype"]
    assert claim.plan(gpus=1)


@pytest.mark.parametrize(
    ("config", "gpus", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, 0, "no LoRA"),
        ({"architectures": ["GPT2LMHeadModel"]}, 1, "no LoRA"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4}, 0, "only without LoRA"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4}, 1, ""),
    ],
)
def test_a_base_without_lora_is_served_alone(claim: Claim, config: dict[str, Any], gpus: int, words: str) -> None:
    rename_base(claim, config, SHAPES)
    claim.adapter("ft_a")
    plan = claim.plan("ft_a", gpus=gpus)
    assert ("--enable-lora" in plan.command) == (not words)
    misfit = find_misfit(claim.models / "ft_a", plan)
    assert bool(misfit) == bool(words)
    if misfit is not None:
        assert misfit.reason == AdapterReason.BASE_WITHOUT_LORA
        assert words in misfit.message


def test_the_parsers_are_those_that_read_the_template_or_that_the_spec_names(claim: Claim) -> None:
    claim.write("chat_template.jinja", '<tool_call>\n{"name": " tool_calls "arguments": ')
    plan = claim.plan()
    assert flag(plan, "--tool-call-parser") == plan.tool_call_parser == "hermes"
    assert "--enable-auto-tool-choice" in plan.command
    assert flag(plan, "--reasoning-parser") is None
    named = claim.plan(tool_call_parser="mistral", reasoning_parser="deepseek_r1")
    assert flag(named, "--tool-call-parser") == named.tool_call_parser == "mistral"
    assert flag(named, "--reasoning-parser") == "deepseek_r1"
    off = claim.plan(tool_call_parser="none")
    assert off.tool_call_parser == ""
    assert not {"--tool-call-parser", "--enable-auto-tool-choice"} & set(off.command)


def test_a_plan_says_what_could_not_be_told_and_survives_its_file(claim: Claim) -> None:
    claim.write("chat_template.jinja", "{{ message.tool_calls }}")
    plan = claim.plan()
    [note] = plan.notes
    assert note.endswith("vllm.toolCallParser sets one")
    assert EnginePlan.decode(plan.encode()) == plan
