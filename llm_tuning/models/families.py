"""Which bases vLLM can serve a LoRA on, which of their layers it serves, and how it wants the tensors named.

Everything here follows from config.json alone, so that a base, or a module asked for by name, is refused before any
row is read. The table is held to vLLM's own code in tests/engine: a class that vLLM has, a layer that its LoRA wraps, a
name that its loader looks up.

What is never trained, and why, whatever the family:
- the router of a mixture of experts: its balance is the base's, and the loss has no term that keeps it;
- embeddings and the output layer: the losses need them frozen;
- layers that text does not reach (vision, sound, prediction of several tokens): their gradient is zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_tuning.errors import Problem

EXPERTS_MODULE = "experts"
LISTED = "docs/families.md lists the families that can be trained"

ROUTER = "the router stays the base's, so that the experts' balance does"
EXPERTS = "vLLM's LoRA takes fused experts in another form than PEFT writes"
UNDROPPED = "PEFT trains fused experts without dropout only"
TAKEN_FOR_EXPERTS = "PEFT takes these names for the experts in this family"
MAMBA = "Mamba's kernels read its weight past the LoRA"
ABSORBED = "vLLM merges its weight into the attention and does not call it"
LOOKED_UP_IN_PARTS = "vLLM looks it up as gate_proj and up_proj"
NOT_WRAPPED = "vLLM has no LoRA layer for it in this family"


@dataclass(frozen=True)
class Servable:
    """A family whose LoRA vLLM serves; one entry may hold for several architectures."""

    modules: tuple[str, ...]
    """Last name parts of the linear layers that are trained by `all-linear`, in the order of a layer."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why other layers of the language model are not trained: a reason by last name part."""
    fused_experts: bool = False
    """Whether the server takes a LoRA on fused experts as PEFT writes it; then one may be continued."""
    names: str = ""
    """What stands before `layers.N` in the tensor names that the server looks up; empty where training has the same."""

    @property
    def model_class(self) -> str:
        """The class of transformers in which the published names have a place: the whole model's, where they differ."""
        return "AutoModelForImageTextToText" if self.names else "AutoModelForCausalLM"

    def why_not(self, module: str) -> str | None:
        """Return why `module`, a last name part, is not trained; None where it is, or is unknown."""
        if module in self.modules:
            return None
        return self.left_out.get(module) or _NEVER.get(module)


@dataclass(frozen=True)
class Refusal:
    """Why no adapter is trained on a base, and what would work instead."""

    rule: str
    fix: str = LISTED

    def problem(self, where: str) -> Problem:
        """Return it as a problem of `where`."""
        return Problem(where, self.rule, self.fix)


_NEVER = dict.fromkeys(("lm_head", "embed_out"), "the losses need a frozen output layer") | dict.fromkeys(
    ("embed_tokens", "wte", "wpe", "embed_in", "word_embeddings"), "embeddings are not trained"
)

_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
_GATED = ("gate_proj", "up_proj", "down_proj")
_MLA = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj")
_DELTA = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
_LFM2 = ("in_proj", "q_proj", "k_proj", "v_proj", "out_proj", "w1", "w3", "w2")
_SHARED = ("input_linear", "output_linear")

_MOE = {"gate": ROUTER, "router": ROUTER, "experts": EXPERTS}
_NO_MLP = _MOE | dict.fromkeys(_GATED, TAKEN_FOR_EXPERTS)
_NO_KV_B = {"kv_b_proj": ABSORBED}

_PLAIN = Servable(_QKVO + _GATED)
_UNGATED = Servable((*_QKVO, "up_proj", "down_proj"))
_ATTENTION = Servable(_QKVO, _MOE)
_GPT_OSS = Servable(_QKVO, _MOE | {"experts": UNDROPPED}, fused_experts=True)
_ATTENTION_OF_MOE = Servable(_QKVO, _NO_MLP)
_MLA_OF_MOE = Servable(_MLA, _NO_MLP | _NO_KV_B)
_QWEN_NEXT_DENSE = Servable((*_QKVO, *_DELTA, *_GATED))
_QWEN_NEXT_MOE = Servable((*_QKVO, *_DELTA, *_GATED), _MOE | {"shared_expert_gate": ROUTER})

