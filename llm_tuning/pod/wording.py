"""A run's errors in the words of a TuningJob: its field paths, paths as they are on the claim, one reason for all.

The library names settings by placeholders, which become fields of the spec here. Which reason a problem has is decided
by the field it comes from and by what is on the claim, never by the text of its message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic.alias_generators import to_camel

from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.data.files.json_object import NAME_THE_LIST
from llm_tuning.data.files.locate import is_there
from llm_tuning.errors import InputError, Problem, in_words
from llm_tuning.models.not_a_base import HUB_NAME, hub_fix
from llm_tuning.pod.contract import PodReason
from llm_tuning.pod.job import OutsideVolume, PodJob
from llm_tuning.pod.report import ModelNotFound
from llm_tuning.run.checks import ADAPTER, BASE, DATASET, EVALUATION, OUTPUT, TRACKING
from llm_tuning.sources.reasons import SourceRefused

_CLAIM = "volume.claimName"
_OWN = {
    "model_id": "metadata.name",
    "output_dir": f"spec.{_CLAIM}",
    "sources_dir": f"spec.{_CLAIM}",
    "devices": "spec.resources.gpus",
}
"""What a TuningJob has in the place of a run's options."""
_OUTPUT_FIX = f"give a claim that user {os.getuid()} may write to"
_KEY_FIX = "keep the rows alone in the key, or put the file on the claim"


_FOR_COMMANDS = {
    "registry list": "models/registry.json on the claim",
    "sources list": "the folder sources on the claim",
}


class SpecWords:
    """The words of a TuningJob, for `errors.in_words`."""

    def field(self, path: str) -> str:
        """Return a field's path in the spec: `spec.training.maxLength`."""
        return _OWN.get(path) or "spec." + ".".join(map(to_camel, path.split(".")))

    def setting(self, path: str, value: str) -> str:
        """Return how a field is set: `set spec.lora.rank to 8`; the pod's devices are its GPUs."""
        if (path, value) == ("devices", "cpu"):
            return "set spec.resources.gpus to 0"
        if path == "dataset.columns":
            value = f"{{{value.replace('=', ': ').replace(',', ', ')}}}"
        return f"set {self.field(path)} to {value}"

    def command(self, name: str) -> str:
        """Return what stands for a command: files of the claim, since there is no command line in a pod."""
        return _FOR_COMMANDS.get(name, f"`tune-llm {name}`")


SPEC_WORDS = SpecWords()


def reason_of(error: InputError, job: PodJob | None) -> PodReason:
    """Return the reason of the gravest problem: the volume before the base, the base before the rows."""
    if isinstance(error, SourceRefused):
        return PodReason(error.reason)
    if isinstance(error, OutsideVolume | ModelNotFound):
        return PodReason.PATH_OUTSIDE_VOLUME if isinstance(error, OutsideVolume) else PodReason.MODEL_NOT_FOUND
    if job is None:
        return PodReason.INVALID_INPUT
    fields = {problem.field or problem.where for problem in error.problems}
    spec = job.input.spec
    if OUTPUT in fields:
        return _volume_reason(job.root)
    if BASE in fields:
        there = (job.root / str(spec.model.path)).is_dir()
        return PodReason.BASE_MODEL_INVALID if there else PodReason.BASE_MODEL_NOT_FOUND
    if ADAPTER in fields:
        there = (job.models / str(job.input.start_model_id) / "model.json").is_file()
        return PodReason.ADAPTER_INVALID if there else PodReason.ADAPTER_NOT_FOUND
    if TRACKING in fields:
        return PodReason.TRACKING_INVALID
    training = job.dataset_file or job.root / str(spec.dataset.path)
    if DATASET in fields:
        return _dataset_reason(training)
    if EVALUATION in fields:
        given = str(spec.dataset.evaluation)
        return _dataset_reason(training if given.startswith("#") else job.root / given)
    return PodReason.INVALID_INPUT


def message_of(error: InputError, job: PodJob | None) -> str:
    """Join all problems to one line, each under the field of the spec that it comes from."""
    return ". ".join(str(problem) for problem in _in_spec_words(error.problems, job))


def in_claim_words(text: str, job: PodJob | None) -> str:
    """Rewrite `text` with paths as a user of the claim knows them, and fields for flags."""
    if job is not None:
        for folder in (job.root, job.dataset_dir):
            text = re.sub(rf"{re.escape(str(folder))}/(?=[\w.*?\[])", "", text)
    return in_words(text, SPEC_WORDS)


def _in_spec_words(problems: Sequence[Problem], job: PodJob | None) -> list[Problem]:
    return [_in_spec_word(problem, job) for problem in problems]


def _in_spec_word(problem: Problem, job: PodJob | None) -> Problem:
    where, rule, fix = (in_claim_words(text, job) for text in (problem.where, problem.rule, problem.fix))
    field = {OUTPUT: _CLAIM}.get(problem.field, problem.field)
    if field == _CLAIM:
        where, fix = where.removeprefix("output_dir "), _OUTPUT_FIX
    if field == DATASET and job is not None and job.dataset_file is not None:
        field = "dataset.configMap"
        fix = _KEY_FIX if fix.startswith(NAME_THE_LIST) else fix  # a key has no `#train` behind it
    if field == ADAPTER and job is not None and job.input.spec.model.adapter is not None:
        field = "model.adapter.tuningJob" if job.input.spec.model.adapter.tuning_job else ADAPTER
    if field == BASE:
        where = where.removeprefix("model ")
        fix = in_words(_hub_fix(job), SPEC_WORDS) or fix
    if not field and where in _OWN:
        return Problem(_OWN[where], rule, fix)
    if not field:
        return Problem(f"spec.{where}" if where and _is_field(where) else where, rule, fix)
    return Problem(f"spec.{field}" if where in ("", problem.field) else f"spec.{field}: {where}", rule, fix)


def _hub_fix(job: PodJob | None) -> str:
    """Return what to do about a base that is named as on the hub, empty where it is a path: no owner is a folder."""
    given = str(job.input.spec.model.path) if job is not None else ""
    if job is None or not HUB_NAME.fullmatch(given) or (job.root / given).parent.is_dir():
        return ""
    return hub_fix(given)


def _is_field(where: str) -> bool:
    return where.partition(".")[0] in TuningJobSpec.model_fields


def _dataset_reason(path: Path) -> PodReason:
    return PodReason.DATASET_INVALID if is_there(path) else PodReason.DATASET_NOT_FOUND


def _volume_reason(root: Path) -> PodReason:
    try:
        volume = os.statvfs(root)
    except OSError:
        return PodReason.VOLUME_NOT_WRITABLE
    return PodReason.VOLUME_READ_ONLY if volume.f_flag & os.ST_RDONLY else PodReason.VOLUME_NOT_WRITABLE
