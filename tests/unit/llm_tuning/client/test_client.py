"""What is sent, and what refusals become; the synchronous client is the asynchronous one's shadow."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import llm_tuning.client as package
from llm_tuning.api import LoraSpec, TrainingSpec, TuningJob
from llm_tuning.client import (
    AsyncJob,
    AsyncService,
    AsyncTuningClient,
    Conflict,
    Forbidden,
    Job,
    NotFound,
    Service,
    TuningClient,
    Unavailable,
)
from llm_tuning.errors import InputError
from tests.support.fake_api_server import FakeApiServer, status_object
from tests.support.spec_corpus import CORPORA
from tests.unit.llm_tuning.client.conftest import SPEC, SUCCEEDED, training


@pytest.fixture
async def sync(server: FakeApiServer) -> Any:
    """The synchronous client of the server; call it in a thread, for the server runs on this one's loop."""
    with TuningClient(connection=server.connection) as made:
        yield made


def test_the_public_face_is_small_and_known() -> None:
    assert package.__all__ == sorted(package.__all__)
    assert set(package.__all__) == {
        *("TuningClient", "AsyncTuningClient", "Job", "AsyncJob", "Service", "AsyncService", "Connection"),
        *(
            "ClusterError",
            "Conflict",
            "Forbidden",
            "NotFound",
            "Unavailable",
            "NotServed",
            "TuningFailed",
            "WaitTimeout",
        ),
        *("ChatAnswer", "ChatPiece", "LossPoint"),
    }


@pytest.mark.parametrize(
    ("shadow", "source"), [(TuningClient, AsyncTuningClient), (Job, AsyncJob), (Service, AsyncService)]
)
def test_sync_and_async_have_the_same_methods_and_arguments(shadow: type, source: type) -> None:
    def public(kind: type) -> dict[str, list[str]]:
        ours = [base for base in kind.__mro__ if base.__module__.startswith("llm_tuning.client.")]
        found = [item for base in ours for item in vars(base).items()]
        methods = {name: m for name, m in found if inspect.isfunction(m) and not name.startswith("_")}
        return {name: [str(p) for p in inspect.signature(m).parameters.values()] for name, m in methods.items()}

    assert public(shadow) == public(source)


async def test_tune_sends_what_was_given_and_no_more(server: FakeApiServer, client: AsyncTuningClient) -> None:
    job = await client.tune(
        "faq",
        model="base/tiny",
        dataset={"configMap": {"name": "faq", "key": "faq.jsonl"}},
        volume="tuning",
        training=TrainingSpec(max_steps=4),
        lora={"rank": 8},
        ttl_seconds_after_finished=60,
        serve="faq-live",
    )
    method, path, _, body = server.requests[-1]
    assert method == "POST"
    assert "fieldValidation=Strict" in path
    assert body["metadata"] == {"name": "faq", "namespace": "team"}
    assert body["spec"] == {
        "model": {"path": "base/tiny"},
        "dataset": {"configMap": {"name": "faq", "key": "faq.jsonl"}},
        "volume": {"claimName": "tuning"},
        "training": {"maxSteps": 4},
        "lora": {"rank": 8},
        "ttlSecondsAfterFinished": 60,
        "serve": {"name": "faq-live"},
    }
    assert isinstance(job, AsyncJob)
    assert isinstance(job, TuningJob)
    assert (job.name, job.phase, job.spec.training.max_steps) == ("faq", "Pending", 4)


async def test_without_a_name_the_server_makes_one(server: FakeApiServer, client: AsyncTuningClient) -> None:
    job = await client.tune(mode="ppo", model="base/tiny", dataset="d.jsonl", volume="tuning")
    assert server.requests[-1][3]["metadata"]["generateName"] == "ppo-"
    assert job.name == "ppo-x100"


async def test_create_takes_objects_as_yaml_has_them_and_models(
    server: FakeApiServer, client: AsyncTuningClient
) -> None:
    written = {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "TuningJob",
        "metadata": {"name": "a"},
        "spec": SPEC,
    }
    await client.create(written)
    assert server.requests[-1][3]["spec"] == SPEC
    model = TuningJob.model_validate({"metadata": {"name": "b"}, "spec": {**SPEC, "lora": LoraSpec(rank=4)}})
    await client.create(model)
    assert server.requests[-1][3]["kind"] == "TuningJob"
    assert server.requests[-1][3]["spec"] == {**SPEC, "lora": {"rank": 4}}
    service = {**written, "kind": "InferenceService", "spec": {key: SPEC[key] for key in ("model", "volume")}}
    assert isinstance(await client.create(service), AsyncService)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"kind": "Pod", "apiVersion": "v1"}, "kind"),
        ({"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "a"}}, "kind"),
        ({"apiVersion": "tuning.llmtuning.dev/v1alpha1", "kind": "TuningJob", "spec": SPEC}, "metadata"),
        ({"apiVersion": "tuning.llmtuning.dev/v1alpha1", "kind": "TuningJob", "metadata": {"name": "a"}}, "spec"),
    ],
)
async def test_what_is_no_object_of_ours_is_refused(
    server: FakeApiServer, client: AsyncTuningClient, values: dict[str, Any], field: str
) -> None:
    with pytest.raises(InputError) as refused:
        await client.create(values)
    assert [problem.where for problem in refused.value.problems] == [field]
    assert server.requests == []


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda corpus: corpus.kind.name)
async def test_the_check_before_a_request_gives_the_corpus_verdict(
    server: FakeApiServer, client: AsyncTuningClient, corpus: Any
) -> None:
    """Which is the API server's (tests/cluster/test_crd_corpus.py); every twentieth will do here."""
    for number, case in enumerate(corpus.cases()[::20]):
        values = {
            "apiVersion": "tuning.llmtuning.dev/v1alpha1",
            "kind": corpus.kind.name,
            "metadata": {"name": f"case-{number}"},
            "spec": case.spec,
        }
        before = len(server.requests)
        if case.good:
            await client.create(values)
            assert server.requests[-1][3]["spec"] == case.spec, case.name
        else:
            with pytest.raises(InputError) as refused:
                await client.create(values)
            assert all(p.where.startswith(f"spec.{case.field}") for p in refused.value.problems), case.name
            assert len(server.requests) == before


