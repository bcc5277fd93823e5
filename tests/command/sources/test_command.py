"""`tune-llm sources`, and names in the place of paths on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.api import RunOptions, TuningConfig
from llm_tuning.codes.tune_llm import main
from llm_tuning.core import console
from llm_tuning.errors import InputError
from llm_tuning.models.manifest import BaseRecord, FromSource, Manifest, write_manifest
from llm_tuning.run.given import with_local_paths
from tests.support.hub_server import HubServer, hub_server, tiny_model

ROWS = b"".join(b'{"prompt": "question %d", "output": "answer %d"}\n' % (n, n) for n in range(30))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server() as server:
        server.model("owner/base", tiny_model(1000))
        server.dataset("owner/rows", {"faq.jsonl": ROWS, "README.md": b"card"})
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield server


def config(model: str, dataset: str = "rows.jsonl", **more: Any) -> TuningConfig:
    return TuningConfig.parse({"mode": "sft", "model": {"path": model}, "dataset": {"path": dataset, **more}})


def test_fetch_list_verify_and_remove(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sources", "list"]) == 0
    assert "no sources in" in capsys.readouterr().out
    assert main(["sources", "fetch", "owner/base"]) == 0
    printed = capsys.readouterr()
    folder = Path(printed.out.strip())
    assert (folder / "config.json").is_file()
    assert f"fetched to {folder}" in printed.err
    assert main(["sources", "fetch", "hf://datasets/owner/rows/faq.jsonl", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert (rows["kind"], rows["bytes_moved"], Path(rows["path"]).read_bytes()) == ("dataset", len(ROWS), ROWS)
    assert main(["sources", "fetch", "hf://owner/base"]) == 0
    assert "is here already" in capsys.readouterr().err
    assert main(["sources", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["uri"] for each in listed["sources"]] == [rows["uri"], f"hf://owner/base@{folder.name}"]
    assert listed["unfinished"] == []
    assert main(["sources", "verify"]) == 0
    (folder / "tokenizer.json").write_text("{}")
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.write(b"???")
    assert main(["sources", "verify", "hf://owner/base"]) == 1
    said = capsys.readouterr().out
    assert "is not what was fetched: its sha256 differs" in said
    assert "tokenizer.json: has 2 bytes, and had 13" in said
    assert main(["sources", "remove", str(folder)]) == 0
    assert not folder.exists()
    assert not (Path("sources/hf/owner")).exists()
    assert main(["sources", "remove", "hf://owner/base"]) == 64


def test_what_an_adapter_was_made_of_stays(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sources", "fetch", "owner/base"])
    folder = capsys.readouterr().out.strip()
    adapter = Path("models/faq")
    adapter.mkdir(parents=True)
    base = BaseRecord(path=folder, name="base", weight_hash="", source=FromSource.of(folder))
    write_manifest(adapter, Manifest(model_id="faq", mode="sft", base=base))
    assert main(["sources", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("faq")
    assert main(["sources", "remove", "hf://owner/base"]) == 64
    assert "is what faq was made of" in capsys.readouterr().err
    assert Path(folder).is_dir()
    assert main(["sources", "remove", "hf://owner/base", "--force"]) == 0
    assert not Path(folder).exists()


def test_what_was_begun_is_listed_and_may_be_removed(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.support.hub_server import Answer

    hub.once(Answer(status=404, headers={"X-Error-Code": "EntryNotFound"}), of="model.safetensors")
    assert main(["sources", "fetch", "owner/base"]) == 64
    hub.once(Answer(status=403), of="model.safetensors")
    assert main(["sources", "fetch", "owner/base"]) == 64
    capsys.readouterr()
    main(["sources", "list", "--json"])
    (begun,) = json.loads(capsys.readouterr().out)["unfinished"]
    assert main(["sources", "remove", begun["folder"]]) == 0
    assert not Path(begun["folder"]).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fetch", "s3://bucket/x"], "use --as model or --as dataset"),
        (["fetch", "gs://bucket/x"], "known are hf://, s3://, https://"),
        (["fetch", "base"], "is no URI"),
        (["fetch", "hf://datasets/owner/rows", "--as", "model"], "give it as --dataset_path"),
        (["fetch", "owner/gone"], "does not exist, or is private"),
        (["remove", "hf://owner/base"], "is no source below sources"),
    ],
)
def test_bad_input_exits_64_with_what_to_do(
    hub: HubServer, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["sources", *arguments]) == 64
    assert said in capsys.readouterr().err


def test_a_name_is_fetched_for_a_path_and_it_is_said(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "llm_tuning")
    local = with_local_paths(config("owner/base", "hf://datasets/owner/rows"), RunOptions())
    assert (Path(local.model.path) / "model.safetensors").is_file()
    assert Path(local.dataset.path).read_bytes() == ROWS
    assert "owner/base is no path here, so it is taken for hf://owner/base" in caplog.text
    assert FromSource.of(local.model.path).uri == "hf://owner/base"


def test_a_path_that_exists_or_whose_folder_does_always_wins(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "owner").mkdir()
    for given in (config("owner/base"), config("elsewhere/base", "datasets/faq.json")):
        if given.model.path == "owner/base":
            assert with_local_paths(given, RunOptions()) == given
    assert not hub.requests


def test_a_name_that_is_nowhere_is_refused_for_both(hub: HubServer) -> None:
    with pytest.raises(InputError, match="nor is there a path owner/gone here"):
        with_local_paths(config("owner/gone"), RunOptions())


def test_all_bad_uris_are_refused_together_before_anything_is_fetched(hub: HubServer) -> None:
    with pytest.raises(InputError) as refused:
        with_local_paths(config("hf://datasets/owner/rows", "ftp://x/y"), RunOptions())
    assert len(refused.value.problems) == 2
    assert not hub.requests


def test_a_started_run_keeps_its_commit_when_the_branch_moves(hub: HubServer) -> None:
    options = RunOptions(model_id="faq")
    first = with_local_paths(config("hf://owner/base", "hf://datasets/owner/rows"), options)
    Path("models/faq").mkdir(parents=True)
    base = BaseRecord(path=first.model.path, name="base", weight_hash="")
    made = Manifest(model_id="faq", mode="sft", base=base, configuration=first.model_dump(mode="json", by_alias=True))
    write_manifest(Path("models/faq"), made)
    hub.model("owner/base", tiny_model(1001))
    hub.requests.clear()
    again = with_local_paths(config("hf://owner/base", "hf://datasets/owner/rows"), options)
    assert (again.model.path, again.dataset.path) == (first.model.path, first.dataset.path)
    assert not hub.requests
    assert with_local_paths(config("hf://owner/base"), RunOptions(model_id="new")).model.path != first.model.path


def test_offline_what_lies_here_counts_and_nobody_is_asked(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = with_local_paths(config("hf://owner/base"), RunOptions())
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(console, "_ours", set())
    assert with_local_paths(config("owner/base"), RunOptions()) == first
    assert with_local_paths(config("owner/gone"), RunOptions()).model.path == "owner/gone"
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids to fetch it"):
        with_local_paths(config("hf://owner/gone"), RunOptions())
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.model("owner/base", tiny_model(1001))
    with_local_paths(config("hf://owner/base"), RunOptions())
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="at 2 commits"):
        with_local_paths(config("hf://owner/base"), RunOptions())
    assert not hub.requests


def test_validate_checks_rows_of_the_hub(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--dataset_path", "hf://datasets/owner/rows", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 30


def test_a_busy_hub_exits_75_and_says_why(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.support.hub_server import Answer

    hub.once(Answer(status=429, headers={"Retry-After": "9999"}), of="/api/")
    assert main(["sources", "fetch", "owner/base"]) == 75
    assert (
        "try again (RateLimited): model hf://owner/base: 127.0.0.1 has had too many requests" in capsys.readouterr().err
    )
