"""Probes: `/healthz` answers while the process does, `/readyz` while the backend can be read."""

from __future__ import annotations

from fastapi import APIRouter

from llm_tuning.openai_api.context import Served

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Answer."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(served: Served) -> dict[str, str]:
    """Answer once TuningJobs can be read; raises a ClusterError, which is a 503."""
    await served.backend.services()
    return {"status": "ready"}
