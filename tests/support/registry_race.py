"""Many processes publish and register at once while a third of them is killed; run as a script by test_registry_race.

Prints one JSON object: what was killed where, and everything that went wrong. The processes are forked from this one,
which has imported the registry and nothing else, so that they really start together.

usage: python registry_race.py MODELS_DIR SEED ROUNDS WRITERS KILLS
KILLS processes of each round are killed, at random moments but for one, which waits for it between publishing and
registering; with 0 the index must be complete without a further command.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from llm_tuning.models.manifest import file_hashes, read_manifest
from llm_tuning.models.publish import is_whole, publish
from llm_tuning.models.registry import Registry
from tests.support.models import make_manifest, make_stage

BY_HAND = {"model_id": "by-hand", "note": "in no manifest"}
PUBLISHED, REGISTERED = b"p", b"r"


def main(models: Path, seed: int, rounds: int, writers: int, kills: int) -> dict[str, Any]:
    """Run all rounds in one directory, so that the index grows."""
    chance = random.Random(seed)
    models.mkdir()
    (models / "registry.json").write_text(json.dumps({"models": [BY_HAND], "unknown": seed}))
    faults: list[str] = []
    killed: Counter[str] = Counter()
    acknowledged: set[str] = set()
    duration = 0.05
    for round_number in range(rounds):
        names = [f"r{round_number}-{number}" for number in range(writers)]
        began = time.monotonic()
        reached = run_round(models, names, kills, chance=chance, duration=duration, faults=faults)
        duration = max(0.01, 0.8 * (time.monotonic() - began))
        for name, (said, status) in reached.items():
            if os.WIFSIGNALED(status):
                stage = "registered" if REGISTERED in said else "published" if PUBLISHED in said else "before"
                killed[stage] += 1
            elif status != 0:
                faults.append(f"{name} ended with {status}")
            if PUBLISHED in said:
                acknowledged.add(name)
        if kills:
            Registry(models).heal()  # the next command
        faults += check(models, acknowledged, seed)
    return {"killed": killed, "published": len(acknowledged), "faults": faults}


def run_round(
    models: Path, names: list[str], kills: int, *, chance: random.Random, duration: float, faults: list[str]
) -> dict[str, tuple[bytes, int]]:
    """Start one process a name, kill some at random moments of `duration` seconds; what each said and status."""
    gate_read, gate_write = os.pipe()
    pipes: dict[str, int] = {}
    children: dict[int, str] = {}
    for name in names:
        said_read, said_write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(gate_write)
            publish_and_register(models, name, gate_read, said_write, wait=kills > 0 and name == names[0])
        os.close(said_write)
        pipes[name], children[child] = said_read, name
    waits = next(iter(children)) if kills else 0
    victims = chance.sample(sorted(children.keys() - {waits}), k=max(0, kills - 1))
    due = sorted((chance.uniform(0, duration), child) for child in victims)
    os.close(gate_read)
    os.close(gate_write)  # the gate opens: every child's read returns
    began = time.monotonic()
    status: dict[str, int] = {}
    seen: set[str] = set()
    while children:
        while due and time.monotonic() - began >= due[0][0]:
            _, child = due.pop(0)
            if child in children:
                os.kill(child, signal.SIGKILL)
        if waits in children and select.select([pipes[children[waits]]], [], [], 0)[0]:
            os.kill(waits, signal.SIGKILL)
        faults += watch(models, seen)
        child, ended = os.waitpid(-1, os.WNOHANG)
        if child:
            status[children.pop(child)] = ended
    result = {}
    for name, pipe in pipes.items():
        with os.fdopen(pipe, "rb") as stream:
            result[name] = (stream.read(), status[name])
    return result


def publish_and_register(models: Path, name: str, gate: int, say: int, *, wait: bool) -> None:
    """What one process does, which may `wait` between the two to be killed; never returns."""
    try:
        stage = make_stage(models, name, weights=name.encode() * 100)
        os.read(gate, 1)
        publish(stage, models / name, make_manifest(name))
        os.write(say, PUBLISHED)
        if wait:
            signal.pause()
        registered = name in {entry["model_id"] for entry in Registry(models).heal().entries}
        os.write(say, REGISTERED)
        os._exit(0 if registered else 3)
    finally:
        os._exit(4)


def watch(models: Path, seen: set[str]) -> list[str]:
    """Look at every directory that has newly come into sight: it must be whole at once."""
    faults = []
    for name in os.listdir(models):
        if name.startswith((".", "registry.json")) or name in seen:
            continue
        seen.add(name)
        manifest = read_manifest(models / name)
        if manifest is None or manifest.files != file_hashes(models / name):
            faults.append(f"{name} was visible and not whole")
    return faults


def check(models: Path, acknowledged: set[str], seed: int) -> list[str]:
    """What was lost, or is in the index without being whole, after the next command."""
    document = json.loads((models / "registry.json").read_bytes())
    indexed = [entry["model_id"] for entry in document["models"]]
    whole = {path.name for path in models.iterdir() if is_whole(path)}
    faults = [f"{name} was published and is gone" for name in acknowledged - whole]
    faults += [f"{name} is whole and not in the index" for name in whole - set(indexed)]
    faults += [
        f"{name} is in the index and not whole" for name in set(indexed) - whole - {"by-hand", "base_tiny_ba5eba5e"}
    ]
    faults += [f"{name} is there {count} times" for name, count in Counter(indexed).items() if count > 1]
    if document["models"][0] != BY_HAND or document["unknown"] != seed:
        faults.append("what was made by hand is lost")
    return faults


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:6]))))
