"""The operator's process: connect, take the Lease, list what is there, then watch and reconcile until stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

from llm_tuning.errors import EXIT_INPUT, InputError, TuningError
from tuning_operator.core.cache import INFERENCE_SERVICES, KINDS, TUNING_JOBS, Cache
from tuning_operator.core.cluster import KIND_NAMES, Cluster
from tuning_operator.core.constants import LEASE_NAME, RESYNC_SECONDS
from tuning_operator.core.errors import ClusterError, Forbidden, NotFound
from tuning_operator.core.health import Health, HealthServer
from tuning_operator.core.lease import Lease
from tuning_operator.core.logs import set_up_logging
from tuning_operator.core.metrics import Metrics
from tuning_operator.core.queue import WorkQueue
from tuning_operator.core.settings import Settings
from tuning_operator.core.tasks import end
from tuning_operator.core.watch import watch
from tuning_operator.inference_service.agents import Agents
from tuning_operator.inference_service.reconciler import InferenceServiceReconciler
from tuning_operator.reports.server import ProgressServer
from tuning_operator.reports.tls import ensure_tls, serving_names
from tuning_operator.reports.tls_folder import TlsFilesUnusable, TlsFolder
from tuning_operator.reports.tokens import ClusterKeys, TokenVerifier
from tuning_operator.tuning_job.reconciler import TuningJobReconciler

log = logging.getLogger(__name__)

TLS_RENEWAL_SECONDS = 30.0
"""Between two reads of certificates that another renews, days before the old ones end."""
WATCH_END_SECONDS = 2.0
"""For watches to end after their stop flag is set."""
STALE_WATCH_SECONDS = 30.0
"""A watch is stale if a list shows a change that it has not delivered within this time."""


class Operator:
    """Wire all parts."""

    def __init__(self, settings: Settings, cluster: Cluster, metrics: Metrics) -> None:
        self.settings, self.cluster = settings, cluster
        self.metrics = metrics
        self.queues = {kind: WorkQueue(metrics=metrics.queue(name.lower())) for kind, name in KIND_NAMES.items()}
        self.cache = Cache({kind: queue.add for kind, queue in self.queues.items()})
        instance = settings.pod_name or f"{socket.gethostname()}_{secrets.token_hex(4)}"
        shared = (settings, metrics, instance)
        self.agents = Agents(self.queues[INFERENCE_SERVICES].add)
        self.tuning_jobs = TuningJobReconciler(cluster, self.cache, self.queues[TUNING_JOBS], *shared)
        self.services = InferenceServiceReconciler(
            cluster, self.cache, self.queues[INFERENCE_SERVICES], *shared, agents=self.agents
        )
        self.reconcilers = (self.tuning_jobs, self.services)
        self.lease = Lease(cluster, settings.namespace, LEASE_NAME, instance)
        self.health = Health(lambda: {**self.tuning_jobs.busy_since, **self.services.busy_since})
        self.stop = asyncio.Event()
        self._closed: frozenset[str] = frozenset()
        """Watched namespaces that the last list was not let into: deleted, or without the Role."""
        self._closed_changed = asyncio.Event()
        metrics.watch(self.cache, {KIND_NAMES[kind].lower(): queue for kind, queue in self.queues.items()})
        cluster.guard = self.lease.check

    async def run(self) -> None:
        """Run until `stop` is set. Raises LeaseLost, or what ended one of the parts."""
        health = HealthServer(self.health, self.metrics.registry, self.settings.http_host, self.settings.http_port)
        await health.start()
        try:
            await self._until_stopped(self.lease.acquire())
            if not self.stop.is_set():
                await self._work()
        finally:
            await self.lease.release()
            await health.close()
            await self.cluster.close()

    async def _work(self) -> None:
        hold = asyncio.create_task(self.lease.hold())
        progress: ProgressServer | None = None
        tls_folder = TlsFolder(self.settings.tls_folder) if self.settings.tls_folder is not None else None
        tasks = [hold]
        try:
            if self.settings.progress_url is not None:
                progress = await self._serve_progress(tls_folder)
                if tls_folder is not None:
                    tasks.append(asyncio.create_task(self._renew_tls(tls_folder, progress)))
            await self._until_stopped(hold, self._seed())
            if self.stop.is_set():
                return
            self.services.started = time.monotonic()
            for reconciler in self.reconcilers:
                tasks += [asyncio.create_task(reconciler.run()) for _ in range(self.settings.workers)]
            tasks.append(asyncio.create_task(self._watch()))
            tasks.append(asyncio.create_task(self._resync()))
            self.health.ready = True
            log.info("ready", extra={"keys": self.cache.sizes()})
            await self._until_stopped(*tasks)
        finally:
            await end(tasks)
            if progress is not None:
                await progress.close()

    def catch_signals(self) -> None:
        """End the operator in order at SIGTERM and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop.set)

    async def _signals_after(self, started: asyncio.Event) -> None:
        """Catch the signals again once kopf has started, which takes them for itself; its part ends with ours."""
        await started.wait()
        self.catch_signals()

    async def _until_stopped(self, *parts: Coroutine[Any, Any, None] | asyncio.Task[None]) -> None:
        """Wait for the stop, or for a part to end: that is an error but for the first wait, for the Lease."""
        running = [asyncio.ensure_future(part) for part in parts]
        stopped = asyncio.ensure_future(self.stop.wait())
        waited: set[asyncio.Future[Any]] = {stopped, *running}
        done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if stopped in done:
            for part in running:
                part.cancel()
            return
        stopped.cancel()
        for ended in done:
            ended.result()

    async def _serve_progress(self, folder: TlsFolder | None) -> ProgressServer:
        """Load certificates and start the endpoint; from then on pods are given its address."""
        namespace = self.settings.namespace
        if folder is not None:
            tls = folder.load()
        else:
            tls = await ensure_tls(self.cluster, namespace, serving_names(namespace), datetime.now(UTC))
        self._trust(tls.ca_pem)
        server = ProgressServer(
            TokenVerifier(ClusterKeys(self.cluster.read_jwks), self.cache),
            self.tuning_jobs.report,
            tls.context,
            self.agents.exchange,
            self.services.report,
            port=self.settings.progress_port,
            count=self.metrics.count_report,
        )
        await server.start()
        return server

    def _trust(self, ca_pem: str) -> None:
        for reconciler in self.reconcilers:
            reconciler.settings = self.settings.with_ca(ca_pem)

    async def _renew_tls(self, folder: TlsFolder, server: ProgressServer) -> None:
        """Serve new connections with the newest certificate on disk; open ones keep theirs."""
        while True:
            await asyncio.sleep(TLS_RENEWAL_SECONDS)
            try:
                ca_pem = folder.renew(server.ssl_context)
            except TlsFilesUnusable as error:
                log.warning("the progress server keeps its certificate: %s", error)
                continue
            if ca_pem is not None:
                self._trust(ca_pem)
                log.info("the progress server has a new certificate")

    async def _seed(self) -> None:
        """Fill the cache before the first reconcile: half a picture would make a second Job."""
        while True:
            try:
                await self._list()
            except ClusterError as error:
                log.warning("listing again: %s", error)
                await asyncio.sleep(2)
            else:
                return

    async def _list(self) -> dict[str, list[str]]:
        """List every kind into the cache; returns what no watch had delivered, by kind.

        A namespace that is closed to the operator is passed over, so that one team's end is not everybody's. Raises
        ClusterError, also where all of them are closed.
        """
        missed: dict[str, list[str]] = {kind: [] for kind in KINDS}
        closed: dict[str, ClusterError] = {}
        for namespace in self.settings.watch_namespaces or (None,):
            try:
                # The custom resources last: one is only known with all of its children.
                for kind in reversed(KINDS):
                    items, version = await self.cluster.list_all(kind, namespace)
                    missed[kind] += self.cache.apply_list(kind, items, version, namespace)
            except (Forbidden, NotFound) as error:
                if namespace is None:
                    raise
                closed[namespace] = error
        if closed and len(closed) == len(self.settings.watch_namespaces):
            raise next(iter(closed.values()))
        for namespace in closed.keys() - self._closed:
            log.warning(
                "namespace %s is passed over: %s. If it is gone, take it off watchNamespaces; if not, `helm upgrade` "
                "gives its Role back",
                namespace,
                closed[namespace],
            )
        if closed.keys() != self._closed:
            self._closed = frozenset(closed)
            self._closed_changed.set()
        self.metrics.closed_namespaces.set(len(closed))
        return missed

    async def _watch(self) -> None:
        """Watch the namespaces that are open, again whenever they are others; raises what else ends a watch."""
        while True:
            self._closed_changed.clear()
            closed, stop, started = self._closed, asyncio.Event(), asyncio.Event()
            namespaces = [name for name in self.settings.watch_namespaces if name not in closed]
            running = asyncio.create_task(watch(self.cache, namespaces, stop, started))
            others = [asyncio.create_task(part) for part in (self._closed_changed.wait(), self._signals_after(started))]
            try:
                await asyncio.wait({running, others[0]}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.set()
                await asyncio.wait({running}, timeout=WATCH_END_SECONDS)
                await end((running, *others))
            if self._closed == closed:  # it has ended by itself: because of a namespace?
                await self._list()
            if self._closed == closed:
                running.result()
                return
            log.info("watching again", extra={"keys": {"namespaces": len(self.settings.watch_namespaces)}})

    async def _resync(self) -> None:
        """List again to heal what a watch has lost; one that delivers nothing is stale, and only a restart helps."""
        suspected: dict[str, float] = {}
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            try:
                missed = await self._list()
            except ClusterError as error:
                log.warning("the resync list failed: %s", error)
                continue
            now = time.monotonic()
            for kind, names in missed.items():
                self.metrics.resynced.inc(len(names))
                silent = now - self.cache.delivered.get(kind, 0.0) > STALE_WATCH_SECONDS
                if not names or not silent:
                    suspected.pop(kind, None)
                    continue
                log.warning("a watch was behind", extra={"keys": {"kind": kind, "objects": len(names)}})
                # Twice in a row without an event: a watch that is only being opened again delivers in between.
                if kind in suspected:
                    self.health.stale_watch = (
                        f"the watch of {kind} has delivered nothing for {now - suspected[kind]:.0f} s"
                    )
                suspected.setdefault(kind, now)
            for kind, queue in self.queues.items():
                for raw in list(self.cache.all(kind)):
                    queue.add((raw["metadata"]["namespace"], raw["metadata"]["name"]))


async def run() -> int:
    """Run the operator; returns the process's exit code."""
    set_up_logging()
    try:
        settings = Settings.from_environment(os.environ)
    except InputError as error:
        for problem in error.problems:
            log.error("%s", problem)
        return EXIT_INPUT
    metrics = Metrics()
    operator = Operator(settings, await Cluster.connect(count=metrics.count_request), metrics)
    operator.catch_signals()
    try:
        await operator.run()
    except TuningError as error:
        log.error("the operator ends: %s", error)
        return 1
    finally:
        await end(asyncio.all_tasks() - {asyncio.current_task()})  # what kopf has left
    log.info("stopped")
    return 0


def main() -> int:
    """Run the operator until SIGTERM or SIGINT; returns the exit code."""
    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
