"""Several devices: real ranks under torchrun's agent, started by the real command; exit codes that survive them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.run.rank import RankFailure
from tests.support.train_run import make_run

WORKER = "llm_tuning.run.rank"
LOOPBACK = "0100007F"
"""127.0.0.1, as /proc/net has it."""


@pytest.fixture
def rows() -> Path:
    path = Path("rows.json").absolute()
    made = [
        {"prompt": f"What is {i}?", "output": f"It is {i}{'!' * (i % 5)}.", "reward": float(i % 4)} for i in range(60)
    ]
    path.write_text(json.dumps(made))
    return path


def command(base: Path, rows: Path, **flags: object) -> list[str]:
    fixed: dict[str, object] = {
        "llm_path": base,
        "dataset_path": rows,
        "model_id": "m",
        "devices": "cpu,cpu",
        "batch_size": 4,
        "lora_rank": 4,
        "lora_dropout": 0,
        "learning_rate": 0.003,
        "precision": "fp32",
        "tracking_uri": "mlruns",
    }
    parts = [str(part) for name, value in (fixed | flags).items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "llm_tuning.codes.tune_llm", *parts]


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture
def started() -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    """Starts commands, and ends what is left of them."""
    processes: list[subprocess.Popen[str]] = []

    def start(argv: list[str]) -> subprocess.Popen[str]:
        processes.append(subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ranks_in(folder: Path) -> dict[str, int]:
    """Process ids of the ranks whose current folder is `folder`, by RANK."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if WORKER in (entry / "cmdline").read_text() and (entry / "cwd").resolve() == folder.resolve():
                variables = dict(part.split("=", 1) for part in (entry / "environ").read_text().split("\0") if part)
                found[variables["RANK"]] = int(entry.name)
        except (OSError, KeyError):  # it has ended meanwhile
            continue
    return found


def listening(pid: int) -> set[str]:
    """Addresses on which the process listens, as /proc/net has them."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            sockets.add(str(descriptor.readlink()))
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}


def wait_for(what: str, done: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


def steps_logged(work: Path = Path("models/.work/m")) -> int:
    path = work / "metrics.jsonl"
    return path.read_text().count("train/loss") if path.exists() else 0


def losses(model: Path) -> list[float]:
    lines = map(json.loads, (model / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_run_tuning_in_a_script_gives_the_curve_of_one_process_with_the_double_batch(
    tiny_base: Path, rows: Path, started: Callable[[list[str]], subprocess.Popen[str]]
) -> None:
    """With its base in two parts. It leaves the script as it was: its main module runs once, its signal handlers and
    environment are its own.
    """
    Path("script.py").write_text(
        "import os, signal\n"
        "from pathlib import Path\n"
        "from llm_tuning.codes.tune_llm import run_tuning\n"
        "with Path('imported').open('a') as log:\n"
        "    log.write('once\\n')\n"
        "def found():\n"
        "    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]\n"
        "    return handlers, set(os.environ) - {'KMP_INIT_AT_FORK', 'KMP_DUPLICATE_LIB_OK'}\n"
        "before = found()\n"
        f"made = run_tuning({str(tiny_base)!r}, {str(rows)!r}, devices='cpu,cpu', model_id='m', batch_size=4,\n"
        "    lora_rank=4, lora_dropout=0, learning_rate=0.003, epochs=2, output_dir='models of $$ ${local_rank}',\n"
        "    precision='fp32', sharding='full', tracking_uri='http://somebody:secret@127.0.0.1:9')\n"
        "assert found() == before, found()\n"
        "Path('made').write_text(made)\n"
    )
    process = started([sys.executable, "script.py"])
    work = Path("models of $$ ${local_rank}/.work/m")
    wait_for("a step", lambda: steps_logged(work) >= 1 or process.poll() is not None)
    ranks = ranks_in(Path())
    assert sorted(ranks) == ["0", "1"]
    assert set().union(*(listening(pid) for pid in [process.pid, *ranks.values()])) <= {LOOPBACK}
    assert not any("secret" in Path(f"/proc/{pid}/cmdline").read_text() for pid in ranks.values())
    _, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert "torchrun" not in said
    assert "signal" not in said, "the agent's own warnings"
    assert Path("made").read_text() == "m"
    assert Path("imported").read_text() == "once\n"
    assert not ranks_in(Path())
    two = Path("models of $$ ${local_rank}/m")
    assert json.loads((two / "model.json").read_text())["devices"] == ["cpu", "cpu"]
    one = run(command(tiny_base, rows, devices="cpu", batch_size=8, epochs=2, model_id="one"))
    assert one.returncode == 0, one.stderr
    assert len(losses(two)) == 16
    assert losses(two) == pytest.approx(losses(Path("models/one")), abs=1e-5)


WHAT_A_RANK_SEES = """
import json, os, sys
from pathlib import Path
from llm_tuning.trainers.parallel import gather_objects, process_group

rank = int(os.environ["RANK"])
with process_group(Path(os.environ["LLM_TUNING_RENDEZVOUS"]), rank=rank, world=2, device="cpu"):
    seen = gather_objects(dict(os.environ))
if rank == 0:
    print(json.dumps(seen), file=Path(sys.argv[1]).open("w"))
