"""The client and the plugin on a real Kubernetes: what unit tests hold on a server that is imitated."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from llm_tuning.client import AsyncTuningClient, Forbidden, NotServed, TuningClient, TuningFailed
from llm_tuning.client.explain import explain_job
from tests.cluster.test_client import client, fields, kubeconfig, space
from tests.support.api_proxy import ApiProxy
from tests.support.tuning_namespace import (
    CLAIM,
    TuningNamespace,
    wait_until,
)

__all__ = ["client", "kubeconfig", "space"]  # fixtures of the tests below


def test_progress_comes_while_it_trains(client: TuningClient) -> None:
    client.tune("steps", **fields(stand_in="sleep=25"))  # the status has a report each ten seconds
    seen = [(job.phase, job.snapshot().step) for job in client.watch("steps")]
    assert seen[0][0] == "Pending" or seen[0][1] == 0
    assert any(phase == "Training" and step > 0 for phase, step in seen)
    assert seen[-1][0] == "Succeeded"
    assert "<svg" in client.get("steps")._repr_html_(), "this client has seen the losses"


def test_logs_follow_from_the_check_to_the_end(client: TuningClient) -> None:
    client.tune("logs", **fields(stand_in="sleep=5"))
    lines = list(client.logs("logs"))
    checked = next(n for n, line in enumerate(lines) if line.startswith("DatasetValid: 40 of 40 rows are kept"))
    trained = next(n for n, line in enumerate(lines) if line.startswith("Trained: "))
    assert checked < trained
    again = list(client.logs("logs", follow=False))
    assert again
    assert not any("DatasetValid" in line for line in again), "the stage that it is at"


def test_bad_data_raises_the_reason_and_the_row(client: TuningClient) -> None:
    job = client.tune("bad", **fields(dataset="datasets/bad.jsonl"))
    with pytest.raises(TuningFailed) as failed:
        job.wait(timeout_seconds=120)
    assert failed.value.reason == "DatasetInvalid"
    assert "row" in failed.value.message
    assert f"delete it (kubectl delete tj bad -n {client.namespace})" in explain_job(client.get("bad"))


def test_suspend_and_resume(client: TuningClient, space: TuningNamespace) -> None:
    client.tune("pause", **fields(stand_in="sleep=8"), suspend=True)
    space.wait("pause", "Suspended")
    job = client.get("pause")
    assert job.phase == "Suspended"
    assert "Nothing of it runs, since its spec suspends it" in explain_job(job)
    assert job.resume().wait(timeout_seconds=120).has_succeeded


def test_a_stuck_job_is_explained_while_it_is_waited_for(
    client: TuningClient, capsys: pytest.CaptureFixture[str]
) -> None:
    job = client.tune("stuck", **fields(volume="no-such-claim"))
    with pytest.raises(TimeoutError, match=r"ClaimNotFound: .*no-such-claim"):
        job.wait(timeout_seconds=40)
    assert "ClaimNotFound" in capsys.readouterr().err
    assert "It makes no progress" in explain_job(job.refresh())
    job.delete()


def test_a_watch_outlives_connections_that_are_cut(space: TuningNamespace, tmp_path: Path) -> None:
    with ApiProxy(space.cluster.kubeconfig) as proxy:
        file = proxy.kubeconfig(tmp_path / "proxy", namespace=space.name)
        with TuningClient(kubeconfig=file) as client:
            client.tune("cut", **fields(stand_in="sleep=8"))
            cuts: list[int] = []
            stop = threading.Event()

            def cut() -> None:
                while not stop.wait(1.0):
                    cuts.append(proxy.cut_watches())

            cutting = threading.Thread(target=cut)
            cutting.start()
            try:
                assert client.wait("cut", timeout_seconds=120).has_succeeded
            finally:
                stop.set()
                cutting.join()
            assert sum(cuts) >= 3


def test_two_at_once_without_blocking(kubeconfig: Path) -> None:
    async def both() -> list[str]:
        async with AsyncTuningClient(kubeconfig=kubeconfig) as client:
            jobs = [await client.tune(**fields(stand_in="sleep=3")) for _ in range(2)]
            done = await asyncio.gather(*(job.wait(timeout_seconds=120) for job in jobs))
            return [job.name for job in done if job.has_succeeded]

    names = asyncio.run(both())
    assert len(set(names)) == 2
    assert all(name.startswith("sft-") for name in names)


def test_without_the_right_it_is_said(client: TuningClient, space: TuningNamespace, kubeconfig: Path) -> None:
    with (
        TuningClient(kubeconfig=kubeconfig, namespace="kube-system") as other,
        pytest.raises(Forbidden, match=r'cannot list resource "tuningjobs".*docs/client\.md'),
    ):
        other.list()
    space.kubectl("patch", "role", "llm-tuning-user", "--type=json", "-p", '[{"op": "remove", "path": "/rules/3"}]')
    client.serve("unheard", model="base/tiny", volume=CLAIM, replicas=0)

    def refusal() -> str:
        try:
            client.chat("unheard", "hello")
        except (Forbidden, ConnectionError, NotServed) as error:
            return str(error)
        return ""

    # The authorizer hears of the change in a moment.
    wait_until(lambda: 'cannot create resource "services/proxy"' in refusal(), 20, refusal)
    client.delete_service("unheard")
