"""The client for everybody else: each method runs its namesake of `aio` on an event loop in a thread of its own.

So it works in scripts and in notebooks, whose main thread has a loop that runs already, and there is one client only.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TextIO, TypeVar, Unpack

from pydantic import PrivateAttr

from llm_tuning.api.inference_service import InferenceService
from llm_tuning.api.tuning_job import TuningJob
from llm_tuning.client.aio import AsyncTuningClient
from llm_tuning.client.chat import ChatAnswer, Message
from llm_tuning.client.connection import Connection
from llm_tuning.client.display import job_html, service_html
from llm_tuning.client.logs import LossPoint
from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.client.specs import ServeFields, TuneFields
from llm_tuning.errors import TuningError

T = TypeVar("T")

DISPLAY_SECONDS = 5.0
"""How long showing an object waits for its loss curve."""


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llm-tuning-client", daemon=True)
        self._thread.start()

    def run(self, awaitable: Awaitable[T]) -> T:
        """What `awaitable` gives; when the caller is interrupted, it is cancelled."""

        async def wait() -> T:
            return await awaitable

        future = asyncio.run_coroutine_threadsafe(wait(), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, source: AsyncGenerator[T, None]) -> Iterator[T]:
        """What `source` gives, one after the other; it is closed when the caller leaves."""
        try:
            while True:
                try:
                    yield self.run(anext(source))
                except StopAsyncIteration:
                    return
        finally:
            self.run(source.aclose())

    def stop(self) -> None:
        """End the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class TuningClient:
    """TuningJobs and InferenceServices of one namespace.

    TuningClient().tune("faq", model="base/qwen3-0.6b", dataset="datasets/faq.json", volume="tuning").wait().serve()

    Each method raises InputError with the fields to blame, before a request where that can be known, or a ClusterError.
    """

    def __init__(
        self,
        *,
        namespace: str | None = None,
        context: str | None = None,
        kubeconfig: str | Path | None = None,
        connection: Connection | None = None,
    ) -> None:
        """By default the cluster, user and namespace that kubectl would use, or the pod's own. See Connection.load."""
        self._client = AsyncTuningClient(
            namespace=namespace, context=context, kubeconfig=kubeconfig, connection=connection
        )
        self._loop = _Loop()

    @property
    def namespace(self) -> str:
        return self._client.namespace

    def close(self) -> None:
        """Let go of the connections and end the thread. A program that ends needs not call it."""
        self._loop.run(self._client.close())
        self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create(self, values: Mapping[str, Any] | TuningJob | InferenceService) -> Job | Service:
        """Create a whole object, as it would stand in a YAML file or as a model of llm_tuning.api."""
        made = self._loop.run(self._client.create(values))
        return self._job(made) if isinstance(made, TuningJobView) else self._service(made)

    def tune(self, name: str | None = None, **fields: Unpack[TuneFields]) -> Job:
        """Create a TuningJob; without a name the server makes one up."""
        return self._job(self._loop.run(self._client.tune(name, **fields)))

    def serve(self, name: str, *, job: str | TuningJob | None = None, **fields: Unpack[ServeFields]) -> Service:
        """Create an InferenceService; with `job` its route `name` leads to that TuningJob's adapter, on its base."""
        return self._service(self._loop.run(self._client.serve(name, job=job, **fields)))

    def suspend(self, name: str) -> Job:
        """Have the pods of a TuningJob end, after a checkpoint."""
        return self._job(self._loop.run(self._client.suspend(name)))

    def resume(self, name: str) -> Job:
        """Let a suspended TuningJob go on where it was."""
        return self._job(self._loop.run(self._client.resume(name)))

    def delete(self, name: str) -> None:
        """Delete a TuningJob; its pods end, a published adapter stays on the claim."""
        self._loop.run(self._client.delete(name))

    def delete_service(self, name: str) -> None:
        """Delete an InferenceService and all that serves it; the adapters stay on the claim."""
        self._loop.run(self._client.delete_service(name))

    def get(self, name: str) -> Job:
        """A TuningJob as it is now."""
        return self._job(self._loop.run(self._client.get(name)))

    def get_service(self, name: str) -> Service:
        """An InferenceService as it is now."""
        return self._service(self._loop.run(self._client.get_service(name)))

    def list(self) -> Sequence[Job]:
        """The namespace's TuningJobs."""
        return [self._job(job) for job in self._loop.run(self._client.list())]

    def list_services(self) -> Sequence[Service]:
        """The namespace's InferenceServices."""
        return [self._service(service) for service in self._loop.run(self._client.list_services())]

    def watch(self, name: str) -> Iterator[Job]:
        """A TuningJob as it is now and after each change, to its end; raises NotFound when it is deleted."""
        return map(self._job, self._loop.iterate(self._client.watch(name)))

    def watch_service(self, name: str) -> Iterator[Service]:
        """An InferenceService as it is now and after each change, without end; raises NotFound when it is deleted."""
        return map(self._service, self._loop.iterate(self._client.watch_service(name)))

    def wait(self, name: str, *, timeout_seconds: float | None = None, progress: bool | TextIO = True) -> Job:
        """The finished TuningJob; `progress` (True: on standard error) shows how far it is and what stalls it.

        Raises TuningFailed with the job's reason and message where there is no adapter, WaitTimeout when time is up
        (the job goes on), and NotFound when it is deleted.
        """
        return self._job(self._loop.run(self._client.wait(name, timeout_seconds=timeout_seconds, progress=progress)))

    def wait_service(
        self, name: str, *, timeout_seconds: float | None = None, progress: bool | TextIO = True
    ) -> Service:
        """The InferenceService once every route answers as it was trained.

        One that cannot get ready is waited for as well, since what is in its way may be put right: give a limit.
        Raises WaitTimeout with what was in the way, and NotFound when it is deleted.
        """
        waiting = self._client.wait_service(name, timeout_seconds=timeout_seconds, progress=progress)
        return self._service(self._loop.run(waiting))

    def logs(self, name: str, *, follow: bool = True) -> Iterator[str]:
        """Lines of the pods of the stage that a TuningJob is at, and with `follow` of all later ones to its end."""
        return self._loop.iterate(self._client.logs(name, follow=follow))

    def losses(self, name: str) -> Sequence[LossPoint]:
        """The loss curve of a TuningJob: from its pods' logs or, where they are gone, what this client has seen."""
        return self._loop.run(self._client.losses(name))

    def chat(
        self,
        name: str,
        message: str | Sequence[Message],
        *,
        model: str | None = None,
        api_key: str | None = None,
        **parameters: Any,
    ) -> ChatAnswer:
        """Ask an InferenceService through the API server; needs `create` on `services/proxy`.

        `message` is a user's text, or messages as in OpenAI's API, whose other parameters (max_tokens, temperature) are
        taken too. `model` is a route or the base's name; with one route it may be left out. `api_key` is for a service
        with `apiKeySecret`. Raises NotServed in the service's own words. Within the cluster any OpenAI client does,
        with `status.url`.
        """
        return self._loop.run(self._client.chat(name, message, model=model, api_key=api_key, **parameters))

    def chat_stream(
        self,
        name: str,
        message: str | Sequence[Message],
        *,
        model: str | None = None,
        api_key: str | None = None,
        **parameters: Any,
    ) -> Iterator[str]:
        """As `chat`, but the text comes piece by piece while it is made."""
        return self._loop.iterate(self._client.chat_stream(name, message, model=model, api_key=api_key, **parameters))

    def _job(self, found: TuningJobView) -> Job:
        job = Job.model_construct(metadata=found.metadata, spec=found.spec, status=found.status)
        job._client = self
        return job

    def _service(self, found: InferenceServiceView) -> Service:
        service = Service.model_construct(metadata=found.metadata, spec=found.spec, status=found.status)
        service._client = self
        return service


