"""The verdict on synthetic numbers: effects, noises and lengths that a real server shows only one at a time."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from llm_tuning.engines.vllm.probe import server_root
from llm_tuning.errors import InputError
from llm_tuning.models.adapter import adapted_modules
from llm_tuning.proof import Probe, Proof, Templates, Unprovable, judge, read_parity
from llm_tuning.proof.prove import compare_templates

FP32, BF16_SMALL, BF16_LARGE, INT4 = 3e-7, 4e-3, 4e-2, 0.15
"""rms of engine - trainer on the same base: seen on a tiny model, and what large models and quantised bases show."""


SAME_TEMPLATE, OTHER_TEMPLATE = Templates(checked=4), Templates(checked=4, different=4)
"""As parity.json of before rendered texts were kept shows them."""


@dataclass(frozen=True)
class World:
    """A trainer and an engine. Each engine pass has its own noise; `trainer_noise` is the trainer's own rounding."""

    effect: float = 0.3
    """rms of what training did."""
    strength: float = 1.0
    """The part of it that the engine applies."""
    stray: float = 0.0
    """rms of what the engine's adapter does besides."""
    noise: float = FP32
    trainer_noise: float = 0.0
    other_base: float = 0.0
    """rms by which the engine's base differs."""
    tokens: int = 1500
    spread: float = 2.0
    """Standard deviation of the base's log-probabilities."""
    dtype: str = "float32"
    adapts_output_head: bool = False
    shift: float = 0.0
    """rms by which 4 bits move the base's log-probabilities, where the probes were scored on 4 bits."""
    response: float = 0.0
    """The part of the effect that they change."""
    templates: Templates = SAME_TEMPLATE
    seed: int = 0

    def proof(self) -> Proof:
        rng = random.Random(self.seed)

        def normal(sigma: float) -> list[float]:
            return [rng.gauss(0.0, sigma) for _ in range(self.tokens)]

        base, d, stray = normal(self.spread), normal(self.effect), normal(self.stray)
        base = [x - 10 for x in base]
        other = normal(self.other_base)
        engine_base = [b + o + n for b, o, n in zip(base, other, normal(self.noise), strict=True)]
        engine_adapter = [
            b + o + self.strength * x + s + n
            for b, o, x, s, n in zip(base, other, d, stray, normal(self.noise), strict=True)
        ]
        if not self.strength and not self.stray:
            engine_adapter = engine_base  # the same kernels on the same weights: the same bits
        if self.shift:
            d = [x + r for x, r in zip(d, normal(self.effect * self.response), strict=True)]
            base = [b + s for b, s in zip(base, normal(self.shift), strict=True)]
        trained_base = [b + n for b, n in zip(base, normal(self.trainer_noise), strict=True)]
        tuned = [b + x + n for b, x, n in zip(base, d, normal(self.trainer_noise), strict=True)]
        probe = Probe(tuple(range(self.tokens + 1)), tuple(trained_base), tuple(tuned), None)
        return judge(
            [probe],
            [engine_base],
            [engine_adapter],
            trainer_dtype=self.dtype,
            scored_on_4_bits=bool(self.shift),
            templates=self.templates,
            adapts_output_head=self.adapts_output_head,
        )


BF16 = {"noise": 0.01, "trainer_noise": 0.01, "dtype": "bfloat16"}
NF4 = {"shift": 0.17, "response": 0.14, **BF16}
"""As a small trained model shows it."""
NF4_STRONG = NF4 | {"response": 0.06}
NF4_OF_7B = {"shift": 0.37, "response": 0.25, **BF16}
"""What published figures of quantised models of 7B parameters make of it, at the most."""

