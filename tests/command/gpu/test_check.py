"""What runs the GPU checks: a fault loses one check and no other, and nothing is left out in silence."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.gpu.check import Line, exit_code, main, run_checks, table
from tests.gpu.checks import CHECKS, Check
from tests.gpu.findings import FAILED, NOT_HERE, PASSED, below, within

ROOT = Path(__file__).parents[3]


def lines_of(out: Path, *names: str, budget: float = 60.0, limit: float = 20.0, optional: bool = False) -> list[Line]:
    checks = [Check(name, f"tests.support.gpu_faults:{name}", "", limit, limit, optional) for name in names]
    (out / "scratch").mkdir(exist_ok=True)
    return list(run_checks(checks, "cpu", out, budget))


def results(lines: list[Line]) -> list[tuple[str, str]]:
    return [(line.check, line.finding.result) for line in lines]


def test_each_fault_loses_its_own_check_and_no_other(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, "raises", "dies", "fails", "needs_mlflow", "passes")
    assert results(lines) == [
        *[("raises", PASSED), ("raises", FAILED)],
        *[("dies", PASSED), ("dies", FAILED)],
        *[("fails", FAILED), ("fails", PASSED)],
        ("needs_mlflow", FAILED),
        *[("passes", PASSED), ("passes", PASSED)],
    ]
    assert "ValueError: of this kind" in lines[1].finding.seen
    assert "ended with 7" in lines[3].finding.seen
    assert "a library prints this" in (tmp_path / "log.txt").read_text(), "not among what the worker sends"
    assert exit_code(lines) == 1


def test_a_check_that_hangs_is_ended_at_its_limit(tmp_path: Path) -> None:
    before = time.monotonic()
    lines = lines_of(tmp_path, "hangs", limit=3.0)
    assert results(lines) == [("hangs", PASSED), ("hangs", FAILED)]
    assert lines[1].finding.seen == "stopped after 3 s"
    assert time.monotonic() - before < 60


def test_a_check_without_time_is_a_failure_unless_it_is_optional(tmp_path: Path) -> None:
    (line,) = lines_of(tmp_path, "passes", budget=1.0)
    assert (line.finding.result, line.finding.seen) == (FAILED, "not run: 1 of 1 seconds were left")
    (line,) = lines_of(tmp_path, "passes", budget=1.0, optional=True)
    assert line.finding.result == NOT_HERE


def test_what_is_not_here_counts_neither_way_and_is_listed(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, "elsewhere")
    assert exit_code(lines) == 1, "nothing was shown to work"
    assert "- elsewhere, a GPU: needs CUDA" in table(lines, 1.0)
    assert exit_code([*lines, *lines_of(tmp_path, "passes")]) == 0


def test_no_number_is_not_in_a_range() -> None:
    nan = float("nan")
    assert [below("", nan, 1.0).result, within("", nan, 0.0, 1.0).result] == [FAILED, FAILED]


def test_the_limits_of_all_checks_are_known_and_their_functions_are_there() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        module, _, name = check.where.partition(":")
        assert f"def {name}(place: Place)" in (ROOT / f"{module.replace('.', '/')}.py").read_text()


def test_a_device_of_another_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("0", "gpu", "CPU", "cuda:", "cuda:0,1"):
        with pytest.raises(SystemExit) as ended:
            main(["--device", name, "--out", str(tmp_path / "out")])
        assert ended.value.code == 2
        assert f"--device: must be cuda, cuda:N or cpu, got {name!r}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_machine_that_cannot_compute_is_told_so_once_and_no_check_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert main(["--device", "cuda", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert said.err == (
        f"error: torch cannot compute on cuda:0: ImportError: no torch here ({sys.executable}); what a machine needs "
        "is in tests/gpu/README.md, and --device cpu (make gpu-check DEVICE=cpu) rehearses the checks without a GPU\n"
    )
    assert not said.out