"""


def test_each_rank_sees_its_own_card_alone_and_meets_the_others_on_a_local_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Real processes, joined by gloo as this machine has no GPU; the first two of three visible cards are asked for."""
    from llm_tuning.run import launch
    from llm_tuning.trainers import gpu, parallel

    run = make_run(tmp_path / "claim/models/.work/m", tmp_path, devices=["cuda:2", "cuda:0"])
    run.work.mkdir(parents=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-8932f937,MIG-fae9f4ac")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(gpu.torch.cuda, "device_count", lambda: 3)
    started = parallel.run_ranks
    Path("seen.py").write_text(WHAT_A_RANK_SEES)

    def run_ranks(_arguments: list[str], **options: Any) -> dict[int, RankFailure]:
        return started(["seen.py", "seen.json"], **options)

    monkeypatch.setattr(parallel, "run_ranks", run_ranks)
    launch.launch(run.spec)
    first, second = json.loads(Path("seen.json").read_text())
    assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("MIG-fae9f4ac", "4")
    for rank in (first, second):
        assert rank["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
        assert rank["GLOO_SOCKET_IFNAME"] == rank["NCCL_SOCKET_IFNAME"] == "lo"
        rendezvous = Path(rank["LLM_TUNING_RENDEZVOUS"])
        assert rendezvous.is_relative_to(tempfile.gettempdir())
        assert not rendezvous.is_relative_to(run.work)
        assert not rendezvous.parent.exists()  # it goes with the run
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,GPU-8932f937,MIG-fae9f4ac"


@pytest.mark.parametrize(("sharding", "own", "found"), [("full", None, "1"), ("full", "0", None), ("none", None, None)])
def test_ranks_on_cpus_gather_a_divided_base_into_huge_pages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sharding: str, own: str | None, found: str | None
) -> None:
    from llm_tuning.run import launch
    from llm_tuning.trainers import parallel

    seen: list[dict[str, str]] = []

    def run_ranks(_arguments: list[str], *, environments: list[dict[str, str]], **_: Any) -> dict[int, RankFailure]:
        seen.extend(environments)
        return {}

    monkeypatch.setattr(parallel, "run_ranks", run_ranks)
    if own is not None:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", own)  # a user's own word stands
    run = make_run(tmp_path / "m", tmp_path, devices=["cpu", "cpu"], training={"sharding": sharding})
    run.work.mkdir(parents=True)
    launch.launch(run.spec)
    assert [rank.get("THP_MEM_ALLOC_ENABLE") for rank in seen] == [found, found]


def test_a_killed_rank_is_named_a_stop_ends_all_with_75_and_the_next_start_goes_on(
    tiny_base: Path, rows: Path, started: Callable[[list[str]], subprocess.Popen[str]]
) -> None:
    argv = command(tiny_base, rows, tuning_mode="ppo", epochs=4, save_steps=4)
    process = started(argv)
    wait_for("five steps", lambda: steps_logged() >= 5)
    os.kill(ranks_in(Path())["1"], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "rank 1 of 2 was ended by SIGKILL; the kernel does so when memory runs out" in said
    assert "Traceback" not in said
    assert not ranks_in(Path())
    assert not list(Path("models").glob("[!.]*/"))

    process = started(argv)
    before = steps_logged()
    wait_for("a step more", lambda: steps_logged() > before)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "try again (Stopped)" in said
    assert "Traceback" not in said
    assert not ranks_in(Path())
    stopped_at = steps_logged()
    newest = Path(f"models/.work/m/checkpoints/checkpoint-{stopped_at}")
    os.truncate(next(newest.glob("*.safetensors")), 1000)  # every rank must go on from the older one

    again = run(argv)
    assert again.returncode == 0, again.stderr
    assert f"{newest} is damaged" in again.stderr
    assert "resuming from checkpoint-" in again.stderr
    one = run(command(tiny_base, rows, tuning_mode="ppo", epochs=4, devices="cpu", batch_size=8, model_id="one"))
    assert one.returncode == 0, one.stderr
    assert len(losses(Path("models/m"))) == 32  # no step twice, none left out
    assert losses(Path("models/m")) == pytest.approx(losses(Path("models/one")), abs=1e-4)


def test_bad_input_that_only_the_ranks_see_ends_with_64(tiny_base: Path, rows: Path) -> None:
    done = run(command(tiny_base, rows, lora_target_modules="no_such_module"))
    assert done.returncode == 64, done.stderr
    assert done.stderr.count("lora.targetModules") == 1
    assert "Traceback" not in done.stderr
    assert not Path("models").exists()


def test_no_rank_outlives_its_parent_and_a_stop_finds_ranks_that_have_just_started(
    tiny_base: Path, rows: Path, started: Callable[[list[str]], subprocess.Popen[str]]
) -> None:
    def start() -> subprocess.Popen[str]:
        process = started(command(tiny_base, rows, epochs=500))
        wait_for("two ranks", lambda: len(ranks_in(Path())) == 2)
        return process

    killed = start()
    killed.kill()
    killed.wait()
    wait_for("the end of the ranks", lambda: not ranks_in(Path()), seconds=10)

    stopped = start()
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 75, said
    assert "try again (Stopped)" in said
    assert not ranks_in(Path())

    impatient = start()
    for pid in ranks_in(Path()).values():
        os.kill(pid, signal.SIGSTOP)  # hung: they do not see the first Ctrl-C
    for _ in range(2):
        impatient.send_signal(signal.SIGINT)
        time.sleep(1)
    _, said = impatient.communicate(timeout=20)
    assert impatient.returncode == 130, said
    assert "Traceback" not in said
    assert not ranks_in(Path())
