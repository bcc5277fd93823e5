"""The client, for callers with an event loop. `llm_tuning.client.sync` is the same without one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self, TextIO, Unpack, cast

from pydantic import PrivateAttr

from llm_tuning.api import inference_service, kube, tuning_job
from llm_tuning.api.inference_service import InferenceService
from llm_tuning.api.tuning_job import TuningJob
from llm_tuning.client import chat
from llm_tuning.client.answers import ChatAnswer, ChatPiece, Message
from llm_tuning.client.api import MERGE_PATCH, Api, Raw
from llm_tuning.client.connection import Connection
from llm_tuning.client.display import job_html, service_html
from llm_tuning.client.errors import NotFound
from llm_tuning.client.logs import LossPoint, follow_logs, read_losses
from llm_tuning.client.objects import InferenceServiceView, OnUnreadable, TuningJobView, read_each
from llm_tuning.client.specs import (
    ServeFields,
    TuneFields,
    build_inference_service,
    build_tuning_job,
    checked,
    serving_fields,
)
from llm_tuning.client.waiting import wait_until
from llm_tuning.errors import InputError, Problem

FIELD_MANAGER = "llm-tuning-client"


class AsyncTuningClient:
    """TuningJobs and InferenceServices of one namespace.

    TuningClient().tune("faq", model="base/qwen3-0.6b", dataset="datasets/faq.json", volume="tuning").wait().serve()

    With AsyncTuningClient each call of such a chain is awaited. Each method raises InputError with the fields to blame,
    before a request where that can be known, or a ClusterError.
    """

    def __init__(
        self,
        *,
        namespace: str | None = None,
        context: str | None = None,
        kubeconfig: str | Path | None = None,
        connection: Connection | None = None,
    ) -> None:
        """Connect, by default as kubectl would or as the pod this runs in; see Connection.load."""
        given = connection or Connection.load(namespace=namespace, context=context, kubeconfig=kubeconfig)
        self._api = Api(given)
        self._seen: dict[str, dict[int, float]] = {}

    @property
    def namespace(self) -> str:
        return self._api.connection.namespace

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- made and changed --------------------------------------------------------------------------------------------

    async def create(self, values: Mapping[str, Any] | TuningJob | InferenceService) -> AsyncJob | AsyncService:
        """Create a whole object, as it would stand in a YAML file or as a model of llm_tuning.api."""
        body = checked(values)
        return await (self._new_service(body) if body["kind"] == inference_service.KIND else self._new_job(body))

    async def tune(self, name: str | None = None, **fields: Unpack[TuneFields]) -> AsyncJob:
        """Create a TuningJob; without a name the server makes one up."""
        return await self._new_job(build_tuning_job(name, fields))

    async def serve(
        self, name: str, *, job: str | TuningJob | None = None, **fields: Unpack[ServeFields]
    ) -> AsyncService:
        """Create an InferenceService; with `job` its route `name` leads to that TuningJob's adapter, on its base."""
        if job is not None:
            found = job if isinstance(job, TuningJob) else await self.get(job)
            fields = cast(ServeFields, {**serving_fields(found, name), **fields})
        return await self._new_service(build_inference_service(name, fields))

    async def suspend(self, name: str) -> AsyncJob:
        """Suspend a TuningJob: its pods end, after a checkpoint."""
        return await self._patch(name, {"spec": {"suspend": True}})

    async def resume(self, name: str) -> AsyncJob:
        """Resume a suspended TuningJob from its last checkpoint."""
        return await self._patch(name, {"spec": {"suspend": False}})

    async def patch(self, name: str, change: Mapping[str, Any]) -> AsyncJob:
        """Merge `change` into a TuningJob (RFC 7386): {"metadata": {"labels": {"team": "a", "old": None}}}."""
        return await self._patch(name, change)

    async def patch_service(self, name: str, change: Mapping[str, Any]) -> AsyncService:
        """Merge `change` into a service; a metadata.resourceVersion that is not the newest raises Conflict."""
        return self._service(await self._merge(f"{self._services}/{name}", change))

    async def delete(self, name: str) -> None:
        """Delete a TuningJob; its pods end, a published adapter stays on the claim."""
        await self._api.call("DELETE", f"{self._jobs}/{name}")

    async def delete_service(self, name: str) -> None:
        """Delete an InferenceService and all that serves it; the adapters stay on the claim."""
        await self._api.call("DELETE", f"{self._services}/{name}")

    # --- read and watched --------------------------------------------------------------------------------------------

    async def get(self, name: str) -> AsyncJob:
        """Read a TuningJob as it is now."""
        return self._job(await self._api.call("GET", f"{self._jobs}/{name}"))

    async def get_service(self, name: str) -> AsyncService:
        """Read an InferenceService as it is now."""
        return self._service(await self._api.call("GET", f"{self._services}/{name}"))

    async def list(
        self, *, labels: Mapping[str, str] | None = None, on_unreadable: OnUnreadable | None = None
    ) -> Sequence[AsyncJob]:
        """List the namespace's TuningJobs; with `labels` those that have all of them.

        One that this version cannot read raises InputError; with `on_unreadable` that gets it, and the list the others.
        """
        return read_each(await self._api.items(self._jobs, labels), self._job, on_unreadable)

    async def list_services(
        self, *, labels: Mapping[str, str] | None = None, on_unreadable: OnUnreadable | None = None
    ) -> Sequence[AsyncService]:
        """List the namespace's InferenceServices, as `list` does TuningJobs."""
        return read_each(await self._api.items(self._services, labels), self._service, on_unreadable)

    async def watch(self, name: str) -> AsyncGenerator[AsyncJob, None]:
        """Yield a TuningJob as it is now and after each change, to its end; raises NotFound when it is deleted."""
        async with aclosing(self._watch(self._jobs, name, tuning_job.KIND)) as versions:
            async for raw in versions:
                job = self._job(raw)
                yield job
                if job.is_finished:
                    return

    async def watch_service(self, name: str) -> AsyncGenerator[AsyncService, None]:
        """Yield an InferenceService now and after each change, without end; raises NotFound when it is deleted."""
        async with aclosing(self._watch(self._services, name, inference_service.KIND)) as versions:
            async for raw in versions:
                yield self._service(raw)

    async def wait(
        self, name: str, *, timeout_seconds: float | None = None, progress: bool | TextIO = True
    ) -> AsyncJob:
        """Wait for the finished TuningJob; `progress` (True: on standard error) shows how far it is and what stalls it.

        Raises TuningFailed with the job's reason and message where there is no adapter, WaitTimeout when time is up
        (the job continues), and NotFound when it is deleted.
        """
        what = (f"TuningJob {name}", "finished")
        job = await wait_until(
            self.watch(name), lambda job: job.is_finished, what, timeout_seconds=timeout_seconds, progress=progress
        )
        job.raise_if_failed()
        return job

    async def wait_service(
        self, name: str, *, timeout_seconds: float | None = None, progress: bool | TextIO = True
    ) -> AsyncService:
        """Wait for the InferenceService whose every route answers as it was trained.

        One that cannot get ready is waited for as well, since what is in its way may be put right: give a limit.
        Raises WaitTimeout with what was in the way, and NotFound when it is deleted.
        """
        what = (f"InferenceService {name}", "ready")
        versions = self.watch_service(name)
        return await wait_until(
            versions, lambda service: service.is_ready, what, timeout_seconds=timeout_seconds, progress=progress
        )

    async def logs(self, name: str, *, follow: bool = True, rank: int = 0) -> AsyncGenerator[str, None]:
        """Yield log lines of the pods of a TuningJob's present stage, with `follow` of all later ones to its end.

        Of a training of several pods (resources.nodes) they are those of the pod that has `rank`.
        """
        async with aclosing(follow_logs(self._api, self._jobs, name, follow=follow, rank=rank)) as lines:
            async for line in lines:
                yield line

    async def losses(self, name: str) -> Sequence[LossPoint]:
        """Read the loss curve of a TuningJob: from its pods' logs or, if they are gone, what this client has seen."""
        job = await self.get(name)
        return await read_losses(self._api, job.uid) or self._curve(job)

    # --- asked -------------------------------------------------------------------------------------------------------

    async def chat(
        self,
        name: str,
        message: str | Sequence[Message],
        *,
        model: str | None = None,
        api_key: str | None = None,
        **parameters: Any,
    ) -> ChatAnswer:
        """Ask an InferenceService through the API server; needs `create` on `services/proxy`.

        `message` is a user's text, or messages as in OpenAI's API, whose other parameters (max_tokens, temperature,
        tools) are taken too. `model` is a route or the base's name; with one route it may be left out. `api_key` is for
        a service with `apiKeySecret`. Raises NotServed in the service's own words. Within the cluster any OpenAI client
        does, with `status.url`.
        """
        body = chat.request_body(await self.get_service(name), message, model, parameters)
        return await chat.complete(self._api, name, body, api_key=api_key)

    async def chat_stream(
        self,
        name: str,
        message: str | Sequence[Message],
        *,
        model: str | None = None,
        api_key: str | None = None,
        **parameters: Any,
    ) -> AsyncGenerator[ChatPiece, None]:
        """Ask as `chat` does, and yield the answer piece by piece while it is made.

        A piece is some text or some reasoning; the last one has the whole answer, with its calls of tools.
        """
        body = chat.request_body(await self.get_service(name), message, model, parameters)
        async with aclosing(chat.stream(self._api, name, body, api_key=api_key)) as pieces:
            async for piece in pieces:
                yield piece

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def _jobs(self) -> str:
        return kube.objects_path(self.namespace, tuning_job.PLURAL)

    @property
    def _services(self) -> str:
        return kube.objects_path(self.namespace, inference_service.PLURAL)

    async def _new_job(self, body: Raw) -> AsyncJob:
        return self._job(await self._create(self._jobs, body))

    async def _new_service(self, body: Raw) -> AsyncService:
        return self._service(await self._create(self._services, body))

    async def _create(self, path: str, body: Raw) -> Raw:
        given = body["metadata"].get("namespace", self.namespace)
        if given != self.namespace:
            rule = f"is {given!r}, but this client's namespace is {self.namespace!r}"
            raise InputError(Problem("metadata.namespace", rule, "leave it out, or use a client of that namespace"))
        query = {"fieldValidation": "Strict", "fieldManager": FIELD_MANAGER}
        body = {**body, "metadata": {**body["metadata"], "namespace": self.namespace}}
        return await self._api.call("POST", path, query=query, body=body)

    async def _patch(self, name: str, change: Mapping[str, Any]) -> AsyncJob:
        return self._job(await self._merge(f"{self._jobs}/{name}", change))

    async def _merge(self, path: str, change: Mapping[str, Any]) -> Raw:
        query = {"fieldValidation": "Strict", "fieldManager": FIELD_MANAGER}
        return await self._api.call("PATCH", path, query=query, body=dict(change), content_type=MERGE_PATCH)

    async def _watch(self, path: str, name: str, kind: str) -> AsyncGenerator[Raw, None]:
        uid = None
        async with aclosing(self._api.watch(path, name)) as versions:
            async for raw in versions:
                if raw is None:
                    where = f"{kind} {name} in namespace {self.namespace}"
                    raise NotFound(f"there is no {where}" if uid is None else f"{where} was deleted")
                if uid not in (None, raw["metadata"]["uid"]):
                    raise NotFound(f"{kind} {name} was deleted; there is another one of that name now")
                uid = raw["metadata"]["uid"]
                yield raw

    def _curve(self, job: TuningJobView) -> Sequence[LossPoint]:
        """Return the losses that this client has seen in the status of `job`."""
        return [LossPoint(*point) for point in sorted(self._seen.get(job.uid, {}).items())]

    def _job(self, raw: Raw) -> AsyncJob:
        job = AsyncJob.of(raw)
        job._client = self
        progress = job.status.progress if job.status is not None else None
        if progress is not None and progress.loss is not None:
            self._seen.setdefault(job.uid, {})[progress.step] = progress.loss
        return job

    def _service(self, raw: Raw) -> AsyncService:
        service = AsyncService.of(raw)
        service._client = self
        return service