TABLE = [
    ("as trained", World(), "effective"),
    ("as trained, bf16 served", World(noise=BF16_SMALL), "effective"),
    ("as trained, a large bf16 base", World(noise=BF16_LARGE), "effective"),
    ("as trained, both in bf16", World(noise=BF16_LARGE, trainer_noise=BF16_LARGE, dtype="bfloat16"), "effective"),
    ("a trainer in bf16, served in fp32", World(trainer_noise=BF16_LARGE, dtype="bfloat16"), "effective"),
    (
        "a trainer whose own rounding flattens the slope",
        World(effect=0.1, trainer_noise=0.038, dtype="bfloat16"),
        "effective",
    ),
    ("a quantised base", World(noise=INT4, effect=0.5), "effective"),
    ("a light training seen over many tokens", World(effect=0.08, noise=BF16_LARGE, tokens=6000), "effective"),
    ("twenty tokens in fp32", World(tokens=20), "effective"),
    ("twenty tokens in bf16", World(tokens=20, noise=BF16_SMALL), "effective"),
    ("LoRA weights rounded by the engine", World(stray=0.003), "effective"),
    ("nothing", World(strength=0), "no_effect"),
    ("nothing, bf16", World(strength=0, noise=BF16_LARGE), "no_effect"),
    ("nothing, twenty tokens", World(strength=0, tokens=20, noise=BF16_SMALL), "no_effect"),
    ("next to nothing", World(strength=0.02), "no_effect"),
    ("next to nothing, bf16", World(strength=0.02, noise=BF16_LARGE), "no_effect"),
    ("nothing on another base", World(strength=0, other_base=1.0), "no_effect"),
    ("nothing and another template", World(strength=0, templates=OTHER_TEMPLATE), "no_effect"),
    ("another adapter", World(strength=0, stray=0.3), "different"),
    ("another adapter, bf16", World(strength=0, stray=0.3, noise=BF16_LARGE), "different"),
    ("a similar adapter: same data, another seed", World(strength=0.9, stray=0.12), "different"),
    ("an earlier checkpoint", World(strength=0.85, stray=0.02), "different"),
    ("half the strength", World(strength=0.5, noise=BF16_LARGE), "different"),
    ("twice the strength", World(strength=2.0, noise=BF16_LARGE), "different"),
    ("the opposite", World(strength=-1.0), "different"),
    ("another base", World(other_base=0.8), "different"),
    ("another base that says little", World(other_base=0.2, spread=0.2, effect=0.1), "different"),
    ("another template", World(templates=OTHER_TEMPLATE), "different"),
    ("another template, too little training", World(effect=1e-7, templates=OTHER_TEMPLATE), "different"),
    ("much from an adapter that learned nothing", World(effect=1e-7, strength=0, stray=0.3), "different"),
    ("barely trained", World(effect=2e-7), "too_small_to_tell"),
    ("barely trained and without effect", World(effect=2e-7, strength=0), "too_small_to_tell"),
    ("below bf16's noise", World(effect=0.02, noise=BF16_LARGE), "too_small_to_tell"),
    ("below the trainer's own noise", World(effect=0.02, trainer_noise=0.02, dtype="bfloat16"), "too_small_to_tell"),
    ("too few tokens for the noise", World(effect=0.08, noise=BF16_LARGE, tokens=60), "too_small_to_tell"),
    ("a handful of tokens", World(tokens=8), "too_small_to_tell"),
    ("no tokens", World(tokens=0), "too_small_to_tell"),
    ("an untrained adapter", World(effect=0.0), "too_small_to_tell"),
    ("4 bits: as trained", World(**NF4), "effective"),
    ("4 bits: a light training, less than the quantisation moves the base", World(effect=0.16, **NF4), "effective"),
    ("4 bits: a strong one", World(effect=1.2, **NF4), "effective"),
    ("4 bits: a very strong one, whose effect saturates", World(effect=3.0, **NF4_STRONG), "effective"),
    ("4 bits: few tokens", World(tokens=60, **NF4), "effective"),
    ("4 bits of a large base", World(**NF4_OF_7B), "too_small_to_tell"),
    ("4 bits of a base that says little", World(spread=0.4, **NF4), "effective"),
    ("4 bits: nothing", World(strength=0, **NF4), "no_effect"),
    ("4 bits: next to nothing", World(strength=0.02, **NF4), "no_effect"),
    ("4 bits of a large base: nothing", World(strength=0, **NF4_OF_7B), "no_effect"),
    ("4 bits: nothing and another template", World(strength=0, templates=OTHER_TEMPLATE, **NF4), "no_effect"),
    ("4 bits: another adapter", World(strength=0, stray=0.3, **NF4), "different"),
    (
        "4 bits: a similar adapter, as another seed gives",
        World(effect=0.5, strength=0.9, stray=0.3, **NF4),
        "different",
    ),
    ("4 bits of a large base: a similar adapter", World(effect=0.5, strength=0.9, stray=0.3, **NF4_OF_7B), "different"),
    ("4 bits: a similar adapter of a strong training", World(effect=3.0, stray=0.5, **NF4_STRONG), "too_small_to_tell"),
    ("4 bits: a strong one at twice the strength", World(effect=3.0, stray=1.4, **NF4_STRONG), "different"),
    ("4 bits: half the strength", World(strength=0.5, **NF4), "different"),
    ("4 bits: twice the strength", World(strength=2.0, **NF4), "different"),
    ("4 bits of a large base: half the strength", World(strength=0.5, **NF4_OF_7B), "different"),
    ("4 bits: the opposite", World(strength=-1.0, **NF4), "different"),
    ("4 bits: another base", World(other_base=1.6, **NF4), "different"),
    ("4 bits: another template", World(templates=OTHER_TEMPLATE, **NF4), "different"),
    ("4 bits: an earlier checkpoint", World(strength=0.8, stray=0.09, **NF4), "too_small_to_tell"),
    ("4 bits: half of a light training", World(effect=0.06, strength=0.5, **NF4), "too_small_to_tell"),
    ("4 bits: nothing of a light training", World(effect=0.06, strength=0, **NF4), "too_small_to_tell"),
    ("4 bits: another adapter for a light one", World(effect=0.06, strength=0, stray=0.06, **NF4), "too_small_to_tell"),
    ("4 bits: an untrained adapter", World(effect=0.0, **NF4), "too_small_to_tell"),
    ("4 bits: much from one that learned nothing", World(effect=0.0, strength=0, stray=0.5, **NF4), "different"),
    ("4 bits: a handful of tokens", World(tokens=8, **NF4), "too_small_to_tell"),
    ("4 bits, much rougher than NF4", World(shift=0.5, response=0.42, **BF16), "too_small_to_tell"),
    ("4 bits: lm_head left out by vLLM", World(strength=0, adapts_output_head=True, **NF4), "cannot_be_proven"),
    ("lm_head left out by vLLM", World(strength=0, adapts_output_head=True), "cannot_be_proven"),
    ("lm_head left out in part", World(strength=0.6, adapts_output_head=True), "cannot_be_proven"),
    ("lm_head, seen all the same", World(adapts_output_head=True), "effective"),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("case", "world", "verdict"), TABLE, ids=[row[0] for row in TABLE])
