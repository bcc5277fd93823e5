"""Decides how the engine is started on one machine: device, rank, names, template. Reads folders, starts nothing.

| Decision | Rule |
| --- | --- |
| device | the GPUs numbered by gpu_id, as nvidia-smi does or within CUDA_VISIBLE_DEVICES; the CPU for `cpu`, or where \
the vLLM found is its CPU build |
| rank | the adapter's, rounded up to what vLLM allows |
| layers that see or hear | not started, unless the adapter changes them |
| chat template | the adapter's (it was trained with it), else the base's own, else the project's plain one |
| parsers of tool calls and of reasoning | TOOL_CALL_PARSER, REASONING_PARSER, else those that read that template |

The command line itself and the dtype are those of `engines.vllm.command`.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from llm_tuning.core.cards import VISIBLE, card_order, listed_cards
from llm_tuning.core.suggestions import did_you_mean
from llm_tuning.core.vllm_parsers import ReasoningParser, ToolCallParser
from llm_tuning.engines.vllm.adapter import ServedAdapter, inspect_adapter
from llm_tuning.engines.vllm.command import (
    PLAIN_TEMPLATE,
    SPARE_SLOTS,
    LoraOptions,
    StartOptions,
    base_template,
    build_command,
    context_note,
    context_to_serve,
    cpu_dtype,
    harmony_note,
)
from llm_tuning.engines.vllm.environment import API_KEY_VARIABLE, ARGUMENTS_VARIABLE, OFFLINE, cpu_environment
from llm_tuning.engines.vllm.install import INSTALL, Vllm
from llm_tuning.engines.vllm.limits import (
    DELTA_DTYPE,
    DTYPE_FLAG,
    has_delta_net,
    has_experts,
    is_multimodal,
    value_of_flag,
    why_no_lora,
    why_not_on_cpu,
    wrong_on_cpu,
)
from llm_tuning.engines.vllm.parsers import Asked, Parsers, choose_parsers
from llm_tuning.engines.vllm.tensor_names import read_lookup
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.base import BaseModel, inspect_base, read_config
from llm_tuning.models.layout import CHAT_TEMPLATE
from llm_tuning.proof.prove import LORA_NAME

USAGE = "launch_llm.sh <port> <gpu_id> <model_path> [lora_path]"
CPU = "cpu"
DEFAULT_HOST = "127.0.0.1"
PARSERS = {"TOOL_CALL_PARSER": ToolCallParser, "REASONING_PARSER": ReasoningParser}
"""Variables of launch_llm.sh, and what they may be."""
WITH_SENSES = "--no-language-model-only"
"""What starts a base that also sees or hears with those layers."""


@dataclass(frozen=True)
class ServePlan:
    """All that starting the server needs."""

    command: tuple[str, ...]
    environment: dict[str, str]
    """Added to the caller's."""
    host: str
    port: int
    base_name: str
    adapter: ServedAdapter | None
    names: tuple[str, ...]
    """Names that clients may use, the adapter's first."""
    notes: tuple[str, ...] = field(default=())

    @property
    def url(self) -> str:
        """Where this machine reaches the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def plan_serving(
    port: str,
    gpu_id: str,
    model_path: str,
    lora_path: str | None,
    *,
    environment: Mapping[str, str],
    vllm: Vllm | InputError,
    gpus: int | None,
) -> ServePlan:
    """Check the arguments and decide; `gpus` is how many this machine has (None: unknown).

    Raises InputError with all problems together, a vLLM that was not found (`vllm`) among them.
    """
    problems: list[Problem] = list(vllm.problems) if isinstance(vllm, InputError) else []
    host = environment.get("HOST") or DEFAULT_HOST
    number = _port(port, host, problems)
    notes: list[str] = []
    found = None if isinstance(vllm, InputError) else vllm
    devices = _devices(gpu_id, found, gpus, problems, notes)
    if devices != CPU:
        devices = _cards(devices, gpus, environment.get(VISIBLE), problems)
    base: BaseModel | None = None
    try:
        base = inspect_base(model_path, adapter_as="lora_path")
    except InputError as error:
        problems.extend(error.problems)
    count = 0 if devices == CPU else devices.count(",") + 1
    further = shlex.split(environment.get(ARGUMENTS_VARIABLE, ""))
    adapter: ServedAdapter | None = None
    try:
        lookup = read_lookup(base, towers=True) if base is not None else None
        adapter = inspect_adapter(Path(lora_path), base, lookup) if lora_path else None
    except InputError as error:
        problems.extend(error.problems)
    if base is not None:
        on_cpu = found is not None and found.cpu_build
        _check_runs(base, further, on_cpu=on_cpu, with_adapter=lora_path is not None, problems=problems)
    if base is not None and adapter is not None:
        _check_names(base, adapter, problems)
    _check_parsers(environment, problems)
    if problems or base is None or found is None:
        raise InputError(problems)
    if host not in (DEFAULT_HOST, "::1", "localhost") and not environment.get(API_KEY_VARIABLE):
        notes.append(
            f"everyone who reaches {host}:{number} can use this server; set {API_KEY_VARIABLE} to ask for a key"
        )
    names = tuple(dict.fromkeys([LORA_NAME, adapter.model_id])) if adapter else ()
    config = read_config(base.path)
    all_of_it = WITH_SENSES in further or (adapter is not None and bool(adapter.names.tower))
    text_only = is_multimodal(config) and not all_of_it
    if text_only:
        notes.append(f"{base.name} also sees or hears; it is served for text ({ARGUMENTS_VARIABLE}={WITH_SENSES})")
    dtype = "auto" if count else cpu_dtype(base, [adapter.dtype] if adapter else [])
    if adapter is not None and not count and has_delta_net(config) and adapter.dtype not in (dtype, None):
        notes.append(f"trained in {adapter.dtype}, served in {dtype}, the only one of vLLM's CPU kernel for this base")
    if (note := context_note(base, further)) is not None:
        notes.append(note)
    if (note := harmony_note(config)) is not None:
        notes.append(note)
    template = _template(base, adapter, notes)
    parsers = _parsers(base, template, environment, further)
    notes.extend(parsers.notes)
    command = build_command(
        StartOptions(
            python=found.python,
            base=base.path.resolve(),
            base_name=base.name,
            host=host,
            port=number,
            gpus=count,
            dtype=dtype,
            # On a CPU the base's context, or what the cache holds; else the base's.
            max_model_len=context_to_serve(base, None if count else "auto"),
            language_model_only=text_only,
            lora=_lora(adapter, names, spare=0 if count else SPARE_SLOTS) if adapter else None,
            template=template,
            tool_call_parser=parsers.tool_calls,
            reasoning_parser=parsers.reasoning,
            further=further,
        )
    )
    return ServePlan(
        command=command,
        environment=OFFLINE | _device_environment(devices, environment),
        host=host,
        port=number,
        base_name=base.name,
        adapter=adapter,
        names=(*names, base.name),
        notes=tuple(notes),
    )


def _port(text: str, host: str, problems: list[Problem]) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        problems.append(Problem("port", f"must be a number from 1 to 65535, got {text!r}", f"usage: {USAGE}"))
        return 0
    port = int(text)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        rule = f"cannot be listened on ({error.strerror or error})"
        problems.append(Problem(f"port {port} of {host}", rule, "stop what uses it, or give another port"))
    return port


def _devices(gpu_id: str, vllm: Vllm | None, gpus: int | None, problems: list[Problem], notes: list[str]) -> str:
    """Return `cpu`, or GPU numbers with commas between."""
    if gpu_id == CPU:
        if vllm is not None and not vllm.cpu_build:
            problems.append(
                Problem("gpu_id cpu", f"needs the CPU build of vLLM, and {vllm.python} has another", INSTALL)
            )
        return CPU
    numbers = gpu_id.split(",")
    if not all(number.isascii() and number.isdigit() for number in numbers):
        rule = "must be a GPU's number, several with commas between, or `cpu`"
        problems.append(Problem("gpu_id", f"{rule}, got {gpu_id!r}", f"usage: {USAGE}"))
        return CPU
    if vllm is None:
        return CPU
    if vllm.cpu_build:
        if gpus == 0:
            notes.append(f"gpu_id {gpu_id}: this machine has no GPU, so vLLM's CPU build serves on the CPU")
        else:
            notes.append(f"{vllm.python} is the CPU build of vLLM, so no GPU is used; VLLM_PYTHON names another")
        return CPU
    return gpu_id


def _cards(gpu_id: str, gpus: int | None, visible: str | None, problems: list[Problem]) -> str:
    """Return the CUDA_VISIBLE_DEVICES of these GPUs; they are numbered within the caller's own, `visible`."""
    numbers = [int(number) for number in gpu_id.split(",")]
    listed = listed_cards(visible) if visible is not None and gpus != 0 else None
    there = gpus if listed is None else len(listed)
    if there is not None and max(numbers) >= there:
        count = f"{there} GPU{'s' * (there != 1)}, numbered from 0" if there else "no GPU"
        rule = f"this machine has {count}" if listed is None else f"{VISIBLE}={visible} leaves {count}"
        fix = f"give numbers below {there}" if there else "for serving on the CPU make its build: `make vllm-env`"
        problems.append(Problem(f"gpu_id {gpu_id}", f"does not exist: {rule}", fix))
        return gpu_id
    cards = [listed[number] if listed is not None else str(number) for number in numbers]
    if len(set(cards)) < len(cards):
        problems.append(Problem(f"gpu_id {gpu_id}", "names a GPU twice", "name each GPU once"))
    elif len(cards) > 1 and any(card.startswith("MIG-") for card in cards):
        rule = "names several, and MIG slices cannot be joined"
        problems.append(Problem(f"gpu_id {gpu_id}", rule, "give one number"))
    return ",".join(cards)


