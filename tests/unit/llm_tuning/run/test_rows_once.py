"""A data set is read once by a start of a run, and one that has changed since the first start is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.api import RunOptions, TuningConfig
from llm_tuning.api.flags import FLAG_WORDS
from llm_tuning.data.reading import data_hash
from llm_tuning.errors import InputError, TryAgain, in_words
from llm_tuning.models.layout import CHECKPOINTS, DATA_REPORT, ROWS, RUN_SPEC
from llm_tuning.run import tune as story
from llm_tuning.run.spec import RunSpec, read_run_spec
from tests.support.tiny_base import make_tokenizer

ROWS_OF = [{"prompt": f"Question {i}?", "output": f"Answer {i}."} for i in range(200)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "light"
    make_tokenizer(path)
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "vocab_size": 512}')
    (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """2 MB, so that a look at its head is no read of the whole."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + " " * 10_000 + "\n" for row in ROWS_OF))
    return path


class TrainingBeginsError(Exception):
    """The training was about to begin."""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """Runs end where the training would begin."""
    specs: list[RunSpec] = []

    def train(spec: RunSpec, group: None) -> None:
        specs.append(spec)
        raise TrainingBeginsError

    monkeypatch.setattr(story, "_train", train)
    return specs


@pytest.fixture
def bytes_read(rows: Path) -> Iterator[Any]:
    """A function that runs another and says how many times the size of the data set this process has read."""

    def of(run: Any) -> float:
        before = _read_so_far()
        run()
        return (_read_so_far() - before) / rows.stat().st_size

    return of


def _read_so_far() -> int:
    """Bytes that this process has asked the kernel for."""
    counts = Counter(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines()))
    return int(counts["rchar"])


def start(base: Path, rows: Path, *, devices: str = "cpu", **training: object) -> None:
    config = TuningConfig.parse(
        {"model": {"path": str(base)}, "dataset": {"path": str(rows)}, "training": {"epochs": 1} | training}
    )
    with pytest.raises(TrainingBeginsError):
        story.tune(config, RunOptions(devices=devices, model_id="m"))


WORK = Path("models/.work/m")


def test_each_start_reads_the_file_once(base: Path, rows: Path, trained: list[RunSpec], bytes_read: Any) -> None:
    start(base, rows)  # what is read only once by a process, such as modules, is not counted
    (WORK / DATA_REPORT).unlink()
    assert 1 <= bytes_read(lambda: start(base, rows)) < 1.5, "the first start, or one that was killed in the check"
    assert 1 <= bytes_read(lambda: start(base, rows)) < 1.5, "a later start"
    assert {spec.data_hash for spec in trained} == {data_hash(rows)}
    assert len({spec.config_hash for spec in trained}) == 1
    assert json.loads((WORK / DATA_REPORT).read_text())["data_hash"] == data_hash(rows)


def test_the_check_reads_the_file_once(base: Path, rows: Path, bytes_read: Any) -> None:
    config = TuningConfig.parse({"model": {"path": str(base)}, "dataset": {"path": str(rows)}})
    options = RunOptions(devices="cpu", model_id="m")
    story.check_run(config, options)
    assert 1 <= bytes_read(lambda: story.check_run(config, options)) < 1.5
    assert not WORK.exists()


@pytest.mark.parametrize("killed", ["after the check", "in the check"])
def test_changed_data_is_refused(base: Path, rows: Path, trained: list[RunSpec], killed: str) -> None:
    start(base, rows)
    if killed == "in the check":
        (WORK / DATA_REPORT).unlink()
    rows.write_text(rows.read_text().replace("Answer 7", "Answer 8"))
    config = TuningConfig.parse(
        {"model": {"path": str(base)}, "dataset": {"path": str(rows)}, "training": {"epochs": 1}}
    )
    refusal = r"configuration: the rows of dataset.path sha256 \w{12}, now sha256 \w{12}; .* or delete .* that run$"
    with pytest.raises(InputError, match=refusal):
        story.tune(config, RunOptions(devices="cpu", model_id="m"))
    assert (WORK / RUN_SPEC).exists()
    assert len(trained) == 1


@pytest.mark.parametrize(
    "changed",
    [("model.safetensors", "the weights of model.path"), ("chat_template.jinja", "the chat template of model.path")],
)
def test_what_has_changed_of_the_base_is_named(
    base: Path, rows: Path, trained: list[RunSpec], changed: tuple[str, str], tmp_path: Path
) -> None:
    """One thing changed, one thing named: the settings are the same, and so are the rows."""
    file, what = changed
    start(base, rows)
    other = shutil.copytree(base, tmp_path / "other")
    start(other, rows)  # the same weights elsewhere
    content = (other / file).read_bytes()
    (other / file).write_bytes((4).to_bytes(8, "little") + b"{  }" if file == "model.safetensors" else b" " + content)
    with pytest.raises(InputError) as error:
        start(other, rows)
    [problem] = error.value.problems
    _, _, differences = in_words(problem.rule).partition("with another configuration: ")
    assert re.fullmatch(rf"{what} sha256 \w+, now sha256 \w+", differences)
    assert len(trained) == 2


