"""`launch_llm.sh`: what it refuses, what it decides, and one real server from start to stop."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import llm_tuning
from llm_tuning.engines.vllm.adapter import inspect_adapter
from llm_tuning.engines.vllm.command import PLAIN_TEMPLATE
from llm_tuning.engines.vllm.install import Vllm
from llm_tuning.errors import InputError
from llm_tuning.models.base import inspect_base
from llm_tuning.serving.plan import ServePlan, plan_serving
from llm_tuning.serving.server_process import ServerProcess
from tests.support.lora_adapters import PROBE_TEXTS, copy_adapter, make_adapter
from tests.support.page_runs import texts
from tests.support.vllm_server import READY_SECONDS, VLLM_PYTHON, free_port, require_vllm

PACKAGE = Path(llm_tuning.__file__).parent
CPU_BUILD = Vllm(str(VLLM_PYTHON), cpu_build=True)
CUDA_BUILD = Vllm("/opt/vllm/bin/python", cpu_build=False)
SHORT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A rank-24 adapter of the base, trained with another chat template than the base's."""
    folder = tmp_path_factory.mktemp("models") / "ft_sft_tiny"
    return make_adapter(folder, tiny_base, b_scale=0.05, rank=24, chat_template=SHORT_TEMPLATE)


def launch(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script from the documented folder."""
    return launch_line(shlex.join(["bash", "config/llm/launch_llm.sh", *map(str, arguments)]), **environment)


def launch_line(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", line]
    env = dict(os.environ) | {"LAUNCH_LOG_DIR": str(Path.cwd() / "logs")} | environment
    return subprocess.run(command, cwd=PACKAGE, env=env, capture_output=True, text=True, check=False)


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


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_wrong_usage_names_the_documented_line() -> None:
    run = launch()
    assert run.returncode == 64
    assert "launch_llm.sh <port> <gpu_id> <model_path> [lora_path]" in run.stderr
    assert launch(8000, "cpu", "m", "a", "more").returncode == 64


def test_all_problems_are_said_together(tmp_path: Path) -> None:
    run = launch("80x", "first", tmp_path / "no-model", tmp_path / "no-adapter")
    assert run.returncode == 64
    for words in ("port", "gpu_id", "no-model does not exist", "no-adapter: is not a folder"):
        assert words in run.stderr.replace(": does", " does")
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "logs").exists()


def test_a_busy_port_is_refused(tiny_base: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        run = launch(port, "cpu", tiny_base, VLLM_PYTHON=sys.executable)
    assert run.returncode == 64
    assert f"port {port} of 127.0.0.1: cannot be listened on (Address already in use)" in run.stderr


def test_a_port_that_another_launch_is_starting_on_is_refused_and_its_files_stay(tmp_path: Path) -> None:
    """vLLM listens only after seconds: until then the port looks free."""
    first = ServerProcess(tmp_path, port=8000)
    first.start([sys.executable, "-c", "import signal; signal.pause()"], os.environ)
    try:
        with pytest.raises(InputError, match="port 8000: is taken: another launch"):
            ServerProcess(tmp_path, port=8000)
        assert first.pid_file.exists()
        first.release()
        with pytest.raises(InputError, match="port 8000: is taken: another launch"):
            ServerProcess(tmp_path, port=8000)
    finally:
        first.stop()
    ServerProcess(tmp_path, port=8000).release()


def test_a_pid_file_whose_number_is_another_process_s_now_is_no_server(tmp_path: Path) -> None:
    """As after a machine was switched off: the files are there, and the pid leads a group that is not ours."""
    other = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    try:
        (tmp_path / "launch_llm_8000.pid").write_text(f"{other.pid}\n")
        (tmp_path / "launch_llm_8000.lock").touch()
        again = ServerProcess(tmp_path, port=8000)
        assert again.left_behind
        assert not again.pid_file.exists(), "nobody may be told to kill that number"
        again.release()
        assert not ServerProcess(tmp_path, port=8000).left_behind
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_named_python_without_vllm_is_refused_not_replaced(tiny_base: Path) -> None:
    run = launch(free_port(), "cpu", tiny_base, VLLM_PYTHON=sys.executable)
    assert run.returncode == 64
    assert f"VLLM_PYTHON: {sys.executable} does not import vllm" in run.stderr


def test_without_vllm_it_says_how_to_install_it(tmp_path: Path, tiny_base: Path) -> None:
    """A checkout without .venv-vllm, and a PATH whose python has no vLLM."""
    checkout = tmp_path / "checkout"
    shutil.copytree(PACKAGE, checkout / "llm_tuning", ignore=shutil.ignore_patterns("__pycache__"))
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python3").symlink_to(sys.executable)
    for name in ("bash", "dirname"):
        (programs / name).symlink_to(str(shutil.which(name)))
    # A link to a virtual environment's python loses its packages: httpx comes by path.
    site = str(Path(httpx.__file__).parents[1])
    run = subprocess.run(
        [str(programs / "bash"), "config/llm/launch_llm.sh", str(free_port()), "0", str(tiny_base)],
        cwd=checkout / "llm_tuning",
        env={"PATH": str(programs), "PYTHONPATH": site},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 64, run.stderr
    assert "make vllm-env" in run.stderr
    assert "VLLM_PYTHON" in run.stderr


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


# --- decisions --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("gpu_id", "vllm", "gpus", "words"),
    [
        ("0", CUDA_BUILD, 0, "this machine has no GPU"),
        ("2", CUDA_BUILD, 2, "this machine has 2 GPUs"),
        ("cpu", CUDA_BUILD, 1, "needs the CPU build of vLLM"),
        ("first", CUDA_BUILD, 1, "must be a GPU's number or `cpu`, got 'first'"),
    ],
)
def test_a_device_that_is_not_there_is_refused(gpu_id: str, vllm: Vllm, gpus: int, words: str, tiny_base: Path) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        plan(tiny_base, gpu_id=gpu_id, vllm=vllm, gpus=gpus)


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


# --- real servers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def leftovers() -> Iterator[list[int]]:
    """Process groups that a test started; what is left of them afterwards is killed."""
    groups: list[int] = []
    yield groups
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue


def running(group: int) -> list[str]:
    """Command names of the processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, _, process_group = rest.split()[:3]
        if int(process_group) == group and state != "Z":
            found.append(name)
    return found


def wait_until_ended(group: int) -> None:
    deadline = time.monotonic() + 60
    while running(group) and time.monotonic() < deadline:
        time.sleep(0.1)


def with_own(documented: str, in_their_place: dict[str, Any]) -> str:
    """A line of the documentation with what it is about here."""
    for word, own in in_their_place.items():
        assert word in documented
        documented = documented.replace(word, str(own))
    return documented


@pytest.mark.vllm
def test_serve_call_and_stop(adapter: Path, tiny_base: Path, tmp_path: Path, leftovers: list[int]) -> None:
    require_vllm()
    port = free_port()
    folder, documented = texts("docs/serving.md", "Serving on one machine, and proving it")
    assert folder == f"cd {PACKAGE.name}"
    in_their_place = {
        "8000": port,
        "base/qwen3-0.6b": tiny_base,
        "../models/ft_sft_qwen3-0.6b_1795551246_3fa94c": adapter,
    }
    line = with_own(documented, in_their_place)
    run = launch_line(line, LAUNCH_TIMEOUT_SECONDS=str(READY_SECONDS), HTTP_PROXY="http://127.0.0.1:9")
    print(run.stdout, run.stderr)
    pid_file = tmp_path / "logs" / f"launch_llm_{port}.pid"
    group = int(pid_file.read_text())
    leftovers.append(group)
    assert run.returncode == 0, run.stderr
    assert "proof: effective" in run.stdout
    assert "another chat template" in run.stderr

    url = f"http://127.0.0.1:{port}"
    answers = {}
    for name in ("lora", "ft_sft_tiny", "tiny-llama"):
        body = {"model": name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0}
        response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
        assert response.status_code == 200, response.text
        answers[name] = response.json()["choices"][0]["message"]["content"]
    assert answers["lora"] == answers["ft_sft_tiny"] != answers["tiny-llama"]
    [asking] = texts("docs/serving.md", "What is served under which name")
    asked = subprocess.run(["bash", "-c", with_own(asking, {"8000": port})], capture_output=True, text=True, check=True)
    assert json.loads(asked.stdout)["choices"][0]["message"]["content"]

    # Proofs of several clients at once: what ends a server whose lm_head is prepared for LoRA.
    ids = json.loads((adapter / "parity.json").read_text())["probes"][0]["token_ids"]
    body = {"model": "lora", "prompt": ids, "max_tokens": 8, "prompt_logprobs": 0}
    with ThreadPoolExecutor(8) as pool:
        codes = list(
            pool.map(lambda _: httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code, range(16))
        )
    assert codes == [200] * 16

    log = (tmp_path / "logs" / f"launch_llm_{port}.log").read_text()
    assert not any(question in log for question, _ in PROBE_TEXTS)  # no dataset text in logs

    call, stop = (line.partition(": ")[2] for line in run.stdout.splitlines()[-2:])
    called = subprocess.run(
        ["bash", "-c", f"{call} --silent --noproxy '*'"], capture_output=True, text=True, check=True
    )
    assert json.loads(called.stdout)["model"] == "lora"
    assert len(running(group)) >= 3
    subprocess.run(["bash", "-c", stop], check=True)
    wait_until_ended(group)
    assert running(group) == []


@pytest.mark.vllm
def test_an_adapter_that_does_nothing_is_not_left_served(
    adapter: Path, tiny_base: Path, tmp_path: Path, leftovers: list[int]
) -> None:
    """Its weights were zeroed after training; the manifest of this one does not tell."""
    from safetensors.torch import load_file, save_file

    require_vllm()
    zeroed = copy_adapter(adapter, tmp_path / "zeroed")
    weights = load_file(zeroed / "adapter_model.safetensors")
    save_file({k: w * 0 if "lora_B" in k else w for k, w in weights.items()}, zeroed / "adapter_model.safetensors")
    port = free_port()
    run = launch(port, "cpu", tiny_base, zeroed, LAUNCH_TIMEOUT_SECONDS=str(READY_SECONDS))
    print(run.stdout, run.stderr)
    assert run.returncode == 1
    assert "WARNING: proof: no effect" in run.stderr
    assert "the server was stopped" in run.stderr
    assert not (tmp_path / "logs" / f"launch_llm_{port}.pid").exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)


