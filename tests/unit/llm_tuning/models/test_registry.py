"""The index over the manifests: what it holds, how it heals, what it never loses."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.errors import InputError
from llm_tuning.models.manifest import BaseRecord
from llm_tuning.models.registry import Registry
from tests.support.models import index_of, publish_model, write_index

BY_HAND = {"model_id": "gpt-by-hand", "model_type": "external", "owner": {"team": "a", "since": 1.5}, "path": None}


def ids(models: Path) -> list[str]:
    return [model["model_id"] for model in index_of(models)["models"]]


# What an entry holds


def test_an_entry_has_the_documented_fields(models: Path) -> None:
    publish_model(models, "ft_sft_tiny_1_a", description="sft of tiny on faq.json")
    Registry(models).heal()
    base, entry = index_of(models)["models"]
    assert entry == {
        "model_id": "ft_sft_tiny_1_a",
        "model_name": "tiny sft",
        "model_type": "fine_tuned",
        "description": "sft of tiny on faq.json",
        "path": "models/ft_sft_tiny_1_a",
        "created_at": "2026-11-24T20:00:00Z",
        "config_file": "models/ft_sft_tiny_1_a/model.json",
        "base_model_id": "base_tiny_ba5eba5e",
        "fine_tuning_params": {
            "tuning_mode": "sft",
            "llm_path": "base/tiny",
            "timestamp": 1795550400,
            "epochs": 2,
            "batch_size": 4,
        },
        "version": "9a129038d9a0",
        "size": 9,
        "tags": ["sft"],
    }
    assert base.keys() == entry.keys()
    assert (base["model_id"], base["model_type"], base["path"]) == ("base_tiny_ba5eba5e", "base", "base/tiny")


def test_the_file_is_compact(models: Path) -> None:
    publish_model(models, "a")
    Registry(models).heal()
    publish_model(models, "b")
    Registry(models).heal()
    assert (models / "registry.json").read_text() == json.dumps(index_of(models), separators=(",", ":"))


def test_paths_are_the_same_however_the_folder_is_named(models: Path) -> None:
    publish_model(models, "a")
    Registry(os.path.relpath(models)).heal()
    publish_model(models, "b")
    Registry(models / ".." / "models").heal()
    assert [m["path"] for m in index_of(models)["models"]][1:] == ["models/a", "models/b"]


def test_models_of_one_base_share_its_entry_and_other_weights_are_another_base(models: Path) -> None:
    publish_model(models, "a")
    publish_model(models, "b")
    publish_model(models, "c", base=BaseRecord(path="other/tiny", name="tiny", weight_hash="07he7" * 13))
    entries = Registry(models).entries()
    bases = {entry["model_id"]: entry["base_model_id"] for entry in entries}
    assert bases == {
        "base_tiny_ba5eba5e": None,
        "base_tiny_07he707h": None,
        "a": "base_tiny_ba5eba5e",
        "b": "base_tiny_ba5eba5e",
        "c": "base_tiny_07he707h",
    }


def test_a_base_registered_by_hand_is_used_and_not_doubled(models: Path) -> None:
    write_index(models, {"models": [{"model_id": "our-base", "model_type": "base", "path": "./base/tiny"}]})
    publish_model(models, "a")
    Registry(models).heal()
    assert ids(models) == ["our-base", "a"]
    assert index_of(models)["models"][1]["base_model_id"] == "our-base"
    Registry(models).rebuild()
    assert index_of(models)["models"][1]["base_model_id"] == "our-base"


def test_a_base_entry_that_somebody_removed_comes_back(models: Path) -> None:
    publish_model(models, "a")
    Registry(models).heal()
    write_index(models, {"models": index_of(models)["models"][1:]})
    assert Registry(models).heal().added == ("base_tiny_ba5eba5e",)
    assert sorted(ids(models)) == ["a", "base_tiny_ba5eba5e"]


def test_a_hand_made_base_that_was_removed_is_replaced_by_the_derived_one(models: Path) -> None:
    write_index(models, {"models": [{"model_id": "our-base", "model_type": "base", "path": "base/tiny"}]})
    publish_model(models, "a")
    Registry(models).heal()
    write_index(models, {"models": index_of(models)["models"][1:]})
    Registry(models).heal()
    assert Registry(models).heal().added == ()
    assert {m["model_id"]: m["base_model_id"] for m in index_of(models)["models"]}["a"] == "base_tiny_ba5eba5e"


# Healing


def test_healing_adds_what_is_missing_once_and_then_writes_nothing(models: Path) -> None:
    publish_model(models, "b", created_at="2026-11-24T22:00:00Z")
    publish_model(models, "a", created_at="2026-11-24T21:00:00Z")
    publish_model(models, "c", created_at="2026-11-24T20:00:00Z")
    assert Registry(models).heal().added == ("base_tiny_ba5eba5e", "c", "a", "b")
    before = (models / "registry.json").stat()
    result = Registry(models).heal()
    assert (result.added, result.messages) == ((), ())
    assert (models / "registry.json").stat().st_ino == before.st_ino


def test_only_whole_models_are_listed(models: Path) -> None:
    publish_model(models, "whole")
    (models / "half").mkdir()
    (models / "half" / "adapter_model.safetensors").touch()
    (models / ".work" / "hidden").mkdir(parents=True)
    shutil.copy(models / "whole" / "model.json", models / ".work" / "hidden")
    (models / "notes.txt").touch()
    Registry(models).heal()
    assert ids(models) == ["base_tiny_ba5eba5e", "whole"]


@pytest.mark.parametrize("spoil", ["broken", "copied"])
def test_a_manifest_that_cannot_be_used_is_reported_and_hides_no_other(
    models: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish_model(models, "good")
    publish_model(models, "spoilt")
    if spoil == "broken":
        (models / "spoilt" / "model.json").write_text("{")
    else:
        (models / "spoilt").rename(models / "renamed")
    result = Registry(models).heal()
    assert ids(models) == ["base_tiny_ba5eba5e", "good"]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == list(result.messages)
    assert (
        "is not a valid model.json" if spoil == "broken" else "model.json says model_id spoilt, but"
    ) in result.messages[-1]


def test_a_folder_that_is_not_there_is_empty_and_stays_away(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "nothing")
    assert registry.entries() == []
    assert registry.rebuild().entries == []
    assert registry.verify() == []
    assert not (tmp_path / "nothing").exists()


def test_an_empty_folder_gets_no_file(models: Path) -> None:
    assert Registry(models).entries() == []
    assert list(models.iterdir()) == []


def test_a_models_directory_that_is_gone_keeps_its_entry_until_a_rebuild(models: Path) -> None:
    publish_model(models, "a")
    publish_model(models, "b")
    Registry(models).heal()
    shutil.rmtree(models / "a")
    assert Registry(models).heal().added == ()
    assert "a" in ids(models)
    assert Registry(models).rebuild().removed == ("a",)
    assert ids(models) == ["base_tiny_ba5eba5e", "b"]


def test_a_missing_file_is_rebuilt_with_one_message(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish_model(models, "a")
    publish_model(models, "b")
    Registry(models).heal()
    (models / "registry.json").unlink()
    caplog.clear()
    Registry(models).heal()
    assert [r.getMessage() for r in caplog.records] == [
        f"{models / 'registry.json'} was missing; rebuilt from 2 manifests"
    ]
    assert ids(models) == ["base_tiny_ba5eba5e", "a", "b"]


def test_the_very_first_model_is_no_news(models: Path) -> None:
    publish_model(models, "a")
    assert Registry(models).heal(published="a").messages == ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b'{"models": [{"model_id": "a"', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"models": {}}', "it has no list `models`"),
        (b"{}", "it has no list `models`"),
    ],
)
def test_a_corrupt_file_is_kept_aside_and_rebuilt_with_one_message(
    models: Path, content: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish_model(models, "a")
    (models / "registry.json").write_bytes(content)
    Registry(models).heal()
    (message,) = [r.getMessage() for r in caplog.records]
    (kept,) = models.glob("registry.json.corrupt-*")
    assert reason in message
    assert "rebuilt from 1 manifest," in message
    assert kept.name in message
    assert kept.read_bytes() == content
    assert ids(models) == ["base_tiny_ba5eba5e", "a"]
    assert Registry(models).heal().messages == ()


def test_a_byte_order_mark_is_simply_read(models: Path) -> None:
    (models / "registry.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"models": [BY_HAND]}).encode())
    assert Registry(models).entries() == [BY_HAND]


# What is nowhere else survives


def test_hand_made_entries_and_unknown_fields_survive_every_command(models: Path) -> None:
    publish_model(models, "a")
    Registry(models).heal()
    document = index_of(models)
    document["models"][1] |= {"stars": 5, "description": "mine", "tags": ["prod"]}
    odd: list[Any] = [None, "text", {"no_model_id": 1}, {"model_id": 7}, {"model_id": "x", "base_model_id": ["odd"]}]
    document = {"schema": {"v": [1]}, "models": [*odd, BY_HAND, *document["models"]], "after": "ü"}
    write_index(models, document)
    publish_model(models, "b")
    registry = Registry(models)
    for command in (registry.heal, registry.verify, registry.rebuild, registry.entries):
        command()
        now = index_of(models)
        assert (now["schema"], now["after"]) == ({"v": [1]}, "ü")
        assert now["models"][: len(odd) + 1] == [*odd, BY_HAND]
        (mine,) = [m for m in now["models"][len(odd) :] if m["model_id"] == "a"]
        assert (mine["stars"], mine["description"], mine["tags"]) == (5, "mine", ["prod"])
        assert "b" in [m["model_id"] for m in now["models"][len(odd) :]]


def test_numbers_written_by_hand_keep_their_value_when_an_entry_is_added(models: Path) -> None:
    (models / "registry.json").write_text(
        '{"models":[{"model_id":"x","cost":1.50,"big":1e400,"id":12345678901234567890}]}'
    )
    publish_model(models, "a")
    for _ in range(2):
        Registry(models).heal()
    assert ids(models) == ["x", "base_tiny_ba5eba5e", "a"]
    x = index_of(models)["models"][0]
    assert (x["cost"], x["big"], x["id"]) == (1.5, float("inf"), 12345678901234567890)


@pytest.mark.parametrize(
    "text",
    [
        '{"models":[]}',
        '{"models": [\n  {"model_id": "x"}\n]\n}\n',
        '{"models":[{"model_id":"x"}],"more":[{"n":[1]}]}',
        '{"more":[1],"models":[],"more":[{"n":[1]}]}',
        '{"models":[{"model_id":"lost"}],"models":[{"model_id":"x","l":[]}]}',
    ],
)
def test_a_hand_written_layout_is_added_to_rightly(models: Path, text: str) -> None:
    (models / "registry.json").write_text(text)
    before = json.loads(text)
    publish_model(models, "a")
    Registry(models).heal()
    now = index_of(models)
    assert now["models"][: len(before["models"])] == before["models"]
    assert ids(models)[-2:] == ["base_tiny_ba5eba5e", "a"]
    assert {k: v for k, v in now.items() if k != "models"} == {k: v for k, v in before.items() if k != "models"}


def test_the_files_permissions_are_kept(models: Path) -> None:
    publish_model(models, "a")
    Registry(models).heal()
    (models / "registry.json").chmod(0o664)
    publish_model(models, "b")
    Registry(models).heal()
    assert (models / "registry.json").stat().st_mode & 0o777 == 0o664


def test_a_killed_writers_temporary_file_goes_when_it_is_old(models: Path) -> None:
    old, young = models / ".registry.json.1.aa.tmp", models / ".registry.json.2.bb.tmp"
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    publish_model(models, "a")
    Registry(models).heal()
    assert (old.exists(), young.exists()) == (False, True)


# Two writers


def _just_before_the_rename(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None], *, die: bool = False) -> None:
    """Have `do` happen once between a writer's last comparison and its rename; `die`: it is killed right after."""
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        do()
        replace(source, target)
        if die:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)


