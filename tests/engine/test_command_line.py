"""Every command that the plans can make, given to vLLM's own parser; and what its memory of adapters does.

No engine is started: one process of vLLM's environment answers for all commands.
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from annotated_types import Ge, Le

from llm_tuning.api.inference_service import ServiceResourcesSpec, VllmSpec
from llm_tuning.engines.vllm import command as command_module
from llm_tuning.engines.vllm.adapter import ALLOWED_RANKS, inspect_adapter
from llm_tuning.engines.vllm.environment import (
    CACHE_ROOT,
    MANAGED,
    MODEL_RUNNER_VARIABLE,
    OFFLINE,
    cpu_environment,
)
from llm_tuning.engines.vllm.install import Vllm
from llm_tuning.engines.vllm.pod import Pod, plan_pod
from llm_tuning.models.base import inspect_base
from llm_tuning.serving.plan import plan_serving
from tests.support.plain_base import make_plain_adapter
from tests.support.vllm_server import VLLM_PYTHON, free_port, require_vllm

GPUS = (0, 1, 2, *(bound.le for bound in ServiceResourcesSpec.model_fields["gpus"].metadata if isinstance(bound, Le)))
NO_FLAGS = {"max_choices", "model_runner_v2"}
"""Fields of spec.vllm for the agent, and for the engine's environment."""
PARSERS = {"tool_call_parser", "reasoning_parser"}

ANSWER = """
import json, sys
from types import SimpleNamespace
from vllm.config.lora import LoRAConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.lora.model_manager import AdapterLRUCache, LRUCacheLoRAModelManager
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = make_arg_parser(FlexibleArgumentParser())

def check(arguments):
    try:
        parsed = parser.parse_args(arguments)
        validate_parsed_serve_args(parsed)
        engine = AsyncEngineArgs.from_cli_args(parsed)
        if engine.enable_lora:
            names = ("max_lora_rank", "max_loras", "max_cpu_loras")
            LoRAConfig(**{name: getattr(engine, name) for name in names})
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return ""

class Manager(LRUCacheLoRAModelManager):
    def __init__(self, capacity):
        self.lora_config = SimpleNamespace(max_cpu_loras=capacity)
        self._registered_adapters = AdapterLRUCache(capacity, lambda key: None)
    def _add_adapter(self, lora):
        self._registered_adapters[lora.id] = lora
    def deactivate_adapter(self, key): pass
    def activate_adapter(self, key): pass

class Worker(LRUCacheWorkerLoRAManager):
    def __init__(self, capacity):
        self._adapter_manager, self.read = Manager(capacity), []
    def _load_adapter(self, request):
        self.read.append(request.lora_int_id)
        return SimpleNamespace(id=request.lora_int_id)

def reads(capacity, uses):
    worker = Worker(capacity)
    for number in uses:
        worker.add_adapter(SimpleNamespace(lora_int_id=number, load_inplace=False))
    return worker.read

given = json.load(sys.stdin)
import vllm.envs
ranks = next(action.choices for action in parser._actions if "--max-lora-rank" in action.option_strings)
print(json.dumps({
    "errors": [check(arguments) for arguments in given["commands"]],
    "ranks": list(ranks),
    "unknown": sorted(set(given["variables"]) - set(vllm.envs.environment_variables)),
    "reads": [reads(*case) for case in given["memory"]],
}))
"""
MEMORY = [(3, [1, 2, 3, 4, 1]), (3, [1, 2, 3, 1, 4, 1])]
"""For how many adapters, and adapters by number in the order of their use."""
WRONG = {
    "rank": ["--enable-lora", "--max-lora-rank", "24"],
    "memory": ["--enable-lora", "--max-loras", "4", "--max-cpu-loras", "2"],
    "flag": ["--no-such-flag"],
}

VARIABLES = [
    name for name in (MODEL_RUNNER_VARIABLE, *CACHE_ROOT, *MANAGED, *OFFLINE, *cpu_environment(0)) if "VLLM" in name
]


def bounds(name: str) -> list[Any]:
    """Every value that a field of spec.vllm may have, or its least and greatest one."""
    field = VllmSpec.model_fields[name]
    [kind] = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    if kind is bool:
        return [True, False]
    if name in PARSERS:
        found = [*get_args(kind)[:2], get_args(kind)[-1]]  # that vLLM has them all is test_parsers.py's
    elif values := get_args(kind):
        metadata = getattr(kind, "__metadata__", None)
        found = list(values) if metadata is None else _bounds(metadata)
    else:
        found = _bounds(field.metadata)
    assert found, name
    return found


def _bounds(metadata: tuple[Any, ...] | list[Any]) -> list[Any]:
    inner = [part for entry in metadata for part in getattr(entry, "metadata", [entry])]
    return [bound.ge if isinstance(bound, Ge) else bound.le for bound in inner if isinstance(bound, Ge | Le)]


FIELDS = {name: bounds(name) for name in VllmSpec.model_fields if name not in NO_FLAGS}


