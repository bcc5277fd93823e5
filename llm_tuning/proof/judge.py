"""The verdict: does a served adapter move the log-probabilities as training did? Pure, standard library only.

For every probe token, with the trainer's numbers from `parity.json` and the engine's from the server:

    d = tuned - base      at the trainer: what training did
    e = adapter - base    in the engine:  what serving does
    n = base(engine) - base(trainer):     how much two correct programs differ, since no adapter is in it

If the adapter takes effect, e - d is the difference of two such n, so its spread is about sqrt(2) rms(n) whatever the
two dtypes are: the base measures the noise for us, and an fp32 training served in bf16 is still proven. If nothing
takes effect e is zero. What fits neither is different.

Where the trainer had a base in 4 bits only, n is what the quantisation did to the base, and measures no noise. But d
and e are each a difference within one program. To first order an adapter's effect is linear in its weights, and a base
whose weights are off by a tenth, as NF4's are, changes that response by some tenths of itself, however large n is; a
strong training saturates, and then what is left is n. Seen were e - d of 0.12 to 0.18 d, for d of a third of n to eight
n, and of n for d of twenty n; for another seed's adapter 0.23 d and more, or four n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from llm_tuning.proof.parity import Probe

READ_AS_IT_IS = (
    'set "tokenizer_class": "PreTrainedTokenizerFast" in its tokenizer_config.json, so that every version of '
    "transformers reads tokenizer.json as it is"
)
"""What makes the trainer and every server tokenise alike; seen with transformers 5.19 and 5.24."""
MIN_TOKENS = 16
"""Below this the noise cannot be estimated: its own error is then a fifth or more (1 / sqrt(2 x 16))."""
NOISE_FLOOR = 1e-6
"""Nats. Two float32 programs differ by up to 5e-7, and a few equal digits must not make the noise look like zero."""
SAME_BASE_NATS = (0.05, 0.25)
"""rms(n) up to the first is always rounding (bf16 logits of 16 to 32 are 0.125 apart), above the second never the
same base; in between half the spread of the base's log-probabilities decides: bases that say little differ little."""
SLOPE_RANGE = (0.8, 1.25)
"""A slope outside is a wrong scaling (alpha / rank) or other weights."""
FOUR_BITS_SLOPE_RANGE = (0.7, 1.4)
"""A slope outside is wrong even where d was measured on 4 bits."""
FOUR_BITS_SAME = (0.2, 2.0)
"""With d from 4 bits it is the same adapter up to this part of d left over, and this multiple of n."""
FOUR_BITS_OTHER = (0.5, 4.0)
"""Above both it is another one; what is in between cannot be told."""
NO_SLOPE = 0.2
"""Below a fifth of the trained strength an adapter is called without effect."""
RELATIVE_RESIDUAL = 0.1
"""Part of d that may go unexplained besides noise: LoRA weights rounded to bf16 cost about 0.01, another checkpoint of
the same run is off by more."""
NOISE_MARGIN = 3.0
"""The residual may be this many times the noise expected from the base: adapters add operations, hence rounding."""
TOKENS_PER_INDEPENDENT = 4
"""Rounding errors of neighbouring tokens share a prefix; count one independent token in this many."""
MAX_SLOPE_ERROR = 0.1
"""A slope must be known to +-0.1 (one standard error) before 1 and 0 are distinguished."""


class Verdict(StrEnum):
    """What a proof of a served adapter may come to."""

    EFFECTIVE = "effective"
    NO_EFFECT = "no_effect"
    DIFFERENT = "different"
    TOO_SMALL_TO_TELL = "too_small_to_tell"
    CANNOT_BE_PROVEN = "cannot_be_proven"