async def test_all_problems_come_at_once(client: AsyncTuningClient) -> None:
    with pytest.raises(InputError) as refused:
        await client.tune("Faq", model="/abs", dataset="d", volume="tuning", lora={"rank": 0}, retries=-1)
    fields = {problem.where for problem in refused.value.problems}
    assert {"spec.model.path", "spec.lora.rank", "spec.retries"} <= fields
    with pytest.raises(InputError, match=r"spec\.volume: is required; add it"):
        await client.tune("faq", model="base/a", dataset="d")


async def test_422_becomes_a_problem_for_each_field(server: FakeApiServer, client: AsyncTuningClient) -> None:
    causes = [
        {"reason": "FieldValueInvalid", "message": "Invalid value: 0: should be at least 1", "field": "spec.lora.rank"},
        {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.model"},
    ]
    message = 'TuningJob.tuning.llmtuning.dev "faq" is invalid: [spec.lora.rank: ..., spec.model: ...]'
    server.next_answers.append(status_object(422, "Invalid", message, name="faq", causes=causes))
    with pytest.raises(InputError) as refused:
        await client.tune("faq", model="base/tiny", dataset="d.json", volume="tuning")
    assert [str(problem) for problem in refused.value.problems] == [
        "spec.lora.rank: Invalid value: 0: should be at least 1",
        "spec.model: Required value",
    ]


async def test_a_field_that_an_older_cluster_does_not_know(server: FakeApiServer, client: AsyncTuningClient) -> None:
    message = 'strict decoding error: unknown field "spec.retries"'
    server.next_answers.append(status_object(400, "BadRequest", message))
    with pytest.raises(InputError, match="unknown field"):
        await client.tune("faq", model="base/tiny", dataset="d.json", volume="tuning", retries=1)


@pytest.mark.parametrize(
    ("code", "reason", "want"),
    [
        (401, "Unauthorized", Forbidden),
        (403, "Forbidden", Forbidden),
        (404, "NotFound", NotFound),
        (409, "AlreadyExists", Conflict),
        (429, "TooManyRequests", Unavailable),
        (500, "InternalError", Unavailable),
        (503, "ServiceUnavailable", Unavailable),
    ],
)
async def test_failures_stay_different_and_keep_the_servers_words(
    server: FakeApiServer, client: AsyncTuningClient, code: int, reason: str, want: type[Exception]
) -> None:
    server.next_answers.append(status_object(code, reason, "the server's own words"))
    with pytest.raises(want, match="the server's own words") as failed:
        await client.get("faq")
    assert type(failed.value) is want
    assert len(server.requests) == 1, "nothing is asked twice"


async def test_an_answer_that_is_no_api_servers(server: FakeApiServer, client: AsyncTuningClient) -> None:
    from aiohttp import web

    server.next_answers += [web.Response(text="<html>log in</html>"), web.Response(status=502, text="<html>bad</html>")]
    with pytest.raises(Unavailable, match="no JSON object"):
        await client.get("faq")
    with pytest.raises(Unavailable, match="HTTP status 502"):
        await client.get("faq")


async def test_a_status_of_a_newer_operator_is_read(server: FakeApiServer, client: AsyncTuningClient) -> None:
    spec = {**SPEC, "newer": {"field": 1}, "resources": {"cpu": 4}}
    await server.put("tuningjobs", "faq", spec=spec, status={**training(5), "newer": 1})
    job = await client.get("faq")
    assert (job.spec.resources.cpu, job.snapshot().step) == ("4", 5)
    assert [found.name for found in await client.list()] == ["faq"]


async def test_suspend_resume_and_delete(server: FakeApiServer, client: AsyncTuningClient) -> None:
    await server.put("tuningjobs", "faq", spec=dict(SPEC))
    assert (await client.suspend("faq")).spec.suspend
    assert server.requests[-1][2]["Content-Type"] == "application/merge-patch+json"
    job = await client.resume("faq")
    assert not job.spec.suspend
    await job.delete()
    with pytest.raises(NotFound):
        await job.refresh()


async def test_patches_merge_and_lists_choose_by_label(server: FakeApiServer, client: AsyncTuningClient) -> None:
    for name in ("faq", "other"):
        await server.put("tuningjobs", name, spec=dict(SPEC))
    await client.patch("faq", {"metadata": {"labels": {"team": "a", "since": "may"}}})
    job = await client.patch("faq", {"metadata": {"labels": {"since": None}}, "spec": {"suspend": True}})
    assert job.metadata["labels"] == {"team": "a"}
    assert job.spec.suspend
    assert [job.name for job in await client.list(labels={"team": "a"})] == ["faq"]
    assert len(await client.list()) == 2


async def test_an_object_that_cannot_be_read_ends_a_list_unless_somebody_takes_it(
    server: FakeApiServer, client: AsyncTuningClient
) -> None:
    await server.put("tuningjobs", "faq", spec=dict(SPEC))
    await server.put("tuningjobs", "newer", spec=dict(SPEC), status={"conditions": [{"type": "Finished"}]})
    with pytest.raises(InputError, match=r"newer: status\.conditions\[0\]"):
        await client.list()
    taken = {}
    found = await client.list(on_unreadable=lambda raw, problem: taken.update({raw["metadata"]["name"]: problem}))
    assert [job.name for job in found] == ["faq"]
    assert "newer: status.conditions[0]" in str(taken["newer"])


async def test_a_patch_of_an_old_version_changes_nothing(server: FakeApiServer, client: AsyncTuningClient) -> None:
    service = await client.serve("faq-live", model="base/tiny", volume="tuning")
    change = {"metadata": {"resourceVersion": service.metadata["resourceVersion"]}, "spec": {"replicas": 2}}
    assert (await client.patch_service("faq-live", change)).spec.replicas == 2
    with pytest.raises(Conflict, match="has been modified"):
        await client.patch_service("faq-live", {**change, "spec": {"replicas": 3}})
    assert (await client.get_service("faq-live")).spec.replicas == 2


async def test_serve_of_a_job_takes_its_base_claim_and_name(server: FakeApiServer, client: AsyncTuningClient) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC, status=SUCCEEDED)
    job = await client.wait("faq", progress=False)
    service = await job.serve("faq-live", replicas=2, api_key_secret="llm-tuning-key")
    body = server.requests[-1][3]
    assert body["metadata"]["name"] == "faq-live"
    assert body["spec"] == {
        "model": {"path": "base/tiny"},
        "volume": {"claimName": "tuning"},
        "routes": [{"name": "faq-live", "targets": [{"tuningJob": "faq"}]}],
        "replicas": 2,
        "apiKeySecret": {"name": "llm-tuning-key"},
    }
    assert service.models == ["faq-live", "tiny"]
    with pytest.raises(InputError, match=r"spec\.routes: a route must not have the base's name"):
        await client.serve("tiny", job="faq")