class Job(TuningJobView):
    """A TuningJob as it was at one moment, and what can be done with it."""

    _client: TuningClient = PrivateAttr()

    def refresh(self) -> Job:
        """The TuningJob as it is now."""
        return self._client.get(self.name)

    def watch(self) -> Iterator[Job]:
        """As TuningClient.watch."""
        return self._client.watch(self.name)

    def wait(self, *, timeout_seconds: float | None = None, progress: bool | TextIO = True) -> Job:
        """As TuningClient.wait."""
        return self._client.wait(self.name, timeout_seconds=timeout_seconds, progress=progress)

    def logs(self, *, follow: bool = True) -> Iterator[str]:
        """As TuningClient.logs."""
        return self._client.logs(self.name, follow=follow)

    def losses(self) -> Sequence[LossPoint]:
        """As TuningClient.losses."""
        return self._client.losses(self.name)

    def suspend(self) -> Job:
        """As TuningClient.suspend."""
        return self._client.suspend(self.name)

    def resume(self) -> Job:
        """As TuningClient.resume."""
        return self._client.resume(self.name)

    def delete(self) -> None:
        """As TuningClient.delete."""
        self._client.delete(self.name)

    def serve(self, name: str | None = None, **fields: Unpack[ServeFields]) -> Service:
        """Serve this job's adapter on a route and service `name`, by default the job's own."""
        return self._client.serve(name or self.name, job=self, **fields)

    def _repr_html_(self) -> str:
        client = self._client
        try:
            losses = client._loop.run(asyncio.wait_for(client._client.losses(self.name), DISPLAY_SECONDS))
        except (TuningError, TimeoutError):  # the table is worth showing without a curve
            losses = ()
        return job_html(self, losses)


class Service(InferenceServiceView):
    """An InferenceService as it was at one moment, and what can be done with it."""

    _client: TuningClient = PrivateAttr()

    def refresh(self) -> Service:
        """The InferenceService as it is now."""
        return self._client.get_service(self.name)

    def wait(self, *, timeout_seconds: float | None = None, progress: bool | TextIO = True) -> Service:
        """As TuningClient.wait_service."""
        return self._client.wait_service(self.name, timeout_seconds=timeout_seconds, progress=progress)

    def chat(
        self,
        message: str | Sequence[Message],
        *,
        model: str | None = None,
        api_key: str | None = None,
        **parameters: Any,
    ) -> ChatAnswer:
        """As TuningClient.chat."""
        return self._client.chat(self.name, message, model=model, api_key=api_key, **parameters)

    def chat_stream(
        self,
        message: str | Sequence[Message],
        *,
        model: str | None = None,
        api_key: str | None = None,
        **parameters: Any,
    ) -> Iterator[str]:
        """As TuningClient.chat_stream."""
        return self._client.chat_stream(self.name, message, model=model, api_key=api_key, **parameters)

    def delete(self) -> None:
        """As TuningClient.delete_service."""
        self._client.delete_service(self.name)

    def _repr_html_(self) -> str:
        return service_html(self)
