"""The fetching pod's program against a hub of the tests: pinned, reported, refused with a reason, continued."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server import Answer, HubServer, content, hub_server, tiny_model
from tests.support.pod_process import Claim, Ended
from tests.support.small_disk import run_on_small_disk
from tests.support.status_server import status_server

NAME, URI = "owner/tiny", "hf://owner/tiny"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


@pytest.fixture
def empty(tmp_path: Path) -> Claim:
    root = tmp_path / "workspace"
    root.mkdir()
    return Claim(root)


def given(hub: HubServer, *sources: dict[str, Any], **environment: str) -> dict[str, Any]:
    asked = json.dumps({"pin": "ft_a", "sources": list(sources) or [{"field": "model", "uri": URI}]})
    return {"environment": {"LLM_TUNING_FETCH": asked, "HF_ENDPOINT": hub.url, **environment}}


def fetch(claim: Claim, hub: HubServer, *sources: dict[str, Any], **environment: str) -> Ended:
    return claim.run("fetch", **given(hub, *sources, **environment))


def test_what_was_asked_for_lies_whole_on_the_claim(empty: Claim, hub: HubServer) -> None:
    commit = hub.model(NAME, tiny_model())
    hub.dataset("owner/rows", {"data/faq.jsonl": b'{"prompt": "a", "output": "b"}\n'})
    rows = {"field": "dataset", "uri": "hf://datasets/owner/rows/data/faq.jsonl"}
    ended = fetch(empty, hub, {"field": "model", "uri": URI}, rows)
    assert (ended.code, ended.result["reason"]) == (0, "Fetched"), ended
    model, dataset = (ended.result["sources"][name] for name in ("model", "dataset"))
    assert model["revision"] == commit
    assert (empty.root / model["path"] / "config.json").is_file()
    assert not (empty.root / model["path"] / "pytorch_model.bin").exists()
    assert (empty.root / dataset["path"]).name == "faq.jsonl"
    assert hub.url not in ended.text


def test_a_branch_that_moves_between_two_attempts_gives_the_first_commit(empty: Claim, hub: HubServer) -> None:
    first = hub.model(NAME, tiny_model())
    hub.once(Answer(status=404, headers={"X-Error-Code": "EntryNotFound"}), of="/resolve/")
    assert fetch(empty, hub).code != 0
    hub.model(NAME, tiny_model(weights=4000))
    ended = fetch(empty, hub)
    assert (ended.code, ended.result["sources"]["model"]["revision"]) == (0, first), ended


def test_pins_that_nobody_has_used_for_a_month_go(empty: Claim, hub: HubServer) -> None:
    hub.model(NAME, tiny_model())
    assert fetch(empty, hub).code == 0
    own = empty.root / "sources/.pins/ft_a.json"
    old, used = own.with_name("ft_gone.json"), own.with_name("ft_running.json")
    for path, days in ((own, 40), (old, 31), (used, 29)):
        path.write_bytes(own.read_bytes())
        os.utime(path, times=(time.time(), time.time() - days * 86_400))
    assert fetch(empty, hub).code == 0
    assert sorted(path.name for path in own.parent.iterdir()) == ["ft_a.json", "ft_running.json"]
    assert time.time() - own.stat().st_mtime < 3600, "each use makes it young again"


def test_a_commit_that_was_carried_over_is_taken_from_a_claim_that_can_only_be_read(
    empty: Claim, hub: HubServer, tmp_path: Path
) -> None:
    commit = hub.model(NAME, tiny_model())
    (found,) = fetch(empty, hub).result["sources"].values()
    asked = {"pin": "ft_b", "sources": [{"field": "model", "uri": f"{URI}@{commit}"}]}
    nowhere = {"LLM_TUNING_FETCH": json.dumps(asked), "HF_ENDPOINT": "http://127.0.0.1:1"}
    code = f"""