def _check_names(base: BaseModel, adapter: ServedAdapter, problems: list[Problem]) -> None:
    if base.name in (LORA_NAME, adapter.model_id):
        rule = f"would be served as {base.name!r}, which is the adapter's name"
        problems.append(Problem(f"model {base.path}", rule, "rename its folder"))


def _check_runs(
    base: BaseModel, further: Sequence[str], *, on_cpu: bool, with_adapter: bool, problems: list[Problem]
) -> None:
    """Append why vLLM cannot run the base, or an adapter on it, as it is asked for."""
    config, where = read_config(base.path), f"model {base.path}"
    if with_adapter and (rule := why_no_lora(config, on_cpu=on_cpu)):
        fix = "serve it on a GPU, or the base alone" if on_cpu and has_experts(config) else "serve the base alone"
        problems.append(Problem(where, rule, fix))
    if not on_cpu:
        return
    if rule := why_not_on_cpu(config):
        problems.append(Problem(where, rule, "serve it on a GPU"))
    asked = value_of_flag(further, DTYPE_FLAG)
    if asked and (rule := wrong_on_cpu(config, asked)):
        problems.append(Problem(f"{ARGUMENTS_VARIABLE} {DTYPE_FLAG}", rule, f"leave it out, or give {DELTA_DTYPE}"))