def test_the_verdict_of(case: str, world: World, verdict: str, seed: int) -> None:
    proof = World(**{**vars(world), "seed": seed}).proof()
    assert proof.verdict == verdict, (case, proof)


def test_two_faults_are_both_said() -> None:
    nothing = World(strength=0, other_base=1.0, templates=OTHER_TEMPLATE).proof().message
    assert "changes nothing" in nothing
    assert "the base itself" in nothing
    assert "chat template differs" in nothing
    wrong = World(stray=0.5, templates=OTHER_TEMPLATE).proof().message
    assert "something else than was trained" in wrong
    assert "chat template differs" in wrong


def test_other_ids_for_the_same_text_blame_the_tokenizer_and_not_the_template() -> None:
    other_ids = Templates(checked=4, texts=4, other_ids=2, first_other_id=5)
    proof = World(templates=other_ids).proof()
    assert proof.verdict == "different"
    assert "2 of 4 texts, the first at token 5" in proof.message
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in proof.message
    assert "--chat-template" not in proof.message
    both = World(templates=Templates(checked=4, different=1, texts=4, other_ids=2, first_other_id=5)).proof()
    assert "PreTrainedTokenizerFast" in both.message
    assert "--chat-template" in both.message


def test_a_template_is_not_blamed_alone_where_the_rendered_texts_are_not_known() -> None:
    assert "PreTrainedTokenizerFast" in World(templates=OTHER_TEMPLATE).proof().message
    known = World(templates=Templates(checked=4, different=4, texts=4)).proof().message
    assert "the chat template differs" in known
    assert "PreTrainedTokenizerFast" not in known