def test_a_writer_that_overwrote_anothers_index_puts_it_right(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def another_writer() -> None:
        publish_model(models, "b")
        Registry(models).heal()
        assert "b" in ids(models)

    publish_model(models, "a")
    _just_before_the_rename(monkeypatch, another_writer)
    result = Registry(models).heal()
    assert {"a", "b"} <= set(ids(models))
    assert {"a", "b"} <= {entry["model_id"] for entry in result.entries}


def test_killed_right_after_overwriting_the_next_command_puts_it_right(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_writer() -> None:
        publish_model(models, "b")
        Registry(models).heal()

    publish_model(models, "a")
    _just_before_the_rename(monkeypatch, another_writer, die=True)
    with pytest.raises(KeyboardInterrupt):
        Registry(models).heal()
    assert "b" not in ids(models)  # the danger is real
    assert Registry(models).heal().added == ("b",)
    assert {"a", "b"} <= set(ids(models))


def test_killed_after_overwriting_nothing_hand_made_from_before_is_lost(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_index(models, {"models": [BY_HAND], "schema": 1})
    publish_model(models, "a")
    _just_before_the_rename(monkeypatch, lambda: _publish_and_heal(models, "b"), die=True)
    with pytest.raises(KeyboardInterrupt):
        Registry(models).heal()
    Registry(models).heal()
    assert index_of(models)["schema"] == 1
    assert index_of(models)["models"][0] == BY_HAND


def _publish_and_heal(models: Path, model_id: str) -> None:
    publish_model(models, model_id)
    Registry(models).heal()


def test_what_a_person_writes_while_a_command_works_survives(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the writer's last comparison: here it is written while the new file is flushed."""
    fsync = os.fsync

    def person(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        write_index(models, {"models": [BY_HAND]})

    publish_model(models, "a")
    monkeypatch.setattr(os, "fsync", person)
    Registry(models).heal()
    assert ids(models) == ["gpt-by-hand", "base_tiny_ba5eba5e", "a"]


def test_a_corrupt_file_that_another_writer_repaired_is_not_put_aside_again(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def another_writer(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        Registry(models).heal()

    publish_model(models, "a")
    write_index(models, "{")
    monkeypatch.setattr(os, "fsync", another_writer)
    assert Registry(models).heal().messages == ()
    assert len(list(models.glob("registry.json.corrupt-*"))) == 1
    assert ids(models) == ["base_tiny_ba5eba5e", "a"]


# Looking up


def test_require_names_the_folder_and_similar_models(models: Path) -> None:
    publish_model(models, "faq-v1")
    assert Registry(models).require("faq-v1").model_id == "faq-v1"
    with pytest.raises(InputError) as caught:
        Registry(models).require("faq-v2")
    assert str(caught.value) == f"model_id: 'faq-v2' is not in {models}; did you mean faq-v1?"


@pytest.mark.parametrize("model_id", ["../models/a", ".", "", "a/../a", "-a", "a\n", "a" * 300])
def test_what_is_no_model_id_is_never_looked_up_as_a_path(models: Path, model_id: str) -> None:
    publish_model(models, "a")
    with pytest.raises(InputError, match="must be 1 to 128"):
        Registry(models).require(model_id)


# Rebuilding


def test_rebuild_says_again_what_the_manifests_say(models: Path) -> None:
    publish_model(models, "a")
    Registry(models).heal()
    document = index_of(models)
    document["models"][1] |= {"size": -1, "version": "9", "created_at": "x"}
    write_index(models, document)
    Registry(models).rebuild()
    entry = index_of(models)["models"][1]
    assert (entry["size"], entry["version"], entry["created_at"]) == (9, "9a129038d9a0", "2026-11-24T20:00:00Z")


def test_rebuild_keeps_the_entry_of_a_model_whose_manifest_cannot_be_read(models: Path) -> None:
    publish_model(models, "a")
    Registry(models).heal()
    (models / "a" / "model.json").write_text("{")
    assert Registry(models).rebuild().removed == ()
    assert "a" in ids(models)


# Where nothing can be written
