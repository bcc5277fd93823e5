"""What the API stands on: TuningJobs and InferenceServices, wherever they are kept, and the claim that they lie on.

`cluster` is a namespace, `local` is this machine. Both speak the project's own objects, so that all above is shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.openai_api.found import Found

Raw = dict[str, Any]


class Backend(Protocol):
    """Every method raises InputError or a ClusterError: NotFound, Conflict, Forbidden, Unavailable."""

    @property
    def root(self) -> Path:
        """Where the claim is mounted: `datasets/uploads` and `models` of it."""

    @property
    def claim(self) -> str:
        """The claim's name, for `volume.claimName`."""

    async def jobs(self, labels: Mapping[str, str] | None = None) -> Found[TuningJobView]:
        """List the TuningJobs that have these labels; without any, all of them."""

    async def job(self, name: str) -> TuningJobView:
        """Read a TuningJob."""

    async def create_job(self, body: Raw) -> TuningJobView:
        """Create a TuningJob; raises Conflict where one of that name is there."""

    async def change_job(self, name: str, patch: Raw) -> TuningJobView:
        """Merge `patch` into a TuningJob's spec, labels and annotations."""

    async def services(self) -> Found[InferenceServiceView]:
        """List the InferenceServices."""

    async def create_service(self, body: Raw) -> InferenceServiceView:
        """Create an InferenceService; raises Conflict where one of that name is there."""

    async def change_service(self, name: str, patch: Raw) -> InferenceServiceView:
        """Merge `patch`; raises Conflict where it has a resourceVersion that is not the present one."""

    def is_hopeless(self, service: InferenceServiceView) -> bool:
        """Return whether a service that does not answer never will, unless who asks does something about it."""

    def url(self, service: InferenceServiceView) -> str | None:
        """Return where the agent of a service answers (append /v1), None before that is known."""

    async def run(self) -> None:
        """Do what goes on beside the requests, until it is cancelled."""

    async def close(self) -> None:
        """Close the connections."""