def test_rows_to_evaluate_on_that_were_not_there_are_named(
    base: Path, rows: Path, trained: list[RunSpec], tmp_path: Path
) -> None:
    start(base, rows)
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"prompt": "another", "output": "a"}\n' * 2)
    given = {"path": str(rows), "evaluation": str(held_out)}
    config = TuningConfig.parse({"model": {"path": str(base)}, "dataset": given, "training": {"epochs": 1}})
    with pytest.raises(InputError, match=r"the rows of (dataset\.)?evaluation none, now sha256"):
        story.tune(config, RunOptions(devices="cpu", model_id="m"))


def test_a_folder_that_is_no_model_is_refused(base: Path, rows: Path, trained: list[RunSpec]) -> None:
    WORK.parents[1].joinpath("m").mkdir(parents=True)
    with pytest.raises(InputError, match=r"model_id: .*m exists but holds no complete model \(no model\.json\)"):
        start(base, rows)
    assert trained == []


def test_rows_without_a_report_are_made_again_for_the_settings_of_now(
    base: Path, rows: Path, trained: list[RunSpec]
) -> None:
    """A start was killed between its rows and run.json: nobody knows with which settings they were made."""
    start(base, rows, max_length=48)
    (WORK / RUN_SPEC).unlink()
    start(base, rows, max_length=64)
    spec = read_run_spec(WORK)
    assert spec is not None
    assert spec.config.training.max_length == 64
    report = json.loads((WORK / DATA_REPORT).read_text())
    assert report["tokens"]["max_length"] == 64
    assert (WORK / ROWS / "rows.json").exists()


def test_other_settings_are_refused_before_the_file_is_read(
    base: Path, rows: Path, trained: list[RunSpec], bytes_read: Any
) -> None:
    start(base, rows)

    def again() -> None:
        with pytest.raises(InputError, match=r"with another configuration: training.max_length 1024, now 64"):
            start(base, rows, max_length=64)

    assert bytes_read(again) < 0.5


@pytest.mark.parametrize(
    ("before", "now", "said", "fix", "again"),
    [
        (
            (2, {"batch_size": 4}),
            (4, {"batch_size": 4}),
            "a step learned 8 rows (batch_size 4 x 2 ranks), and would learn 16 rows (batch_size 4 x 4 ranks)",
            "use --batch_size 2 for 8 rows again",
            {"batch_size": 2},
        ),
        (
            (2, {"batch_size": 4}),
            (1, {"batch_size": 1, "gradient_accumulation_steps": 2}),
            "would learn 2 rows (batch_size 1 x gradient_accumulation_steps 2 x 1 rank)",
            "use --batch_size 4 for 8 rows again",
            {"batch_size": 4, "gradient_accumulation_steps": 2},
        ),
        (
            (2, {"batch_size": 1}),
            (2, {"batch_size": 1, "gradient_accumulation_steps": 4}),
            "a step learned 2 rows (batch_size 1 x 2 ranks), and would learn 8 rows",
            "use --batch_size 1 and use --gradient_accumulation_steps 1 for 2 rows again",
            {"batch_size": 1, "gradient_accumulation_steps": 1},
        ),
        (
            (2, {"batch_size": 4096}),
            (1, {"batch_size": 4096}),
            "a step learned 8192 rows",
            "use --batch_size 4096 and use --gradient_accumulation_steps 2 for 8192 rows again",
            {"batch_size": 4096, "gradient_accumulation_steps": 2},
        ),
        (
            (2, {"batch_size": 4}),
            (3, {"batch_size": 4}),
            "a step learned 8 rows (batch_size 4 x 2 ranks), and would learn 12 rows (batch_size 4 x 3 ranks)",
            "8 rows go evenly over 2 or 4 ranks, not over 3",
            None,
        ),
        ((1, {"batch_size": 1}), (2, {}), "a step learned 1 row (", "1 row goes evenly over 1 rank, not over 2", None),
    ],
)
def test_other_rows_of_a_step_are_told_with_what_makes_them_as_many_again(
    base: Path, rows: Path, trained: list[RunSpec], *, before: Any, now: Any, said: str, fix: str, again: Any
) -> None:
    """As many rows in another way are the same run; no setting has their number itself."""
    begin(base, rows, *before)
    with pytest.raises(InputError) as error:
        begin(base, rows, *now)
    [problem] = error.value.problems
    assert said in in_words(problem.rule)
    assert problem.in_words(FLAG_WORDS).rule.endswith(f"; {fix}")
    assert "effective_batch_size" not in problem.rule
    if again is not None:
        begin(base, rows, now[0], again)
        assert len(trained) == 2


def begin(base: Path, rows: Path, ranks: int, training: dict[str, int]) -> None:
    """Start on so many processes of the CPU."""
    start(base, rows, devices=",".join(["cpu"] * ranks), **training)


def test_the_first_start_keeps_its_time(base: Path, rows: Path, trained: list[RunSpec]) -> None:
    start(base, rows)
    spec = read_run_spec(WORK)
    assert spec is not None
    spec.model_copy(update={"created": 7}).write()
    start(base, rows)
    assert trained[-1].created == 7


def test_damaged_checkpoints_end_the_start(base: Path, rows: Path, trained: list[RunSpec]) -> None:
    start(base, rows)
    (WORK / CHECKPOINTS / "checkpoint-5").mkdir(parents=True)
    with pytest.raises((InputError, TryAgain), match="holds no whole checkpoint"):
        start(base, rows)