@dataclass(frozen=True)
class Numbers:
    """What the verdict rests on. Log-probabilities in nats; rms over all tokens."""

    tokens: int
    probes: int
    slope: float
    """Least squares of e on d through the origin: 1 as trained, 0 without effect."""
    slope_error: float
    """Standard error of the slope from noise alone; from the residual, where d was measured on 4 bits."""
    correlation: float
    """Of e and d about zero (no effect is the zero they are measured from)."""
    trained_effect: float
    """rms(d)"""
    served_effect: float
    """rms(e)"""
    residual: float
    """rms(e - d)"""
    noise: float
    """rms(n)"""
    noise_limit: float
    """Noise above this means another base."""


@dataclass(frozen=True)
class Templates:
    """How the server renders and tokenises the probes' conversations against what was trained on."""

    checked: int = 0
    different: int = 0
    """Conversations that become another text, or other tokens where their text is not known."""
    note: str = ""
    """Why they could not be compared, if so."""
    texts: int = 0
    """Rendered texts of the training that the server was given to tokenise."""
    other_ids: int = 0
    """Those that it gives other token ids than the training."""
    first_other_id: int = 0
    """The place (from 1) of the first other id in the first of them."""

    @property
    def fit(self) -> bool:
        """Whether nothing differs, as far as it was compared."""
        return not self.different and not self.other_ids


@dataclass(frozen=True)
class Proof:
    """A verdict with its reasons."""

    verdict: Verdict
    message: str
    numbers: Numbers | None = None
    templates: Templates = Templates()
    name: str = ""
    """What the server calls the adapter that was asked."""

    def as_json(self) -> dict[str, Any]:
        """Return the proof as `--json` prints it."""
        return {
            "verdict": self.verdict.value,
            "name": self.name,
            "message": self.message,
            "numbers": asdict(self.numbers) if self.numbers else None,
            "templates": asdict(self.templates),
        }


def judge(
    probes: Sequence[Probe],
    engine_base: Sequence[Sequence[float]],
    engine_adapter: Sequence[Sequence[float]],
    *,
    trainer_dtype: str = "float32",
    scored_on_4_bits: bool = False,
    templates: Templates = Templates(),
    adapts_output_head: bool = False,
) -> Proof:
    """Compare a server with the trainer. `engine_*` hold the server's log-probabilities, (T - 1,) a probe, in order.

    `scored_on_4_bits`: the probes' numbers are those of a quantised base, and the server's is not quantised.
    `adapts_output_head`: vLLM leaves an adapter's lm_head out of prompt log-probabilities (vllm-project/vllm#51594), so
    that a missing or different effect says nothing about such an adapter.
    """
    numbers = measure(probes, engine_base, engine_adapter, scored_on_4_bits=scored_on_4_bits)
    same_base = numbers.noise <= numbers.noise_limit
    faults = []
    if not same_base:
        faults.append(
            f"the base itself answers differently than where the adapter was trained (its log-probabilities are off by "
            f"{numbers.noise:.2g}, the most for the same base is {numbers.noise_limit:.2g}): serve the base that "
            f"model.json names, with the same weights"
        )
    faults += template_faults(templates)
    if scored_on_4_bits:
        verdict, sentence = _verdict_from_4_bits(numbers)
    else:
        verdict, sentence = _adapter_verdict(numbers, trainer_dtype=trainer_dtype, same_base=same_base)
    if adapts_output_head and verdict in (Verdict.NO_EFFECT, Verdict.DIFFERENT):
        verdict = Verdict.CANNOT_BE_PROVEN
        sentence = f"the adapter changes lm_head, which vLLM leaves out of prompt log-probabilities: {sentence}"
    if verdict is Verdict.NO_EFFECT or (verdict is Verdict.DIFFERENT and same_base):
        return Proof(verdict, ". Also, ".join([sentence, *faults]), numbers, templates)
    if faults:
        return Proof(Verdict.DIFFERENT, ". Also, ".join(faults), numbers, templates)
    return Proof(verdict, f"{sentence} ({templates.note})" if templates.note else sentence, numbers, templates)


