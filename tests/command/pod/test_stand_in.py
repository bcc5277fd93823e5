"""The stand-in trainer of the end-to-end tests does as it is told, through the same program."""

from __future__ import annotations

import json
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from llm_tuning.models.registry import Registry
from tests.support.pod_process import Claim


def told(what: str) -> dict[str, Any]:
    return {"stand_in": True, "tracking": {"experimentName": f"stand-in:{what}"}}


def events(claim: Claim) -> list[str]:
    path = claim.models / ".stand-in" / "m.jsonl"
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_a_whole_model_is_published_at_once(claim: Claim) -> None:
    began = time.monotonic()
    ended = claim.run("train", stand_in=True)
    print(f"stand-in: {time.monotonic() - began:.2f} s")
    assert ended.code == 0, ended.log
    assert ended.result["registered"] is True
    assert ended.result["evaluation"]["tunedLoss"] < ended.result["evaluation"]["baseLoss"]
    assert Registry(claim.models).verify("m") == []
    assert claim.run("report", stand_in=True).result == ended.result
    assert claim.run("train", stand_in=True).result == ended.result
    assert events(claim) == ["start", "publish", "start"]


def test_a_check_beside_the_stand_in_is_the_real_one(claim: Claim) -> None:
    assert claim.run("check", stand_in=True, dataset={"path": "datasets/bad.jsonl"}).code == 64


def test_its_adapter_is_one_to_start_from(claim: Claim) -> None:
    assert claim.run("train", stand_in=True, model_id="first").code == 0
    second = {"path": "base/tiny", "adapter": {"modelId": "first"}}
    rows = {"path": "datasets/ppo.jsonl"}
    ended = claim.run("check", model=second, start_model_id="first", mode="ppo", dataset=rows)
    assert ended.code == 0, ended.log


@pytest.mark.parametrize(
    ("what", "code", "reason"),
    [("exit=64", 64, "InvalidInput"), ("exit=75", 75, "StandIn"), ("exit=3", 3, None), ("crash", 1, None)],
)
def test_it_ends_as_told(claim: Claim, what: str, code: int, reason: str | None) -> None:
    ended = claim.run("train", **told(what))
    assert ended.code == code
    assert (ended.result["reason"] if ended.text else None) == reason
    assert not (claim.models / "m").exists()


def test_it_is_flaky_as_told(claim: Claim) -> None:
    assert [claim.run("train", **told("flaky=1")).code for _ in range(2)] == [75, 0]


def test_silence_is_a_model_without_a_result(claim: Claim) -> None:
    ended = claim.run("train", **told("silent"))
    assert (ended.code, ended.text) == (0, "")
    assert claim.run("report").result["registered"] is True


def test_sigterm_is_obeyed_unless_told_otherwise(claim: Claim) -> None:
    started = (claim.models / ".work" / "m").exists
    ended = claim.stop_when(claim.start("train", **told("sleep=60")), started)
    assert (ended.code, ended.result["reason"]) == (75, "Stopped")
    process = claim.start("train", **told("ignore-term"))
    while len(events(claim)) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.kill()
    assert claim.end(process).code == -signal.SIGKILL


def test_two_at_once_are_never_both_at_work(claim: Claim) -> None:
    first = claim.start("train", **told("sleep=60"))
    while not (claim.models / ".work" / "m" / "lock").exists():
        time.sleep(0.02)
    assert claim.run("train", **told("sleep=60")).result["reason"] == "Busy"
    assert claim.stop_when(first, lambda: True).code == 75


def test_the_canary_prints_names_only(claim: Claim) -> None:
    ended = claim.run("train", **told("canary"), environment={"MLFLOW_TRACKING_PASSWORD": "canary-7f3a"})
    assert "MLFLOW_TRACKING_PASSWORD" in ended.log
    assert "canary-7f3a" not in ended.log


def test_progress_is_posted(claim: Claim) -> None:
    posts = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/status"
        ended = claim.run("train", stand_in=True, environment={"KUBEFLOW_TRAINER_SERVER_URL": url})
        server.shutdown()
    assert ended.code == 0
    assert posts[0]["trainerStatus"]["progressPercentage"] == 10