def _lora(adapter: ServedAdapter, names: tuple[str, ...], *, spare: int) -> LoraOptions:
    """Plan a slot for each name, or two clients with both names would swap the adapter to and fro."""
    return LoraOptions(
        max_rank=adapter.max_rank,
        slots=len(names) + spare,
        # Only what the adapter changes is prepared: that saves memory.
        modules=adapter.modules,
        loaded=[(name, adapter.path) for name in names],
    )


def _template(base: BaseModel, adapter: ServedAdapter | None, notes: list[str]) -> Path | None:
    """Choose the template: the adapter's, with which it was trained, else the base's own (None), else the plain one."""
    own = base_template(base)
    if adapter is not None and adapter.chat_template is not None:
        if own is not None and own != adapter.chat_template:
            notes.append(
                "the adapter was trained with another chat template than the base's; the server uses the adapter's"
            )
        return adapter.path / CHAT_TEMPLATE
    if own is None:
        notes.append("the base has no chat template; the server uses the project's plain one")
        return PLAIN_TEMPLATE
    return None


def _check_parsers(environment: Mapping[str, str], problems: list[Problem]) -> None:
    for name, kind in PARSERS.items():
        value, known = environment.get(name), get_args(kind)
        if value and value not in known:
            rule = f"must be a parser that vLLM has, got {value!r}"
            problems.append(Problem(name, rule, did_you_mean(value, known, otherwise=f"they are {', '.join(known)}")))


def _parsers(base: BaseModel, template: Path | None, environment: Mapping[str, str], further: Sequence[str]) -> Parsers:
    text = template.read_text(encoding="utf-8") if template is not None else base_template(base)
    calls, reasoning = PARSERS
    asked = Asked(environment.get(calls) or None, environment.get(reasoning) or None, calls, reasoning)
    return choose_parsers(text or "", base.path, asked, further)


def _device_environment(devices: str, environment: Mapping[str, str]) -> dict[str, str]:
    if devices != CPU:
        return {VISIBLE: devices} | card_order(environment)
    return {name: value for name, value in cpu_environment(_free_memory()).items() if name not in environment}


def _free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0