def template_faults(templates: Templates) -> list[str]:
    """Return a sentence each for a server whose tokenizer or whose chat template is not that of the training."""
    found = []
    if templates.other_ids:
        found.append(
            f"the server's tokenizer gives other token ids for the same text ({templates.other_ids} of "
            f"{templates.texts} texts, the first at token {templates.first_other_id}), so prompts reach the adapter as "
            f"it never saw them: serve the base folder of the training, and {READ_AS_IT_IS}"
        )
    if templates.different:
        unknown = (
            ""
            if templates.texts
            else f". If it has that one, its tokenizer differs: in the base's folder, {READ_AS_IT_IS}"
        )
        found.append(
            f"the chat template differs from the one trained with ({templates.different} of {templates.checked} "
            f"conversations become other tokens): start the server with the adapter's --chat-template "
            f"(chat_template.jinja){unknown}"
        )
    return found


def measure(
    probes: Sequence[Probe],
    engine_base: Sequence[Sequence[float]],
    engine_adapter: Sequence[Sequence[float]],
    *,
    scored_on_4_bits: bool = False,
) -> Numbers:
    """Compute the numbers over all tokens of all probes."""
    base = [x for probe in probes for x in probe.base_logprobs]
    d = [t - b for probe in probes for t, b in zip(probe.tuned_logprobs, probe.base_logprobs, strict=True)]
    engine = [x for row in engine_base for x in row]
    e = [a - b for a, b in zip((x for row in engine_adapter for x in row), engine, strict=True)]
    n = [x - b for x, b in zip(engine, base, strict=True)]
    dd, ee = _sum_of_squares(d), _sum_of_squares(e)
    de = math.fsum(x * y for x, y in zip(d, e, strict=True))
    count = max(len(d), 1)
    noise, residual = _rms(n), _rms([x - y for x, y in zip(e, d, strict=True)])
    certain, impossible = SAME_BASE_NATS
    limit = 0.5 * _spread(base)  # another base explains less than three quarters of the variance
    error = residual if scored_on_4_bits else _difference_noise(noise)
    error = error * math.sqrt(TOKENS_PER_INDEPENDENT / dd) if dd else math.inf
    return Numbers(
        tokens=len(d),
        probes=len(probes),
        slope=de / dd if dd else 0.0,
        slope_error=min(error, 1e9),
        correlation=de / math.sqrt(dd * ee) if dd and ee else 0.0,
        trained_effect=math.sqrt(dd / count),
        served_effect=math.sqrt(ee / count),
        residual=residual,
        noise=noise,
        noise_limit=max(certain, limit if scored_on_4_bits else min(impossible, limit)),
    )


def _adapter_verdict(numbers: Numbers, *, trainer_dtype: str, same_base: bool) -> tuple[Verdict, str]:
    """Return the verdict on the adapter alone, and its sentence."""
    trained, served = numbers.trained_effect, numbers.served_effect
    # Another base says nothing about rounding: then only an effect that is plainly missing counts as missing.
    noise = _difference_noise(numbers.noise if same_base else 0.0)
    # A bf16 trainer's own rounding is in d as well: it flattens the slope by up to noise^2 / rms(d)^2.
    rounded_trainer = trainer_dtype != "float32"
    slope_error = numbers.slope_error * noise / _difference_noise(numbers.noise)
    decidable = trained >= noise * (2 if rounded_trainer else 1) and slope_error <= MAX_SLOPE_ERROR
    if numbers.tokens < MIN_TOKENS or not decidable:
        return _below_the_noise(numbers, noise)
    if numbers.slope < NO_SLOPE and served <= max(NO_SLOPE * trained, 2 * noise if same_base else 0.0):
        return _no_effect(numbers)
    flattened = (noise / trained) ** 2 if rounded_trainer else 0.0
    fits = numbers.residual <= math.hypot(RELATIVE_RESIDUAL * trained, NOISE_MARGIN * noise)
    if fits and SLOPE_RANGE[0] - flattened <= numbers.slope <= SLOPE_RANGE[1]:
        return _effective(numbers)
    return _different(numbers)