class Server:
    """A server that renders with a template of its own and tokenises by characters, digits moved by `shift`."""

    def __init__(self, template: str = "{}.", shift: int = 0, *, tokenises: bool = True) -> None:
        self.template, self.shift, self.tokenises = template, shift, tokenises

    def render(
        self, model: str, messages: Sequence[Mapping[str, str]], *, ask: bool, tools: object
    ) -> list[int] | None:
        assert ask
        return self._ids(self.template.format(messages[0]["content"])) if self.tokenises else None

    def tokenise(self, model: str, text: str) -> list[int] | None:
        return self._ids(text) if self.tokenises else None

    def _ids(self, text: str) -> list[int]:
        return [ord(character) + (self.shift if character.isdigit() else 0) for character in text]


def compared(tmp_path: Path, server: Server, *, rendered: bool = True, template: str = "") -> Templates:
    (tmp_path / "chat_template.jinja").write_text(template)
    probes = [
        Probe(
            tuple(map(ord, f"{content}.yes")),
            (0.0,),
            (0.0,),
            ({"role": "user", "content": content}, {"role": "assistant", "content": "yes"}),
            prompt_tokens=len(content) + 1,
            rendered=f"{content}." if rendered else None,
        )
        for content in ("no digit", "the 1", "1 and 2")
    ]
    return compare_templates(server, tmp_path, probes, name="lora")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("server", "want"),
    [
        (Server(), Templates(checked=3, texts=3)),
        (Server("{}!"), Templates(checked=3, different=3, texts=3)),
        (Server(shift=1), Templates(checked=3, texts=3, other_ids=2, first_other_id=5)),
        (Server("{}!", shift=1), Templates(checked=3, different=3, texts=3, other_ids=2, first_other_id=5)),
    ],
    ids=["alike", "another template", "another tokenizer", "both"],
)
def test_text_and_ids_are_told_apart(tmp_path: Path, server: Server, want: Templates) -> None:
    assert compared(tmp_path, server) == want


def test_probes_without_their_rendered_text_are_compared_as_before(tmp_path: Path) -> None:
    assert compared(tmp_path, Server(shift=1), rendered=False) == Templates(checked=3, different=2)


def test_a_template_with_the_date_leaves_the_tokenizer_to_compare(tmp_path: Path) -> None:
    found = compared(tmp_path, Server("{} today", shift=1), template="{{ strftime_now('%d') }}")
    assert (found.checked, found.different, found.texts, found.other_ids) == (0, 0, 3, 2)
    assert "today's date" in found.note


def test_a_server_without_tokenize_compares_nothing(tmp_path: Path) -> None:
    assert "no /tokenize" in compared(tmp_path, Server(tokenises=False)).note


def test_what_was_not_compared_is_said_with_an_effective_verdict() -> None:
    proof = World(templates=Templates(note="the server has no /tokenize")).proof()
    assert proof.verdict == "effective"
    assert "no /tokenize" in proof.message