async def test_the_token_is_asked_for_each_request(server: FakeApiServer) -> None:
    from dataclasses import replace

    tokens: Iterator[str] = iter(["Bearer one", "Bearer two"])
    connection = replace(server.connection, token=lambda: next(tokens))
    async with AsyncTuningClient(connection=connection) as client:
        for _ in range(2):
            await client.list()
    assert [headers["Authorization"] for _, _, headers, _ in server.requests] == ["Bearer one", "Bearer two"]


async def test_the_whole_chain_in_one_line(server: FakeApiServer, sync: TuningClient) -> None:
    def chain() -> Service:
        return sync.tune("faq", model="base/tiny", dataset="d.json", volume="tuning").wait(progress=False).serve()

    chaining = asyncio.create_task(asyncio.to_thread(chain))
    while not server.all("tuningjobs"):
        await asyncio.sleep(0.01)
    await server.put("tuningjobs", "faq", status=SUCCEEDED)
    service = await asyncio.wait_for(chaining, 30)
    assert (service.name, service.spec.routes[0].targets[0].tuning_job) == ("faq", "faq")


async def test_iterators_of_the_synchronous_client_end_and_can_be_left(
    server: FakeApiServer, sync: TuningClient
) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC, status=training(1))

    def first() -> int:
        for job in sync.watch("faq"):
            return job.snapshot().step
        raise AssertionError

    assert await asyncio.to_thread(first) == 1
    await server.put("tuningjobs", "faq", status=SUCCEEDED)
    assert [job.phase for job in await asyncio.to_thread(lambda: list(sync.watch("faq")))] == ["Succeeded"]
    with pytest.raises(NotFound):
        await asyncio.to_thread(sync.get, "other")


async def test_a_wait_that_is_given_up_leaves_nothing_behind(server: FakeApiServer, sync: TuningClient) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC, status=training(1))
    with pytest.raises(TimeoutError, match=r"not finished within 0\.2 s; TuningJob faq: Training, 1 %"):
        await asyncio.to_thread(sync.wait, "faq", progress=False, timeout_seconds=0.2)
    assert asyncio.all_tasks(sync._loop._loop) == set()