def _verdict_from_4_bits(numbers: Numbers) -> tuple[Verdict, str]:
    """Return the verdict and its sentence where d was measured on 4 bits and e was not."""
    trained, slope = numbers.trained_effect, numbers.slope
    same, other = (min(d * trained, n * numbers.noise) for d, n in (FOUR_BITS_SAME, FOUR_BITS_OTHER))
    rounding = _difference_noise(min(numbers.noise, SAME_BASE_NATS[0]))  # hidden in n: as much as it may be
    known = numbers.tokens >= MIN_TOKENS and numbers.slope_error <= MAX_SLOPE_ERROR
    if known and numbers.residual <= same and SLOPE_RANGE[0] <= slope <= SLOPE_RANGE[1]:
        return _effective(numbers)
    if numbers.tokens < MIN_TOKENS or trained < 2 * rounding:
        return _below_the_noise(numbers, rounding)
    if slope < NO_SLOPE and numbers.served_effect <= NO_SLOPE * trained:
        return _no_effect(numbers)
    scaled = known and not FOUR_BITS_SLOPE_RANGE[0] <= slope <= FOUR_BITS_SLOPE_RANGE[1]
    if scaled or numbers.residual > math.hypot(other, 2 * rounding):
        return _different(numbers)
    return (
        Verdict.TOO_SMALL_TO_TELL,
        f"the difference is too small to tell from what 4 bits change: {_shown(numbers)}; train it where the base "
        f"without quantisation fits into memory, if only at the end",
    )


def _effective(numbers: Numbers) -> tuple[Verdict, str]:
    return Verdict.EFFECTIVE, f"the adapter takes effect as trained: {_shown(numbers)}"


def _no_effect(numbers: Numbers) -> tuple[Verdict, str]:
    return (
        Verdict.NO_EFFECT,
        f"the adapter changes nothing: {_shown(numbers)}; see that this name loads the adapter's files and that its "
        f"weights are not zero",
    )


def _different(numbers: Numbers) -> tuple[Verdict, str]:
    return (
        Verdict.DIFFERENT,
        f"the served adapter does something else than was trained: {_shown(numbers)}; see that this name loads this "
        f"adapter's files, with r and lora_alpha of adapter_config.json as they were",
    )


def _below_the_noise(numbers: Numbers, noise: float) -> tuple[Verdict, str]:
    """Judge where training did too little to be seen; an adapter that does much is another one all the same."""
    shown = _shown(numbers)
    if numbers.tokens >= MIN_TOKENS and numbers.served_effect > 2 * NOISE_MARGIN * max(noise, numbers.trained_effect):
        return (
            Verdict.DIFFERENT,
            f"the served adapter does far more than was trained: {shown}; see that the name loads this adapter's files",
        )
    fix = (
        f"the probes have too few tokens (at least {MIN_TOKENS})"
        if numbers.tokens < MIN_TOKENS
        else "train longer or with a higher learning rate, or lower the noise by serving in the dtype of the training"
    )
    return Verdict.TOO_SMALL_TO_TELL, f"what training changed is too small to tell from noise: {shown}; {fix}"


def _shown(numbers: Numbers) -> str:
    return (
        f"over {numbers.tokens} tokens training moved the log-probabilities by {numbers.trained_effect:.2g} and the "
        f"served adapter moves them by {numbers.served_effect:.2g} (slope {numbers.slope:.2f}, correlation "
        f"{numbers.correlation:.2f}, noise {numbers.noise:.1g})"
    )


def _difference_noise(noise: float) -> float:
    """Compute the expected rms(e - d) of an adapter that takes effect: two independent errors of the base's size."""
    return math.sqrt(2) * max(noise, NOISE_FLOOR)


def _sum_of_squares(values: Sequence[float]) -> float:
    return math.fsum(x * x for x in values)


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(_sum_of_squares(values) / max(len(values), 1))


def _spread(values: Sequence[float]) -> float:
    """Compute the standard deviation."""
    mean = math.fsum(values) / max(len(values), 1)
    return _rms([x - mean for x in values])
