"""A run as it is written to `run.json` in its work folder: what worker processes and a resume start from."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from llm_tuning.api import TuningConfig
from llm_tuning.core.files import read_json, write_json
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.layout import CACHE_FOLDER, RUN_SPEC, WORK_FOLDER

TRACKING_URI_VARIABLE = "LLM_TUNING_TRACKING_URI"
"""How a worker process is given the tracking URI whole: `run.json` holds it without its password."""


class RunSpec(BaseModel):
    """The resolved run. Hashes are sha256 in hex; `created` is the Unix time of the first start."""

    model_id: str
    config: TuningConfig
    config_hash: str
    devices: list[str]
    """Of all ranks, those of node 0 first; a number is counted on its node."""
    nodes: int = 1
    output_dir: Path
    base_name: str
    base_weight_hash: str
    template_hash: str
    data_hash: str
    evaluation_hash: str | None = None
    """Of the rows of `dataset.evaluation`; None without them."""
    start_adapter: Path | None
    start_adapter_hash: str | None
    created: int

    @property
    def target(self) -> Path:
        """Where the finished adapter goes."""
        return self.output_dir / self.model_id

    @property
    def work(self) -> Path:
        return self.output_dir / WORK_FOLDER / self.model_id

    def devices_of(self, node: int) -> list[str]:
        """Return the devices of one node: all have as many."""
        each = len(self.devices) // self.nodes
        return self.devices[node * each : (node + 1) * each]

    @property
    def cache(self) -> Path:
        return self.output_dir / CACHE_FOLDER

    def write(self) -> None:
        """Write `run.json` in one step, without the credentials of a tracking URI: see `shown_config`."""
        shown = self.model_copy(update={"config": shown_config(self.config)})
        write_json(self.work / RUN_SPEC, shown.model_dump(mode="json", by_alias=True))

    def with_tracking_uri(self, uri: str | None) -> RunSpec:
        """Return this spec as it was before it was written; `uri` is the tracking URI as it was given."""
        tracking = self.config.tracking.model_copy(update={"uri": uri})
        return self.model_copy(update={"config": self.config.model_copy(update={"tracking": tracking})})


def shown_config(config: TuningConfig) -> TuningConfig:
    """Return `config` as shared files may hold it: a tracking URI without user, password and query."""
    from llm_tuning.tracking.stores import shown_uri

    if config.tracking.uri is None:
        return config
    tracking = config.tracking.model_copy(update={"uri": shown_uri(config.tracking.uri)})
    return config.model_copy(update={"tracking": tracking})


def read_run_spec(work: Path) -> RunSpec | None:
    """Read the spec of the run in `work`, or None where none was started; raises InputError on a damaged one."""
    try:
        value = read_json(work / RUN_SPEC)
        return None if value is None else RunSpec.model_validate(value)
    except ValueError:
        raise InputError(
            Problem(str(work / RUN_SPEC), "is damaged", f"remove {work} to start this model_id from the beginning")
        ) from None
