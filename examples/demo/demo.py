"""One machine, from a JSON file to a served, proven adapter, by the documented commands: what `make demo-local` runs.

Every command line is shown as it is run, in the folder `.demo/` of the repository; what it makes stays there to be
looked at. The demo is a check as well: what each link of the chain shows is compared with what it is there to show,
and the first one that disappoints ends the demo with exit code 1.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import stages
from stages import STOP_SECONDS, Disappointed, bold, environment, expect, run, run_demo, script, stage

BASE = Path("base/tiny-python")
LAUNCHER = Path("../llm_tuning/config/llm/launch_llm.sh")
SFT, PPO = "help-desk-sft", "help-desk-ppo"
MOST, FEW = 0.5, 0.25
"""Shares of the unseen questions: wide of what was seen, since other CPUs round otherwise and train another model."""


def show() -> None:
    """All stages."""
    os.environ |= environment()
    _start_afresh()
    make_base_model()
    refuse_a_mistake()
    tune()
    compare()
    look_around()
    serve()
    say_what_is_left()


def make_base_model() -> None:
    """Stage 1."""
    stage(
        "A base model",
        "A small Llama learns Python's own documentation from nothing: about a minute, once (it is kept).",
    )
    run(f"python {script('make_base_model.py')} {BASE}")
    run(f"python {script('make_datasets.py')} data")


def refuse_a_mistake() -> None:
    """Stage 2."""
    stage(
        "Check the data",
        "answers_with_a_mistake.json has no output in row 7. The check is to refuse it with exit code 64, without "
        "loading the model; the file without the mistake is to pass.",
    )
    text = run(
        f"tune-llm validate --llm_path {BASE} --dataset_path data/answers_with_a_mistake.json", expect=64, shown=False
    )
    expect("row 7" in text and "null" in text, "the refusal names the row and what is wrong with it")
    run(f"tune-llm validate --llm_path {BASE} --dataset_path data/answers.json")


def tune() -> None:
    """Stages 3 and 4."""
    stage(
        "SFT: learn the help desk's answers",
        "The recorded answers have a house style, and two in three go on with an advertisement.",
    )
    run(f"tune-llm --config {script('config.yaml')} --model_id {SFT} --devices cpu")
    sft = report(SFT)["metrics"]
    expect(sft["tuned"]["loss"] < sft["base"]["loss"] / 2, "SFT halves the loss on held-out rows")
    stage(
        "PPO: learn from ratings, from the SFT adapter on",
        "Readers gave the same answers 5 points without the advertisement and 1 with it.",
    )
    run(
        f"tune-llm --tuning_mode ppo --llm_path {BASE} --init_adapter {SFT} --dataset_path data/ratings.jsonl "
        f"--epochs 3 --batch_size 32 --learning_rate 1e-4 --max_length 256 --experiment_name 'help desk' "
        f"--model_id {PPO} --devices cpu"
    )
    ppo = report(PPO)["metrics"]
    name = "reward_weighted_loglik"
    expect(ppo["tuned"][name] > ppo["start"][name], "PPO raises the reward-weighted log-likelihood of held-out rows")


def compare() -> None:
    """Stage 5."""
    stage(
        "Answers before and after",
        "Questions about names that no training file mentions, asked by transformers and PEFT.",
    )
    run(f"python {script('answers.py')} {BASE} data/unseen.json models/{SFT} models/{PPO} --json answers.json")
    base, sft, ppo = json.loads((stages.FOLDER / "answers.json").read_text())
    print()
    expect(base["right"] > MOST, "the base model remembers most of what it has read")
    expect(base["house_style"] < FEW and sft["house_style"] > MOST, "the house style comes with SFT")
    expect(ppo["house_style"] > MOST, "and is still there after PPO")
    expect(sft["advertised"] > MOST and ppo["advertised"] < FEW, "SFT learned to advertise, PPO to leave it")
    expect(ppo["preference"] > sft["preference"] + 1, "PPO moved likelihood from answers rated 1 to answers rated 5")


def look_around() -> None:
    """Stage 6."""
    stage("The held-out table and the registry", "What a run leaves behind: a report, a manifest, an index over them.")
    run(f"tune-llm report {PPO}")
    run("tune-llm registry list")
    run("tune-llm registry verify")
    models = json.loads(run("tune-llm registry list --json", quiet=True))["models"]
    expect({SFT, PPO} <= {model["model_id"] for model in models}, "both adapters are registered")


def serve() -> None:
    """Stage 7: the server ends with this function, however it ends."""
    port = _free_port()
    stage(
        "Serve the adapter and prove it",
        "vLLM is started, then asked whether its answers move as the training moved them: a LoRA that is loaded and "
        "changes nothing would be found out here. About half a minute.",
    )
    with _stopped_at_the_end(stages.FOLDER / "logs" / f"launch_llm_{port}.pid"):
        run(f"bash {LAUNCHER} {port} 0 {BASE} models/{PPO}")
        prove = f"tune-llm prove --url http://127.0.0.1:{port} --adapter models/{PPO}"
        proof = json.loads(run(f"{prove} --json", quiet=True))
        expect(proof["verdict"] == "effective", "the served adapter is proven effective")
        question = json.loads((stages.FOLDER / "data/unseen.json").read_text())[0]["prompt"]
        served = call(port, "lora", question)
        bare = call(port, BASE.name, question)
        expect("Read more: help(" in served, "`lora` answers in house style")
        expect("Read more: help(" not in bare, "the base beside it does not")


def say_what_is_left() -> None:
    """The end."""
    stage(
        "What is left to look at",
        f"Everything is in {stages.FOLDER}; the next demo starts afresh, but keeps the base model.",
    )
    for what, command in {
        "the model card, with the loss curve beside it": f"less models/{PPO}/README.md",
        "the runs in MLflow": "mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db",
        "the adapter served again": f"bash {LAUNCHER} 8000 0 {BASE} models/{PPO}",
    }.items():
        print(f"  {what}:\n      {command}")


def report(model_id: str) -> dict[str, Any]:
    """The result of a run as JSON."""
    return dict(json.loads(run(f"tune-llm report {model_id} --json", quiet=True)))


def call(port: int, model: str, question: str) -> str:
    """Ask the server as any OpenAI client would, and print both."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    messages = [{"role": "user", "content": question}]
    body = json.dumps({"model": model, "messages": messages, "temperature": 0, "max_tokens": 96})
    command = ["curl", url, "-H", "Content-Type: application/json", "-d", body]
    print(f"\n{bold('$ ' + shlex.join(command))}", flush=True)
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine, past any proxy
    with opener.open(request, timeout=120) as reply:
        answer = str(json.load(reply)["choices"][0]["message"]["content"])
    print(answer, flush=True)
    return answer


@contextmanager
def _stopped_at_the_end(pid_file: Path) -> Iterator[None]:
    """End the server as its own message says, `kill "$(cat PID_FILE)"`, and wait until its last process has gone."""
    try:
        yield
    finally:
        if pid_file.exists():
            group = int(pid_file.read_text())
            print(f"\n{bold(f'$ kill {group}')}", flush=True)
            with suppress(ProcessLookupError):
                os.kill(group, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while _runs(group) and time.monotonic() < deadline:
                time.sleep(0.1)
            if _runs(group):
                raise Disappointed(f"vLLM (process {group}) is still there")
            print("  [seen] the server has ended")


def _runs(group: int) -> bool:
    """Whether a process of the group is left; vLLM's workers are in the group of the first one."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_afresh() -> None:
    """Everything of an earlier demo goes, except the base model."""
    for name in ("data", "models", "mlruns", "logs"):
        shutil.rmtree(stages.FOLDER / name, ignore_errors=True)
    stages.FOLDER.mkdir(exist_ok=True)
    folder = stages.FOLDER
    print(f"The demo works in {folder}. There, every command below can be typed after: source ../.venv/bin/activate")


if __name__ == "__main__":
    sys.exit(run_demo(show))
