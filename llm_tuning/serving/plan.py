"""Decides how vLLM is started: device, dtype, rank, names, template. Looks at folders, starts nothing.

| Decision | Rule |
| --- | --- |
| device | the GPUs named by gpu_id; the CPU for `cpu`, or where the vLLM found is its CPU build |
| dtype on a GPU | `auto`: what the base was saved in, as far as the card has it; the proof allows for the rounding |
| dtype on the CPU | that of the training (parity.json): same digits as the trainer, and float32 costs a CPU nothing; \
without an adapter float32 if the base was saved so, else `auto` |
| rank | the adapter's, rounded up to what vLLM allows |
| chat template | the adapter's (it was trained with it), else the base's own, else the project's plain one |
"""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llm_tuning.core.files import read_json, read_text
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.adapter import ServedAdapter, inspect_adapter
from llm_tuning.models.base import CONFIG, BaseModel, inspect_base
from llm_tuning.models.layout import CHAT_TEMPLATE, TOKENIZER_CONFIG
from llm_tuning.proof.prove import LORA_NAME
from llm_tuning.serving.vllm_install import INSTALL, Vllm

USAGE = "launch_llm.sh <port> <gpu_id> <model_path> [lora_path]"
CPU = "cpu"
DEFAULT_HOST = "127.0.0.1"
PLAIN_TEMPLATE = Path(__file__).resolve().parents[1] / "data" / "plain_chat.jinja"
SPARE_SLOTS = 1
"""LoRA slots of vLLM's CPU build that stay empty. Its kernels take the slot -1 of a request for the base as the last
one (torch_ops/lora_ops.py of vLLM 0.32), and in a batch with adapters' requests the base answered as that adapter."""
KV_CACHE_GIB = (1, 16)
"""Bounds of a quarter of the free memory, which the CPU build gets for its cache; its own default takes nearly all."""
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # `python -m` puts the current folder first, and llm_tuning/ has modules with everyday names.
    "PYTHONSAFEPATH": "1",
}


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
    base: BaseModel | None = None
    try:
        base = inspect_base(model_path)
    except InputError as error:
        problems.extend(error.problems)
    adapter: ServedAdapter | None = None
    try:
        adapter = inspect_adapter(Path(lora_path), base) if lora_path else None
    except InputError as error:
        problems.extend(error.problems)
    if base is not None and adapter is not None:
        _check_names(base, adapter, problems)
    if problems or base is None or found is None:
        raise InputError(problems)
    if host not in (DEFAULT_HOST, "::1", "localhost") and not environment.get("VLLM_API_KEY"):
        notes.append(f"everyone who reaches {host}:{number} can use this server; set VLLM_API_KEY to ask for a key")
    names = tuple(dict.fromkeys([LORA_NAME, adapter.model_id])) if adapter else ()
    command = [
        *(found.python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(base.path.resolve()), "--served-model-name", base.name),
        *("--host", host, "--port", str(number)),
        *("--load-format", "safetensors"),
        *_device_arguments(devices, base, adapter),
        *(_adapter_arguments(adapter, names, spare=SPARE_SLOTS if devices == CPU else 0) if adapter else ()),
        *_template_arguments(base, adapter, notes),
        *shlex.split(environment.get("VLLM_ARGS", "")),
    ]
    return ServePlan(
        command=tuple(command),
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
    """`cpu`, or GPU numbers with commas between."""
    if gpu_id == CPU:
        if vllm is not None and not vllm.cpu_build:
            problems.append(
                Problem("gpu_id cpu", f"needs the CPU build of vLLM, and {vllm.python} has another", INSTALL)
            )
        return CPU
    numbers = gpu_id.split(",")
    if not all(number.isascii() and number.isdigit() for number in numbers):
        problems.append(Problem("gpu_id", f"must be a GPU's number or `cpu`, got {gpu_id!r}", f"usage: {USAGE}"))
        return CPU
    if vllm is None:
        return CPU
    if vllm.cpu_build:
        if gpus == 0:
            notes.append(f"gpu_id {gpu_id}: this machine has no GPU, so vLLM's CPU build serves on the CPU")
        else:
            notes.append(f"{vllm.python} is the CPU build of vLLM, so no GPU is used; VLLM_PYTHON names another")
        return CPU
    if gpus is not None and max(int(number) for number in numbers) >= gpus:
        rule = f"does not exist: this machine has {gpus} GPUs" if gpus else "does not exist: this machine has no GPU"
        problems.append(Problem(f"gpu_id {gpu_id}", rule, "for serving on the CPU make its build: `make vllm-env`"))
    return gpu_id


def _check_names(base: BaseModel, adapter: ServedAdapter, problems: list[Problem]) -> None:
    if base.name in (LORA_NAME, adapter.model_id):
        rule = f"would be served as {base.name!r}, which is the adapter's name"
        problems.append(Problem(f"model {base.path}", rule, "rename its folder"))


def _device_arguments(devices: str, base: BaseModel, adapter: ServedAdapter | None) -> list[str]:
    if devices == CPU:
        # Eager: compiling takes minutes on a CPU. `auto` length: the base's context, or what the cache holds.
        return ["--dtype", _cpu_dtype(base, adapter), "--enforce-eager", "--max-model-len", "auto"]
    count = devices.count(",") + 1
    return ["--dtype", "auto", *(("--tensor-parallel-size", str(count)) if count > 1 else ())]


def _cpu_dtype(base: BaseModel, adapter: ServedAdapter | None) -> str:
    if adapter is not None and adapter.dtype in ("float32", "bfloat16"):
        return adapter.dtype
    config = read_json(base.path / CONFIG)
    saved = config.get("dtype") or config.get("torch_dtype")
    return "float32" if saved == "float32" else "auto"


def _adapter_arguments(adapter: ServedAdapter, names: tuple[str, ...], *, spare: int) -> list[str]:
    # JSON, since a path may hold "="; a slot for each name, or two clients with both names would swap it to and fro.
    modules = [json.dumps({"name": name, "path": str(adapter.path)}) for name in names]
    sizes = ["--max-lora-rank", str(adapter.max_rank), "--max-loras", str(len(names) + spare)]
    # Only what the adapter changes is prepared for LoRA. That saves memory, and with lm_head left alone prompt
    # log-probabilities of several requests at once are right; else the CPU build ends (vllm-project/vllm#16668).
    return ["--enable-lora", *sizes, "--lora-target-modules", *adapter.modules, "--lora-modules", *modules]


def _template_arguments(base: BaseModel, adapter: ServedAdapter | None, notes: list[str]) -> list[str]:
    if adapter is not None and adapter.chat_template is not None:
        own = base_template(base)
        if own is not None and own != adapter.chat_template:
            notes.append(
                "the adapter was trained with another chat template than the base's; the server uses the adapter's"
            )
        return ["--chat-template", str(adapter.path / CHAT_TEMPLATE)]
    if base_template(base) is None:
        notes.append("the base has no chat template; the server uses the project's plain one")
        return ["--chat-template", str(PLAIN_TEMPLATE)]
    return []


def base_template(base: BaseModel) -> str | None:
    """The base's chat template, None where it has none; raises InputError where it cannot be read."""
    for name in (CHAT_TEMPLATE, "chat_template.json"):
        if (base.path / name).exists():
            try:
                return read_text(base.path / name)
            except (OSError, ValueError) as error:
                rule = f"cannot be read ({error})"
                raise InputError(Problem(f"model {base.path}: {name}", rule, "copy it again")) from None
    config = read_json(base.path / TOKENIZER_CONFIG) or {}
    template = config.get("chat_template")
    return template if isinstance(template, str) or template is None else json.dumps(template)


def _device_environment(devices: str, environment: Mapping[str, str]) -> dict[str, str]:
    if devices != CPU:
        return {"CUDA_VISIBLE_DEVICES": devices}
    wanted = {
        # Binding threads to cores makes two servers of one machine fight for the same ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(_kv_cache_gib()),
    }
    return {name: value for name, value in wanted.items() if name not in environment}


def _kv_cache_gib() -> int:
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        pages = 0
    least, most = KV_CACHE_GIB
    return max(least, min(most, pages // 4 // 2**30))