class AsyncJob(TuningJobView):
    """A TuningJob as it was at one moment, and what can be done with it."""

    _client: AsyncTuningClient = PrivateAttr()
    _losses: Sequence[LossPoint] = PrivateAttr(default=())

    async def refresh(self) -> AsyncJob:
        """Read the TuningJob as it is now."""
        return await self._client.get(self.name)

    def watch(self) -> AsyncGenerator[AsyncJob, None]:
        """Yield the TuningJob now and after each change; see AsyncTuningClient.watch."""
        return self._client.watch(self.name)

    async def wait(self, *, timeout_seconds: float | None = None, progress: bool | TextIO = True) -> AsyncJob:
        """Wait until the TuningJob has finished; see AsyncTuningClient.wait."""
        return await self._client.wait(self.name, timeout_seconds=timeout_seconds, progress=progress)

    def logs(self, *, follow: bool = True, rank: int = 0) -> AsyncGenerator[str, None]:
        """Yield the lines of its pods' logs; see AsyncTuningClient.logs."""
        return self._client.logs(self.name, follow=follow, rank=rank)

    async def losses(self) -> Sequence[LossPoint]:
        """Read the loss curve, which a notebook shows afterwards; see AsyncTuningClient.losses."""
        self._losses = await self._client.losses(self.name)
        return self._losses

    async def suspend(self) -> AsyncJob:
        """Suspend the TuningJob; see AsyncTuningClient.suspend."""
        return await self._client.suspend(self.name)

    async def resume(self) -> AsyncJob:
        """Resume the TuningJob; see AsyncTuningClient.resume."""
        return await self._client.resume(self.name)

    async def delete(self) -> None:
        """Delete the TuningJob; see AsyncTuningClient.delete."""
        await self._client.delete(self.name)

    async def serve(self, name: str | None = None, **fields: Unpack[ServeFields]) -> AsyncService:
        """Serve this job's adapter on a route and service `name`, by default the job's own."""
        return await self._client.serve(name or self.name, job=self, **fields)

    def _repr_html_(self) -> str:
        return job_html(self, self._losses or self._client._curve(self))


