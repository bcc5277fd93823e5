"""One pod's job in this process's terms: its input checked, and the run's configuration with real paths.

Every path of the spec is followed to its end: a symbolic link out of the claim would let whoever may write to the
claim read, through a pod, what only the pod can see.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from llm_tuning.api import RunOptions, TuningConfig
from llm_tuning.api.tuning_job import tuning_config
from llm_tuning.core.model import input_error
from llm_tuning.data.files.locate import locate, readings
from llm_tuning.errors import InputError, Problem
from llm_tuning.pod.contract import (
    ADDRESS_VARIABLE,
    ATTEMPT_VARIABLE,
    DATASET_DIR,
    DATASET_DIR_VARIABLE,
    INPUT_VARIABLE,
    MODELS,
    NODE_VARIABLE,
    ROOT,
    ROOT_VARIABLE,
    PodInput,
)
from llm_tuning.run.checks import ADAPTER, BASE, DATASET, EVALUATION, TRACKING
from llm_tuning.run.devices import gpu_required
from llm_tuning.run.nodes import Nodes
from llm_tuning.run.rows import evaluation_file
from llm_tuning.tracking.stores import check_tracking_uri, redact, resolve_store

STORES = ".mlflow"
"""Where a run without tracking.uri has its private MLflow store: `models/.mlflow/<model_id>/mlflow.db`.

Beside the adapters and not inside: a published directory never changes, and a store still changes after the rename
that publishes (the run's end, its artifacts). One store a run, since sqlite on a network volume bears one writer only.
Names with a dot are no models to the registry. To open it: `mlflow ui --backend-store-uri sqlite:///<that file>`.
"""


class OutsideVolume(InputError):  # noqa: N818 - the input is at fault
    """A path of the spec leads out of the claim."""


@dataclass(frozen=True)
class PodJob:
    """The input of this pod and where its volumes are mounted."""

    input: PodInput
    root: Path
    dataset_dir: Path

    @classmethod
    def from_environment(cls) -> PodJob:
        """Read the job that the operator gave this pod; raises InputError."""
        text = os.environ.get(INPUT_VARIABLE)
        if text is None:
            raise InputError(Problem(INPUT_VARIABLE, "is not set", "it is the operator that starts this program"))
        try:
            given = PodInput.model_validate_json(text)
        except ValidationError as error:
            raise input_error(PodInput, error) from None
        root = Path(os.environ.get(ROOT_VARIABLE, ROOT))
        return cls(given, root, Path(os.environ.get(DATASET_DIR_VARIABLE, DATASET_DIR)))

    @property
    def models(self) -> Path:
        return self.root / MODELS

    @property
    def dataset_file(self) -> Path | None:
        """The mounted file of a data set in a ConfigMap."""
        reference = self.input.spec.dataset.config_map
        return self.dataset_dir / reference.key if reference is not None else None

    def config(self) -> TuningConfig:
        """Build the run's configuration; raises OutsideVolume, or InputError for what only the whole can show."""
        config = tuning_config(
            self.input.spec,
            root=self.root,
            start_model_id=self.input.start_model_id,
            dataset_file=self.dataset_file,
        )
        self._refuse_paths_outside(config)
        _refuse_local_store(config.tracking.uri)
        if config.tracking.uri is None:
            store = str(self.models / STORES / self.input.model_id)
            config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": store})})
        return config

    def options(self) -> RunOptions:
        """Build the run's options: all GPUs of the pod, which the kubelet numbers from 0."""
        return RunOptions(devices=_devices(self.input.gpus), output_dir=str(self.models), model_id=self.input.model_id)

    def nodes(self) -> Nodes | None:
        """Return the nodes of the run, of which this pod is one; None where it is alone."""
        given = self.input.nodes
        if given is None:
            return None
        index, address = int(os.environ[NODE_VARIABLE]), os.environ[ADDRESS_VARIABLE]
        return Nodes(
            index,
            hosts=tuple(given.hosts),
            ranks=max(1, self.input.gpus),
            address=address,
            port=given.port,
            attempt=os.environ.get(ATTEMPT_VARIABLE, ""),
        )

    def make_models_folder(self) -> None:
        """Make `models/` first: a run that finds none and is refused would remove it, with all that others began."""
        try:
            self.models.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # the run's own check of the folder reports what is wrong

    def _refuse_paths_outside(self, config: TuningConfig) -> None:
        base = Path(config.model.path)
        inside_base = sorted(base.iterdir()) if base.is_dir() else []  # snapshots of a hub's cache are links, for one
        looked_at = [(BASE, path, self.root) for path in (base, *inside_base)]
        dataset_volume = self.root if self.dataset_file is None else self.dataset_dir
        looked_at += [(DATASET, path, dataset_volume) for path in _files_of(Path(config.dataset.path), dataset_volume)]
        if (held_out := evaluation_file(config)) is not None:
            is_split = config.dataset.evaluation != str(held_out)
            volume = dataset_volume if is_split else self.root
            looked_at += [(EVALUATION, path, volume) for path in _files_of(held_out, volume)]
        looked_at.append(("", self.models, self.root))
        if config.model.adapter is not None:
            looked_at.append((ADAPTER, self.models / config.model.adapter.model_id, self.root))
        problems = [
            Problem(
                str(path), "leads out of the volume by a symbolic link", "copy the files into the claim", field=field
            )
            for field, path, volume in looked_at
            if not _is_inside(path, volume)
        ]
        if problems:
            raise OutsideVolume(problems)


def _is_inside(path: Path, volume: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(volume))


def _files_of(dataset: Path, volume: Path) -> list[Path]:
    """Return all that a dataset's path may mean, and every file that it does; the check says what is wrong with it.

    What lies outside the volume is not looked into: a message would list it.
    """
    meant = [at for at, _ in readings(dataset)]
    if not all(_is_inside(at, volume) for at in meant):
        return meant
    try:
        return [*meant, *locate(dataset).files]
    except InputError:
        return meant


def _refuse_local_store(uri: str | None) -> None:
    """Refuse a folder as tracking URI: one in the container is lost, one on the claim is shared by sqlite's writers."""
    if uri is None or check_tracking_uri(uri) or not resolve_store(uri).is_local:
        return
    rule = f"must be a server's URI, got {redact(uri)!r}"
    fix = "write it as http://mlflow:5000, or leave it out for a store of the run's own on the claim"
    raise InputError(Problem(TRACKING, rule, fix, field=TRACKING))


def _devices(gpus: int) -> str:
    """Return the devices: `0,1` for two GPUs, or `cpu,cpu` where there is no driver and the fall-back is allowed."""
    if gpus == 0:
        return "cpu"
    if not gpu_required() and not Path("/dev/nvidiactl").exists():
        return ",".join(["cpu"] * gpus)
    return ",".join(map(str, range(gpus)))