@pytest.fixture(scope="module")
def bare_base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A base without a chat template."""
    folder = tmp_path_factory.mktemp("base") / "bare"
    shutil.copytree(tiny_base, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture(scope="module")
def seeing_base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A base whose class also sees; by its config alone, for no engine is started."""
    folder = tmp_path_factory.mktemp("base") / "seeing"
    shutil.copytree(tiny_base, folder)
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": json.loads((folder / "config.json").read_text()) | {"model_type": "gemma3_text"},
        "vision_config": {"hidden_size": 32},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "ft_sft_tiny"
    return make_plain_adapter(folder, tiny_base, rank=24, chat_template="{{ messages }}")


@pytest.fixture(scope="module")
def pod_commands(
    tiny_base: Path, bare_base: Path, seeing_base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Any]:
    """(settings, command) of pods: each field at each of its values, with each number of GPUs."""
    scratch = tmp_path_factory.mktemp("scratch")
    served = [inspect_adapter(adapter, inspect_base(tiny_base))]
    one_by_one = [{name: value} for name, values in FIELDS.items() for value in values]
    settings = [{}, *one_by_one, {name: values[-1] for name, values in FIELDS.items()}]

    def made() -> Iterator[Any]:
        for gpus, fields in itertools.product(GPUS, settings):
            for base, adapters, wanted in (
                (tiny_base, served, 1),
                (bare_base, [], 0),
                (seeing_base, [], 0),
                (tiny_base, served, 2048),
            ):
                pod = Pod(
                    base=inspect_base(base),
                    base_name="base",
                    base_hash="",
                    base_path="base",
                    settings=VllmSpec(**fields),
                    gpus=gpus,
                    memory_bytes=2**34,
                    port=8001,
                )
                yield fields, plan_pod(pod, adapters, wanted=wanted, rank=16, scratch=scratch).command

    return list(made())


@pytest.fixture(scope="module")
def serving_commands(tiny_base: Path, bare_base: Path, seeing_base: Path, adapter: Path) -> list[Any]:
    """Commands of `launch_llm.sh`."""
    return [
        plan_serving(
            str(free_port()),
            gpu_id,
            str(base),
            str(lora) if lora else None,
            environment={"HOST": host, "VLLM_ARGS": further, "VLLM_API_KEY": "k"},
            vllm=Vllm("python", cpu_build=gpu_id == "cpu"),
            gpus=8,
        ).command
        for gpu_id, (base, lora), (host, further) in itertools.product(
            ("cpu", "0", "0,1", "0,1,2,3,4,5,6,7"),
            ((tiny_base, None), (tiny_base, adapter), (bare_base, None), (seeing_base, None)),
            (("127.0.0.1", ""), ("0.0.0.0", "--max-model-len 4096 --gpu-memory-utilization 0.8")),
        )
    ]


@pytest.fixture(scope="module")
def answer(pod_commands: list[Any], serving_commands: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What vLLM says of all commands and of uses of its memory."""
    require_vllm()
    commands = [list(command[3:]) for command in [*(command for _, command in pod_commands), *serving_commands]]
    given = {"commands": [*commands, *WRONG.values()], "memory": MEMORY, "variables": VARIABLES}
    done = subprocess.run(
        [VLLM_PYTHON, "-c", ANSWER],
        input=json.dumps(given),
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path_factory.mktemp("home"))} | OFFLINE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_vllm_takes_every_command(pod_commands: list[Any], serving_commands: list[Any], answer: Any) -> None:
    commands = [*(command for _, command in pod_commands), *serving_commands]
    errors = answer["errors"][: len(commands)]
    assert len(errors) == len(commands) > 300
    assert {error: command for error, command in zip(errors, commands, strict=True) if error} == {}


def test_vllm_refuses_a_wrong_command(answer: Any) -> None:
    refused = dict(zip(WRONG, answer["errors"][-len(WRONG) :], strict=True))
    assert [name for name, error in refused.items() if not error] == []


def test_no_flag_and_no_field_is_left_out(pod_commands: list[Any], serving_commands: list[Any]) -> None:
    """Whoever adds a flag or a field adds a case here."""
    written = set(re.findall(r'"(--[a-z-]+)"', inspect.getsource(command_module)))
    made = {word for command in [*(c for _, c in pod_commands), *serving_commands] for word in command}
    assert written - made == set()
    plain = {command for fields, command in pod_commands if not fields}
    assert {name for fields, command in pod_commands if command not in plain for name in fields} == set(FIELDS)


def test_vllm_knows_every_variable_of_its_name(answer: Any) -> None:
    assert len(VARIABLES) > 5
    assert answer["unknown"] == []


def test_the_ranks_are_those_of_vllm(answer: Any) -> None:
    assert answer["ranks"] == [1, *ALLOWED_RANKS]


def test_vllm_forgets_the_adapter_that_was_used_longest_ago(answer: Any) -> None:
    """What the agent relies on where it uses each loaded adapter before a load."""
    assert answer["reads"] == [[1, 2, 3, 4, 1], [1, 2, 3, 4]]