class AsyncService(InferenceServiceView):
    """An InferenceService as it was at one moment, and what can be done with it."""

    _client: AsyncTuningClient = PrivateAttr()

    async def refresh(self) -> AsyncService:
        """Read the InferenceService as it is now."""
        return await self._client.get_service(self.name)

    async def wait(self, *, timeout_seconds: float | None = None, progress: bool | TextIO = True) -> AsyncService:
        """Wait until the InferenceService is ready; see AsyncTuningClient.wait_service."""
        return await self._client.wait_service(self.name, timeout_seconds=timeout_seconds, progress=progress)

    async def chat(
        self,
        message: str | Sequence[Message],
        *,
        model: str | None = None,
        api_key: str | None = None,
        **parameters: Any,
    ) -> ChatAnswer:
        """Ask the InferenceService; see AsyncTuningClient.chat."""
        return await self._client.chat(self.name, message, model=model, api_key=api_key, **parameters)

    def chat_stream(
        self,
        message: str | Sequence[Message],
        *,
        model: str | None = None,
        api_key: str | None = None,
        **parameters: Any,
    ) -> AsyncGenerator[ChatPiece, None]:
        """Ask the InferenceService and yield the answer as it is made; see AsyncTuningClient.chat_stream."""
        return self._client.chat_stream(self.name, message, model=model, api_key=api_key, **parameters)

    async def delete(self) -> None:
        """Delete the InferenceService; see AsyncTuningClient.delete_service."""
        await self._client.delete_service(self.name)

    def _repr_html_(self) -> str:
        return service_html(self)
