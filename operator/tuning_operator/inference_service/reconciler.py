"""One pass over one InferenceService: observe, desire, apply. The only place that writes for serving."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any

from tuning_operator.core.cache import INFERENCE_SERVICES, SERVING, TUNING_JOBS, Key
from tuning_operator.core.constants import STALE_REPORT_SECONDS
from tuning_operator.core.errors import AlreadyExists, ClusterError, Conflict, Forbidden, Invalid, NotFound
from tuning_operator.core.events import tell
from tuning_operator.core.reconciler import PassLoop
from tuning_operator.inference_service.agents import Agents
from tuning_operator.inference_service.children import part_name
from tuning_operator.inference_service.desire import DesiredService, desire_service
from tuning_operator.inference_service.observed import ObservedService, build_observed_service

log = logging.getLogger(__name__)

FIRST_REPORTS_SECONDS = 20.0
"""After its start the operator waits so long for agents to report: they have lost it, and try again within 15 s."""


@dataclass
class ServiceWorker(PassLoop):
    """Passes over InferenceServices."""

    agents: Agents = field(default_factory=Agents)
    started: float = field(default_factory=time.monotonic)

    async def reconcile(self, key: Key) -> None:
        raw = self.store.get(INFERENCE_SERVICES, *key)
        if raw is None:
            self.agents.forget(key)
            return
        observed = self._observe(raw)
        desired = desire_service(observed, self.settings, self.now())
        if desired.needs_events:
            observed = replace(observed, warnings=tuple(await self.warnings_in(key[0])))
            desired = desire_service(observed, self.settings, self.now())
        if desired.agents is not None:
            self.agents.publish(key, desired.agents)
        self.agents.keep_only(key, {pod.uid for pod in observed.pods})
        await self._apply(key, observed, desired)
        if desired.requeue_after is not None:
            self.queue.add_after(key, desired.requeue_after)
        if observed.pods:  # an agent that falls silent sends nothing to be woken by
            self.queue.add_after(key, STALE_REPORT_SECONDS)

    def _observe(self, raw: dict[str, Any]) -> ObservedService:
        namespace, name, uid = (raw["metadata"][part] for part in ("namespace", "name", "uid"))
        spec = self.store.service_spec_of(raw)
        bare = build_observed_service(raw, spec=spec, parts={})
        found = {kind: self.store.get(kind, namespace, part_name(bare, kind)) for kind in SERVING}
        targets = (target.tuning_job for route in (spec.routes if spec else ()) for target in route.targets)
        jobs = {job for job in targets if job is not None}
        return build_observed_service(
            raw,
            spec=spec,
            parts={kind: part for kind, part in found.items() if part is not None},
            pods=self.store.pods_of(uid),
            reports=self.agents.reports((namespace, name)),
            jobs={job: self.store.get(TUNING_JOBS, namespace, job) for job in jobs},
            reports_due=time.monotonic() - self.started < FIRST_REPORTS_SECONDS,
        )

    async def _apply(self, key: Key, observed: ObservedService, desired: DesiredService) -> None:
        """Parts first, then the status, then Events: what the status says is then so."""
        refused: ClusterError | None = None
        for kind, body in desired.create:
            try:
                self.store.put(kind, await self.cluster.create(kind, body))
                log.info("created", extra={"keys": _keys(key, kind, body)})
            except AlreadyExists:
                # Made by an earlier pass whose answer was lost, or somebody else's: the next pass sees which.
                metadata = body["metadata"]
                there = await self.cluster.read(kind, metadata["namespace"], metadata["name"])
                if there is not None:
                    self.store.put(kind, there)
                raise
            except (Forbidden, Invalid) as error:
                refused = error
                break
        for kind, body in desired.apply:
            try:
                self.store.put(kind, await self.cluster.apply(kind, body))
                log.info("applied", extra={"keys": _keys(key, kind, body)})
            except (Forbidden, Invalid) as error:
                refused = error
                break
        for kind, name, uid in desired.delete:
            await self.cluster.delete(kind, key[0], name, uid)
            log.info("deleted", extra={"keys": {"service": "/".join(key), "kind": kind, "child": name}})
        if refused is not None:
            observed = replace(observed, refused=str(refused))
            desired = replace(desire_service(observed, self.settings, self.now()), create=[], apply=[])
        elif desired.create:  # the store has queued the key again, with what was made in it
            return
        await self._write_status(key, observed, desired)
        if refused is not None:
            raise refused

    async def _write_status(self, key: Key, observed: ObservedService, desired: DesiredService) -> None:
        if desired.status is None or desired.status == observed.raw.get("status"):
            return
        try:
            answer = await self.cluster.apply_status(observed.raw, desired.status, INFERENCE_SERVICES)
        except NotFound:
            self.store.forget(INFERENCE_SERVICES, dict(observed.raw))
            return
        except Conflict:
            there = await self.cluster.read(INFERENCE_SERVICES, *key)
            if there is not None:
                self.store.put(INFERENCE_SERVICES, there)
            raise
        self.store.put(INFERENCE_SERVICES, answer)
        told = desired.events
        await tell(self.cluster, observed.raw, told, self.now(), instance=self.instance, kind=INFERENCE_SERVICES)


def _keys(key: Key, kind: str, body: dict[str, Any]) -> dict[str, str]:
    return {"service": "/".join(key), "kind": kind, "child": body["metadata"]["name"]}
