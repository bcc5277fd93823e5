"""What a run needs, found and resolved before a model is loaded: torch-free, and with all problems together.

Only the rows are left out: they are read once, by whoever needs them or their hash (`run.rows`).
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from llm_tuning.api import RunOptions, TuningConfig
from llm_tuning.api.tuning import device_names, form_model_id
from llm_tuning.errors import InputError
from llm_tuning.models.base import BaseModel, check_writable, inspect_base, weight_hash
from llm_tuning.models.layout import BASE_HASHES, CACHE_FOLDER, WORK_FOLDER
from llm_tuning.models.manifest import config_hash
from llm_tuning.models.targets import Targets, find_targets
from llm_tuning.models.trainable import check_trainable
from llm_tuning.run.checks import ADAPTER, BASE, DATASET, EVALUATION, OUTPUT, TARGETS, TRACKING, Collected
from llm_tuning.run.rows import RowHashes, evaluation_file
from llm_tuning.run.spec import RunSpec
from llm_tuning.run.start_adapter import StartAdapter, check_belongs, find_start_adapter, lora_of


@dataclass(frozen=True)
class Prepared:
    """A run that may start, but for its rows; `now` is the Unix time of this start."""

    model_id: str
    config: TuningConfig
    devices: list[str]
    output_dir: Path
    base: BaseModel
    base_weight_hash: str
    template_hash: str
    start: StartAdapter | None
    targets: Targets
    now: int
    nodes: int = 1

    @property
    def target(self) -> Path:
        """Where the finished adapter goes."""
        return self.output_dir / self.model_id

    @property
    def work(self) -> Path:
        return self.output_dir / WORK_FOLDER / self.model_id

    @property
    def cache(self) -> Path:
        """Where runs remember what the next one need not find out again."""
        return self.output_dir / CACHE_FOLDER

    def spec(self, hashes: RowHashes, *, created: int | None = None) -> RunSpec:
        """Build the run's spec on rows of these hashes; `created` is the time of its first start, if this is not it."""
        start_hash = self.start.manifest.weight_hash if self.start else None
        decides = config_hash(
            self.config,
            devices=len(self.devices),
            base_weight_hash=self.base_weight_hash,
            data_hash=hashes.training,
            template_hash=self.template_hash,
            start_adapter_weight_hash=start_hash,
            evaluation_hash=hashes.evaluation,
        )
        return RunSpec(
            model_id=self.model_id,
            config=self.config,
            config_hash=decides,
            devices=self.devices,
            nodes=self.nodes,
            output_dir=self.output_dir,
            base_name=self.base.name,
            base_weight_hash=self.base_weight_hash,
            template_hash=self.template_hash,
            data_hash=hashes.training,
            evaluation_hash=hashes.evaluation,
            start_adapter=self.start.path if self.start else None,
            start_adapter_hash=start_hash,
            created=self.now if created is None else created,
        )


def prepare(config: TuningConfig, options: RunOptions, *, nodes: int = 1) -> Prepared:
    """Find and check all that the run needs but the rows; raises one InputError with every problem found.

    `options` have the devices of each of the `nodes`.
    """
    from llm_tuning.data.chat import template_hash
    from llm_tuning.data.reading import check_readable

    output_dir, base_path = Path(options.output_dir), Path(config.model.path)
    found = Collected()
    devices = device_names(options.devices) * nodes
    found.run(OUTPUT, lambda: check_writable(output_dir))
    found.run(TRACKING, lambda: _check_tracking(config.tracking.uri))
    base = found.run(BASE, lambda: inspect_base(config.model.path, adapter_as="{field:model.adapter.model_id}"))
    trainable = found.run(BASE, lambda: check_trainable(base)) if base is not None else None
    targets = found.run(TARGETS, lambda: find_targets(trainable, config.lora)) if trainable is not None else None
    template = found.run(BASE, lambda: template_hash(base_path)) if base is not None else None
    found.run(DATASET, lambda: check_readable(Path(config.dataset.path)))
    if (held_out := evaluation_file(config)) is not None:
        found.run(EVALUATION, lambda: check_readable(held_out))
    start = found.run(ADAPTER, lambda: find_start_adapter(config, output_dir))
    found.raise_if_any()
    assert base is not None
    assert template is not None
    assert targets is not None

    base_hash = weight_hash(base, output_dir / CACHE_FOLDER / BASE_HASHES)
    if start is not None:
        found.run(ADAPTER, lambda: check_belongs(start, base, base_hash, template))
        resolved = found.run("", lambda: lora_of(start, config.lora, base))
        found.raise_if_any()
        assert resolved is not None
        config = config.model_copy(update={"lora": resolved})
        targets = Targets(tuple(resolved.target_modules.split(",")))
    now = int(time.time())
    model_id = options.model_id or form_model_id(config.mode, base.name, created=now, digest=secrets.token_hex(3))
    return Prepared(model_id, config, devices, output_dir, base, base_hash, template, start, targets, now, nodes)


def _check_tracking(uri: str | None) -> None:
    from llm_tuning.tracking import check_tracking_uri

    if uri is not None and (problems := check_tracking_uri(uri)):
        raise InputError(problems)