import os, shutil, subprocess
shutil.copytree({str(empty.root / "sources/hf")!r}, disk / "sources/hf")
remount("ro")
environment = os.environ | {nowhere!r} | {{"LLM_TUNING_ROOT": str(disk), "TERMINATION_LOG": {str(tmp_path / "log")!r}}}
subprocess.run([sys.executable, "-m", "llm_tuning.pod", "fetch"], env=environment, check=True)
"""
    run_on_small_disk(tmp_path / "claim", code, kibibytes=2048)
    result = json.loads((tmp_path / "log").read_text())
    assert (result["reason"], result["sources"]["model"]) == ("Fetched", found)


def test_a_second_pod_finds_it_and_asks_for_nothing(empty: Claim, hub: HubServer) -> None:
    hub.model(NAME, tiny_model())
    one = fetch(empty, hub)
    hub.requests.clear()
    again = fetch(empty, hub)
    assert (again.code, again.result["sources"]) == (0, one.result["sources"])
    assert hub.requests == []


def _gated(hub: HubServer) -> None:
    hub.model(NAME, tiny_model())
    hub.repositories[f"models/{NAME}"].gated = True


def _with_pickles(hub: HubServer) -> None:
    hub.model(NAME, {"pytorch_model.bin": b"x", "config.json": b"{}"})


REFUSED: dict[str, tuple[Callable[[HubServer], Any], str, str]] = {
    "SourceNotFound": (lambda hub: None, URI, "spec.model.uri"),
    "RevisionNotFound": (lambda hub: hub.model(NAME, tiny_model()), f"{URI}@gone", "gone"),
    "AccessDenied": (_gated, URI, "owner/tiny"),
    "UnsafeFormat": (_with_pickles, URI, "safetensors"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_no_retry_changes_ends_with_its_reason(empty: Claim, hub: HubServer, reason: str) -> None:
    make, uri, said = REFUSED[reason]
    make(hub)
    ended = fetch(empty, hub, {"field": "model", "uri": uri}, HF_TOKEN="t")
    assert (ended.code, ended.result["ok"], ended.result["reason"]) == (64, False, reason), ended
    assert said in ended.result["message"]


def test_credentials_are_those_of_the_source_and_never_told(empty: Claim, hub: HubServer, tmp_path: Path) -> None:
    hub.model(NAME, tiny_model())
    hub.repositories[f"models/{NAME}"].private_to = "hf_canary_token"
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "HF_TOKEN").write_text("hf_canary_token\n")
    (folder / "PYTHONPATH").write_text("/nowhere")
    ended = fetch(empty, hub, {"field": "model", "uri": URI, "credentials": str(folder)})
    assert ended.code == 0, ended
    assert {request.token for request in hub.requests} == {"hf_canary_token"}
    assert "hf_canary_token" not in ended.text + ended.log
    assert "spec.model.credentialsSecret: not taken into the environment: PYTHONPATH" in ended.log


def test_bytes_and_commit_are_reported_and_what_it_waits_for(empty: Claim, hub: HubServer) -> None:
    commit = hub.model(NAME, tiny_model(weights=2_000_000))
    hub.once(Answer(status=429, headers={"Retry-After": "7"}), times=9)
    with status_server() as endpoint:
        process = empty.start("fetch", **given(hub, KUBEFLOW_TRAINER_SERVER_URL=endpoint.url))
        words: dict[str, str] = {}
        while "waiting_reason" not in words:
            _, body = endpoint.next()
            words |= {metric["name"]: metric["value"] for metric in body["trainerStatus"]["metrics"]}
        process.terminate()
        ended = empty.end(process)
    assert (words["model_revision"], words["waiting_reason"]) == (commit, "RateLimited")
    assert (ended.code, ended.result["reason"]) == (75, "Stopped"), ended


def test_stopped_in_the_middle_the_next_pod_continues(empty: Claim, hub: HubServer) -> None:
    hub.model(NAME, tiny_model() | {"model.safetensors": content(30_000_000)})
    hub.faults.append(lambda request: Answer(chunk_pause_seconds=0.01) if "safetensors" in request.path else None)
    process = empty.start("fetch", **given(hub))
    ended = empty.stop_when(process, lambda: hub.bytes_sent > 3_000_000)
    assert ended.code == 75, ended
    hub.faults.clear()
    sent = hub.bytes_sent
    assert fetch(empty, hub).code == 0
    assert hub.bytes_sent - sent < 28_500_000, "what was there is not sent again"


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "is not set"), ("{", "JSON"), (json.dumps({"pin": "a", "sources": []}), "sources")],
    ids=["none", "no JSON", "nothing asked"],
)
def test_an_input_that_is_none_is_refused(empty: Claim, hub: HubServer, text: str | None, said: str) -> None:
    environment = {} if text is None else {"LLM_TUNING_FETCH": text}
    ended = empty.run("fetch", environment=environment)
    assert (ended.code, ended.result["ok"]) == (64, False), ended
    assert said in ended.result["message"]
