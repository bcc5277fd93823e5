"""Families that a module of tests has tried, what must hold of each, and the file that the page of families is made of.

`docs/families.json` is what the last whole run found. A run leaves its own findings in `build/families`, and
`python -m docs.tools.families` takes them over; until then a finding that differs from the record fails its test.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.support.vllm_server import VLLM_PYTHON, require_vllm
from tests.support.zoo import families
from tests.support.zoo_trial import Outcome, try_family

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "docs/families.json"
FINDINGS = ROOT / "build/families"
NATS = 1e-5
"""By which a loss, a mean over tokens, may differ from the reference's."""
NATS_OF_A_TOKEN = 3e-5
"""By which the log-probability of one token may."""
NUMBERS = ("loss", "gradient", "peft")
OF_THE_PROCESSOR = ("padding_free", "attention")
"""What a trial of the run decides: in a mixture of experts the sums of a row round by its neighbours."""
EQUAL = "equal"
"""What is said of a family that is, divided over ranks, to the bit what it is whole."""
OF_GRADIENT = 3e-5
"""By which the whole gradient may, relative to its length."""


def of_kind(*kinds: str) -> list[str]:
    """The families of these kinds."""
    return [family.name for family in families().values() if family.kind in kinds]


class Trials:
    """Trials of families, each made once; their adapters and the configurations of their bases are kept in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, Outcome] = {}

    def of(self, name: str) -> Outcome:
        """What came of the family."""
        if name not in self._made:
            scratch = self.folder / name
            self._made[name] = try_family(name, scratch)
            self._keep(scratch)
        return self._made[name]

    def _keep(self, scratch: Path) -> None:
        """Keep adapter and config.json, which are all that vLLM's loader needs, and remove what is large."""
        if (scratch / "models/sft").exists():
            (scratch / "models/sft").rename(scratch / "adapter")
        for folder in ("models/ppo", "models"):
            shutil.rmtree(scratch / folder, ignore_errors=True)
        for file in (scratch / "base").iterdir():
            if file.name != "config.json":
                file.unlink()

    def loaded_by_vllm(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """What vLLM's own loader makes of the adapters of these families that are trained: see `vllm_lora`."""
        require_vllm()
        trained = [name for name in names if not self.of(name).refused]
        folders = [str(self.folder / name / part) for name in trained for part in ("base", "adapter")]
        command = [VLLM_PYTHON, "-P", ROOT / "tests/support/vllm_lora.py", "load", *folders]
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1700, env=own, cwd="/")
        assert done.returncode == 0, done.stderr[-3000:]
        loaded = dict(zip(trained, json.loads(done.stdout.splitlines()[-1]), strict=True))
        for name, found in loaded.items():
            _write(name, {"vllm": _shown(found)})
        return loaded


def hold(outcome: Outcome) -> None:
    """Assert that the family is trained as the reference computes it, and as the record says."""
    found = shown(outcome)
    _write(outcome.family, found)
    if not outcome.refused:
        assert outcome.loss <= NATS
        assert outcome.peft <= NATS_OF_A_TOKEN
        assert outcome.gradient <= OF_GRADIENT
    recorded = json.loads(RECORD.read_text())["families"].get(outcome.family)
    if recorded is not None:  # a new family is recorded after its first run
        exact = {key: value for key, value in found.items() if key not in (*NUMBERS, *OF_THE_PROCESSOR)}
        assert exact == {key: recorded[key] for key in exact}, f"{RECORD.name} is out of date, or this is wrong"


def hold_sharded(found: dict[str, str]) -> None:
    """Assert what the record says of families that were divided over ranks: `EQUAL`, or why they are refused."""
    recorded = json.loads(RECORD.read_text())["families"]
    for name, said in found.items():
        _write(name, {"sharded": said})
    known = {name: of_one["sharded"] for name, of_one in recorded.items() if name in found and "sharded" in of_one}
    assert {name: found[name] for name in known} == known, f"{RECORD.name} is out of date, or this is wrong"


def record_served(name: str) -> None:
    """Note that the engine served the family's adapter and the proof called it effective."""
    _write(name, {"engine": "proven"})


def shown(outcome: Outcome) -> dict[str, Any]:
    """The outcome as the record has it: differences rounded up to one digit."""
    fields = outcome.as_dict()
    del fields["family"]
    if not fields["remedy"]:
        del fields["remedy"]
    return fields | {name: _rounded(fields[name]) for name in NUMBERS}


def _rounded(value: float) -> float:
    if value == 0:
        return 0.0
    digit = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.ceil(value / digit) * digit:.0e}")


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    if "error" in found:
        return {"error": found["error"][:300]}
    return {"given": len(found["given"]), "lost": len(found["lost"])}


def _write(name: str, fields: dict[str, Any]) -> None:
    FINDINGS.mkdir(parents=True, exist_ok=True)
    path = FINDINGS / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | fields, indent=2))