@pytest.mark.vllm
def test_a_server_that_dies_shows_the_end_of_its_log(tiny_base: Path, tmp_path: Path) -> None:
    require_vllm()
    port = free_port()
    run = launch(port, "cpu", tiny_base, VLLM_ARGS="--no-such-flag")
    assert run.returncode == 1
    assert "vLLM ended before it answered (exit code 2)" in run.stderr
    assert "unrecognized arguments: --no-such-flag" in run.stderr
    assert not (tmp_path / "logs" / f"launch_llm_{port}.pid").exists()


@pytest.mark.vllm
def test_a_server_that_is_not_ready_in_time_is_stopped(tiny_base: Path, tmp_path: Path) -> None:
    require_vllm()
    port = free_port()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"launch_llm_{port}.pid").write_text(f"{os.getpid()}\n")  # of before a power cut
    run = launch(port, "cpu", tiny_base, LAUNCH_TIMEOUT_SECONDS="1")
    assert run.returncode == 75
    assert f"launch_llm_{port}.pid was left behind by a server that has ended; this one starts anew" in run.stderr
    assert "did not answer within 1 s" in run.stderr
    assert not (tmp_path / "logs" / f"launch_llm_{port}.pid").exists()
    assert not any(str(port) in shlex.join(command) for command in commands_running())


@pytest.mark.vllm
def test_a_stop_signal_while_waiting_ends_vllm_too(tiny_base: Path, tmp_path: Path, leftovers: list[int]) -> None:
    require_vllm()
    port = free_port()
    command = ["bash", "config/llm/launch_llm.sh", str(port), "cpu", str(tiny_base)]
    env = dict(os.environ) | {"LAUNCH_LOG_DIR": str(tmp_path)}
    launcher = subprocess.Popen(
        command, cwd=PACKAGE, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pid_file = tmp_path / f"launch_llm_{port}.pid"
    while launcher.poll() is None and not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.05)
    group = int(pid_file.read_text())
    leftovers.append(group)
    launcher.terminate()
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 75
    assert "try again (Stopped)" in errors
    assert running(group) == []


def commands_running() -> Iterator[list[str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace").split("\0")
        except OSError:
            continue