FAMILIES: dict[str, Servable] = {
    **dict.fromkeys(
        (
            "ArceeForCausalLM",
            "Cohere2ForCausalLM",
            "CohereForCausalLM",
            "CwmForCausalLM",
            "Ernie4_5ForCausalLM",
            "Exaone4ForCausalLM",
            "Gemma2ForCausalLM",
            "Gemma3ForCausalLM",
            "Gemma3ForConditionalGeneration",
            "Gemma4ForCausalLM",
            "Gemma4ForConditionalGeneration",
            "GemmaForCausalLM",
            "GraniteForCausalLM",
            "GraniteSWAForCausalLM",
            "HunYuanDenseV1ForCausalLM",
            "HyperCLOVAXForCausalLM",
            "LlamaForCausalLM",
            "Ministral3ForCausalLM",
            "MistralForCausalLM",
            "Olmo2ForCausalLM",
            "Olmo3ForCausalLM",
            "OlmoForCausalLM",
            "Qwen2ForCausalLM",
            "Qwen3ForCausalLM",
            "SeedOssForCausalLM",
            "SmolLM3ForCausalLM",
            "VaultGemmaForCausalLM",
        ),
        _PLAIN,
    ),
    **dict.fromkeys(("ApertusForCausalLM", "Jais2ForCausalLM", "NemotronForCausalLM"), _UNGATED),
    **dict.fromkeys(("Phi3ForCausalLM",), Servable(("qkv_proj", "o_proj", "gate_up_proj", "down_proj"))),
    "Glm4ForCausalLM": Servable((*_QKVO, "down_proj"), {"gate_up_proj": LOOKED_UP_IN_PARTS}),
    "GlmForCausalLM": Servable((*_QKVO, "gate_up_proj", "down_proj")),
    "GPTNeoXForCausalLM": Servable(("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    "OPTForCausalLM": Servable(("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
    "PhiForCausalLM": Servable(("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    "Starcoder2ForCausalLM": Servable((*_QKVO, "c_fc", "c_proj")),
    # mixtures of experts
    **dict.fromkeys(("GraniteMoeForCausalLM", "MixtralForCausalLM", "PhiMoEForCausalLM"), _ATTENTION),
    "PhimoeForCausalLM": _ATTENTION,
    "GptOssForCausalLM": _GPT_OSS,
    **dict.fromkeys(
        (
            "Ernie4_5_MoeForCausalLM",
            "ExaoneMoeForCausalLM",
            "FlexOlmoForCausalLM",
            "Glm4MoeForCausalLM",
            "MellumForCausalLM",
            "OlmoeForCausalLM",
            "Qwen3MoeForCausalLM",
        ),
        _ATTENTION_OF_MOE,
    ),
    "Qwen2MoeForCausalLM": Servable(_QKVO + _GATED, _MOE | {"shared_expert_gate": ROUTER}),
    **dict.fromkeys(
        ("GraniteMoeSharedForCausalLM", "GraniteMoeSWAForCausalLM"),
        Servable((*_QKVO, "output_linear"), _MOE | {"input_linear": NOT_WRAPPED}),
    ),
    **dict.fromkeys(("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM"), _MLA_OF_MOE),
    "Llama4ForCausalLM": Servable(_QKVO + _GATED, _MOE),
    "Llama4ForConditionalGeneration": Servable(_QKVO + _GATED, _MOE, names="language_model.model."),
    # layers without attention
    "FalconH1ForCausalLM": Servable(("in_proj", *_QKVO, *_GATED), {"out_proj": MAMBA}),
    "GraniteMoeHybridForCausalLM": Servable(("in_proj", *_QKVO, *_SHARED), _MOE | {"out_proj": MAMBA}),
    "JambaForCausalLM": Servable(("in_proj", "x_proj", "out_proj", *_QKVO, *_GATED), _MOE | {"dt_proj": MAMBA}),
    "Lfm2ForCausalLM": Servable(_LFM2),
    "Lfm2MoeForCausalLM": Servable(_LFM2, _MOE),
    "NemotronHForCausalLM": Servable(("in_proj", *_QKVO, "up_proj", "down_proj"), _MOE | {"out_proj": MAMBA}),
    "Qwen3NextForCausalLM": Servable(
        (*_QKVO, "in_proj_qkvz", "in_proj_ba", "out_proj"), _NO_MLP | {"shared_expert_gate": ROUTER}
    ),
    "Qwen3_5ForCausalLM": _QWEN_NEXT_DENSE,
    "Qwen3_5MoeForCausalLM": _QWEN_NEXT_MOE,
    "Qwen3_5ForConditionalGeneration": Servable(_QWEN_NEXT_DENSE.modules, names="model.language_model."),
    "Qwen3_5MoeForConditionalGeneration": Servable(
        _QWEN_NEXT_MOE.modules,
        _QWEN_NEXT_MOE.left_out | {"experts": UNDROPPED},
        fused_experts=True,
        names="model.language_model.",
    ),
}
"""What is served, by the architecture that config.json names: vLLM goes by it, too."""

_WITHOUT_LORA = """
AriaForConditionalGeneration BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM
BailingMoeV3VLForConditionalGeneration BeeForConditionalGeneration BloomForCausalLM Cohere2MoeForCausalLM
Cohere2VisionForConditionalGeneration CohereAsrForConditionalGeneration Cosmos3EdgeForConditionalGeneration
DbrxForCausalLM DeepseekV41ForCausalLM DeepseekV4ForCausalLM DeepseekV4ForConditionalGeneration
DeepseekVLV2ForCausalLM DiffusionGemmaForBlockDiffusion Dots3NoteForCausalLM FalconForCausalLM
FalconMambaForCausalLM FireRedASR2ForConditionalGeneration FunASRForConditionalGeneration
FunAudioChatForConditionalGeneration Gemma3nForCausalLM Gemma3nForConditionalGeneration Glm5NextForCausalLM
GPT2LMHeadModel GPTJForCausalLM HCXVisionV2ForCausalLM HfMoondream HrmTextForCausalLM
IQuestLoopCoderForCausalLM KananaVForConditionalGeneration KimiK25ForConditionalGeneration
KimiK3ForConditionalGeneration KimiLinearForCausalLM KimiVLForConditionalGeneration
LlavaOnevision2ForConditionalGeneration LlavaOnevisionForConditionalGeneration Mamba2ForCausalLM
MambaForCausalLM MiDashengLMModel MiMoV2FlashForCausalLM MiMoV2ForCausalLM MiMoV2OmniForCausalLM
MiniMaxM3SparseForCausalLM MiniMaxM3SparseForConditionalGeneration Moondream3ForCausalLM
MoonshotKimiaForCausalLM MossTranscribeDiarizeForConditionalGeneration NemotronParseForConditionalGeneration
OpenVLAForActionPrediction OrionForCausalLM Ovis Ovis2_5 Ovis2_6_MoeForCausalLM Ovis2_6ForCausalLM
PaddleOCRVLForConditionalGeneration Phi3VForCausalLM Phi4ForCausalLMV Qwen2AudioForConditionalGeneration
RForConditionalGeneration SkyworkR1VChatModel StableLmForCausalLM Step1ForCausalLM Step3p5ForCausalLM
Step3p7ForConditionalGeneration Step3TextForCausalLM Step3VLForConditionalGeneration
StepVLForConditionalGeneration Zamba2ForCausalLM
"""
WITHOUT_LORA = frozenset(_WITHOUT_LORA.split())
"""Classes that vLLM serves and whose LoRA it does not."""

_TEXT_INSTEAD = {
    "Qwen2VLForConditionalGeneration": "Qwen2.5",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2.5",
    "Qwen2_5OmniForConditionalGeneration": "Qwen2.5",
    "Qwen3VLForConditionalGeneration": "Qwen3",
    "Qwen3VLMoeForConditionalGeneration": "Qwen3",
    "Qwen3OmniMoeForConditionalGeneration": "Qwen3",
    "Mistral3ForConditionalGeneration": "Mistral",
    "PixtralForConditionalGeneration": "Mistral",
    "VoxtralForConditionalGeneration": "Mistral",
    "MllamaForConditionalGeneration": "Llama 3.1",
    "Gemma3nForConditionalGeneration": "Gemma 3",
    "Glm4vForConditionalGeneration": "GLM-4",
    "SmolVLMForConditionalGeneration": "SmolLM2",
    "Idefics3ForConditionalGeneration": "Llama 3.1",
    "PaliGemmaForConditionalGeneration": "Gemma",
}
"""Of models that also see or hear, and whose language model transformers does not load by itself: one that is text."""

_LAYER = re.compile(
    r"^(?:base_model\.model\.)?(?:(?:model|language_model|backbone|transformer|gpt_neox|decoder)\.)*"
    r"(?:layers|h)\.(\d+)\.(.+)$"
)
_BEFORE_LAYERS = re.compile(r"^(?:model\.language_model\.|language_model\.model\.|model\.)(?=layers\.\d)")
_PEFT = "base_model.model."


def servable(config: Mapping[str, Any]) -> Servable | Refusal:
    """Say by a base's config.json whether vLLM serves a LoRA on it, and on which layers; or why none is trained."""
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    if not isinstance(architecture, str):
        return Refusal("config.json names no architecture", "save the base again with save_pretrained()")
    if architecture in FAMILIES:
        return FAMILIES[architecture]
    text = _TEXT_INSTEAD.get(architecture)
    if text is not None:
        rule = f"is {architecture}, whose language model is not trained by itself here"
        return Refusal(rule, f"train a text model of its family ({text}); {LISTED}")
    if architecture in WITHOUT_LORA:
        return Refusal(f"is {architecture}, and vLLM serves no LoRA on that class")
    return Refusal(f"is {architecture}, which is none of the classes whose LoRA vLLM is known to serve here")


def family_of(config: Mapping[str, Any]) -> Servable:
    """Return the family of a base that passed `check_trainable`; for any other, no layer is served."""
    found = servable(config)
    return found if isinstance(found, Servable) else Servable(())


def in_layer(name: str) -> tuple[int, str] | None:
    """Split a module's or tensor's name into layer and rest (`self_attn.q_proj`); None outside the language model.

    Checkpoints, transformers and vLLM differ in what stands before the layers; towers have other words there.
    """
    found = _LAYER.match(name)
    return (int(found[1]), found[2]) if found else None


def published_name(tensor: str, family: Servable) -> str:
    """Turn the name of an adapter's tensor from training's into the one that the server looks up."""
    return _renamed(tensor, family.names) if family.names else tensor


def trained_name(tensor: str, family: Servable) -> str:
    """Turn the name of an adapter's tensor, published now or by an older version, into that of the model in training.

    That is the language model alone, whose layers are `model.layers`, where server and training differ.
    """
    return _renamed(tensor, "model.") if family.names else tensor


def _renamed(tensor: str, before: str) -> str:
    inner = tensor.removeprefix(_PEFT)
    return tensor[: len(tensor) - len(inner)] + _BEFORE_LAYERS.sub(before, inner)


def left_out(modules: Iterable[str], family: Servable) -> dict[str, str]:
    """Return why those of `modules` (last name parts that a base has) that are not trained are not."""
    return {module: why for module in sorted(set(modules)) if (why := family.why_not(module)) is not None}


def describe(modules: Iterable[str], omitted: Mapping[str, str]) -> str:
    """Say in one line on what a LoRA is, and what it leaves out: `LoRA on q_proj, v_proj; left out: gate (...)`."""
    reasons: dict[str, list[str]] = {}
    for module, why in omitted.items():
        reasons.setdefault(why, []).append(module)
    parts = [f"{', '.join(names)} ({why})" for why, names in reasons.items()]
    return f"LoRA on {', '.join(modules)}" + (f"; left out: {'; '.join(parts)}" if parts else "")


def by_family() -> Iterator[tuple[tuple[str, ...], Servable]]:
    """Yield every entry of the table with the architectures that it holds for."""
    entries: dict[int, tuple[list[str], Servable]] = {}
    for architecture, family in FAMILIES.items():
        entries.setdefault(id(family), ([], family))[0].append(architecture)
    for architectures, family in entries.values():
        yield tuple(architectures), family
