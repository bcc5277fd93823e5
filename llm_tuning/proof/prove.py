"""Puts a proof together: read the probes, query the server, judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llm_tuning.engines.protocol import Probe as EngineProbe
from llm_tuning.engines.protocol import ServedModel, TokensRefused, Unprovable
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.adapter import adapts_output_head, read_template
from llm_tuning.models.base import read_object
from llm_tuning.models.layout import MANIFEST
from llm_tuning.models.rope import served_otherwise
from llm_tuning.proof.judge import Proof, Templates, Verdict, judge, template_faults
from llm_tuning.proof.parity import UNQUANTISED, Probe, read_parity

LORA_NAME = "lora"
"""The name that `launch_llm.sh` serves an adapter under, besides its model_id."""


def prove(server: EngineProbe, adapter: Path, *, name: str | None = None, base_name: str | None = None) -> Proof:
    """Say whether `server` serves the adapter in folder `adapter` so that it takes effect.

    `name` is the adapter's name at the server (default: its model_id, else `lora`), `base_name` the base's (default: as
    the server says). Raises InputError for a wrong folder or name, TryAgain when the server does not answer.
    """
    if not adapter.is_dir():
        raise InputError(
            Problem(f"adapter {adapter}", "is not a folder", "give models/<model_id> of a run that has finished")
        )
    models = server.models()
    name = name or _default_name(adapter, models, server.url)
    base = _base(models, name, base_name, server.url)
    try:
        proof = _prove(server, adapter, name=name, base=base)
    except Unprovable as reason:
        proof = Proof(Verdict.CANNOT_BE_PROVEN, f"it cannot be proven that the adapter takes effect: {reason}")
    return replace(proof, name=name)


def _prove(server: EngineProbe, adapter: Path, *, name: str, base: ServedModel) -> Proof:
    parity = read_parity(adapter)
    probes = _fitting(parity.probes, base.max_model_len)
    templates = compare_templates(server, adapter, probes, name=name)
    try:
        prompts = [probe.token_ids for probe in probes]
        engine_base = server.logprobs(base.name, prompts)
        # A server may give the base's own name to nothing else: then both are the same answers, and that is no effect.
        engine_adapter = engine_base if name == base.name else server.logprobs(name, prompts)
    except TokensRefused as refusal:
        message = f"the server cannot take the tokens the adapter was trained on ({refusal}): it serves another base"
        return Proof(Verdict.DIFFERENT, message, templates=templates)
    except Unprovable:
        if not templates.fit:  # a wrong template needs no log-probabilities to be wrong
            return Proof(Verdict.DIFFERENT, ". Also, ".join(template_faults(templates)), templates=templates)
        raise
    proof = judge(
        probes,
        engine_base,
        engine_adapter,
        trainer_dtype=parity.dtype,
        scored_on_4_bits=parity.scored_on != UNQUANTISED,
        templates=templates,
        adapts_output_head=adapts_output_head(adapter),
    )
    if (otherwise := served_otherwise(parity.ropes, base.max_model_len)) is not None:
        proof = replace(proof, message=f"{proof.message}. Also, {otherwise}")
    if parity.quantization == UNQUANTISED:
        return proof
    probed = "" if parity.scored_on == UNQUANTISED else ", and so were the probes"
    return replace(proof, message=f"{proof.message} (trained on 4 bits{probed}, served on 16)")


def compare_templates(server: EngineProbe, adapter: Path, probes: Sequence[Probe], *, name: str) -> Templates:
    """Render the prompt of every probe that has a conversation at the server and compare the token ids.

    Where they differ, the trainer's rendered text says whose fault it is: the server tokenises it as it is.
    """
    conversations = [probe for probe in probes if probe.messages]
    if not conversations:
        return Templates(note="no probe is a whole conversation, so the chat template was not compared")
    dated = "strftime_now" in _template_text(adapter)
    different, texts, other = 0, 0, list[int]()
    for probe in conversations:
        rendered = None if dated else _render(server, name, probe)
        if rendered is None and not dated:
            return Templates(note="the server has no /tokenize, so the chat template was not compared")
        want = probe.token_ids[: probe.prompt_tokens] if probe.prompt_tokens else probe.token_ids
        if rendered is not None and tuple(rendered) == want:
            texts += probe.rendered is not None
            continue
        ids = server.tokenise(name, probe.rendered) if probe.rendered is not None else None
        if ids is not None:
            texts += 1
            if tuple(ids) != want:
                other.append(_first_difference(ids, want))
        different += rendered is not None and rendered != ids
    return Templates(
        checked=0 if dated else len(conversations),
        different=different,
        note="the chat template writes today's date, so its renderings cannot be compared" if dated else "",
        texts=texts,
        other_ids=len(other),
        first_other_id=other[0] if other else 0,
    )


def _first_difference(got: Sequence[int], want: Sequence[int]) -> int:
    """Return the place, from 1, of the first token that differs."""
    pairs = zip(got, want, strict=False)
    return next((at for at, (a, b) in enumerate(pairs, start=1) if a != b), min(len(got), len(want)) + 1)


def _render(server: EngineProbe, name: str, probe: Probe) -> list[int] | None:
    """Return what the server makes of a probe's messages.

    The prompt of the answer is compared, for no server renders the answer: it makes it.
    """
    messages = probe.messages or ()
    if probe.prompt_tokens:
        return server.render(name, messages[:-1], ask=True, tools=probe.tools)
    return server.render(name, messages, tools=probe.tools)


def _template_text(adapter: Path) -> str:
    try:
        return read_template(adapter) or ""
    except (OSError, ValueError):
        return ""


def _fitting(probes: Sequence[Probe], max_model_len: int | None) -> list[Probe]:
    """Return the probes that fit into the server's context with the one token it must generate; raises Unprovable."""
    usable = [probe for probe in probes if probe.base_logprobs]
    fitting = [probe for probe in usable if max_model_len is None or len(probe.token_ids) < max_model_len]
    if not usable:
        raise Unprovable("parity.json holds no probes")
    if not fitting:
        raise Unprovable(f"every probe is longer than the server's context of {max_model_len} tokens")
    return fitting


def _default_name(adapter: Path, models: Sequence[ServedModel], url: str) -> str:
    served = [model.name for model in models]
    model_id = read_object(adapter / MANIFEST, "", []).get("model_id")
    for name in (model_id, adapter.resolve().name):
        if name in served:
            return str(name)
    others = [model.name for model in models if model.parent is not None and model.name != LORA_NAME]
    if LORA_NAME in served and (model_id is None or not others):  # with others beside it, it is one of them
        return LORA_NAME
    fix = f"it serves {', '.join(served) or 'nothing'}; name one with --name"
    raise InputError(Problem(url, f"serves no {model_id or adapter.resolve().name}", fix))


def _base(models: Sequence[ServedModel], name: str, base_name: str | None, url: str) -> ServedModel:
    by_name = {model.name: model for model in models}
    for wanted, flag in ((name, "--name"), (base_name, "--base_name")):
        if wanted is not None and wanted not in by_name:
            raise InputError(
                Problem(f"{flag} {wanted}", f"is not served at {url}", f"it serves {', '.join(by_name) or 'nothing'}")
            )
    roots = [model for model in models if model.parent is None]
    others = [model for model in roots if model.name != name]
    chosen = base_name or by_name[name].parent
    if chosen in by_name:
        return by_name[chosen]
    return (others or roots or list(models))[0]