def test_the_numbers_of_a_small_case_by_hand() -> None:
    # d = (1, 2), e = (2, 2): slope 6/5, correlation 6/sqrt(5 x 8), n = (0.5, 0.5).
    probe = Probe((5, 6, 7), (-3.0, -4.0), (-2.0, -2.0), None)
    numbers = judge([probe], [[-2.5, -3.5]], [[-0.5, -1.5]]).numbers
    assert numbers is not None
    assert (numbers.tokens, numbers.probes) == (2, 1)
    assert numbers.slope == pytest.approx(1.2)
    assert numbers.correlation == pytest.approx(0.9486833)
    assert numbers.noise == pytest.approx(0.5)
    assert numbers.residual == pytest.approx(0.5**0.5)
    assert numbers.trained_effect == pytest.approx(2.5**0.5)
    assert numbers.served_effect == pytest.approx(2.0)


def test_a_proof_is_plain_json() -> None:
    value = json.loads(json.dumps(World().proof().as_json(), allow_nan=False))
    assert value["verdict"] == "effective"
    assert json.dumps(World(effect=0.0, tokens=0).proof().as_json(), allow_nan=False)


PROBE = {"token_ids": [1, 2], "base_logprobs": [-1.0], "tuned_logprobs": [-2.0], "messages": None}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no parity.json"),
        ("{", "cannot be read"),
        ("[]", "has version None"),
        (json.dumps({"version": 2, "probes": []}), "has version 2"),
        (json.dumps({"version": 1}), "is damaged"),
        (json.dumps({"version": 1, "probes": [PROBE | {"token_ids": [1, 2, 3]}]}), "T - 1"),
        (json.dumps({"version": 1, "probes": [PROBE | {"base_logprobs": [float("nan")]}]}), "not finite"),
    ],
)
def test_probes_that_cannot_be_used_say_why(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "parity.json").write_text(content)
    with pytest.raises(Unprovable, match=words):
        read_parity(tmp_path)


def test_probes_are_read(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    probes = [PROBE, PROBE | {"messages": messages}]
    written = {"version": 1, "dtype": "bfloat16", "probes": probes}
    (tmp_path / "parity.json").write_text(json.dumps(written))
    parity = read_parity(tmp_path)
    assert parity.dtype == "bfloat16"
    assert (parity.quantization, parity.scored_on) == ("none", "none"), "files from before quantisation was noted"
    (tmp_path / "parity.json").write_text(json.dumps(written | {"quantization": "4bit", "scored_on": "none"}))
    assert (read_parity(tmp_path).quantization, read_parity(tmp_path).scored_on) == ("4bit", "none")
    assert parity.probes[0] == Probe((1, 2), (-1.0,), (-2.0,), None)
    assert parity.probes[1].messages == tuple(messages)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_an_address_may_end_in_v1(url: str) -> None:
    assert server_root(url) == "http://h:1"


@pytest.mark.parametrize("url", ["", "h:1", "ftp://h", "http://"])
def test_what_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="must be an http"):
        server_root(url)


EMPTY_TENSOR = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def test_adapted_modules_come_from_the_names_of_the_weights(tmp_path: Path) -> None:
    names = [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
    ]
    header = json.dumps({"__metadata__": {}} | dict.fromkeys(names, EMPTY_TENSOR)).encode()
    (tmp_path / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert adapted_modules(tmp_path) == {"q_proj", "lm_head", "embed_tokens"}
    (tmp_path / "adapter_model.safetensors").write_bytes(b"PK")
    with pytest.raises(ValueError, match="not a safetensors file"):
        adapted_modules(tmp_path)


def test_a_server_that_is_down_is_tried_again_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llm_tuning.codes.tune_llm import main
    from tests.support.vllm_server import free_port

    url = f"http://127.0.0.1:{free_port()}"
    assert main(["prove", "--url", url, "--adapter", str(tmp_path)]) == 75
    assert f"no server answers at {url}" in capsys.readouterr().err
    assert main(["prove", "--url", url, "--adapter", str(tmp_path / "missing")]) == 64
    assert main(["prove", "--url", url, "--adapter", str(tmp_path), "--api_key_env", "NO_SUCH_KEY"]) == 64
