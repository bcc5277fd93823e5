"""Checks an adapter's folder: may vLLM serve it, on this base, and with which rank, dtype and chat template?"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.core.files import file_hash
from llm_tuning.engines.plan import Lookup
from llm_tuning.engines.vllm.tensor_names import Names, name_faults, read_names
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.adapter import adapted_paths, read_small, read_template, trained_base
from llm_tuning.models.base import PICKLE_SUFFIXES, BaseModel, odd_file_problems, weight_hash
from llm_tuning.models.layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_HASHES,
    CACHE_FOLDER,
    CHAT_TEMPLATE,
    MANIFEST,
    PARITY,
)

ALLOWED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank (it also takes 1, which no adapter of ours has)."""
_UNSERVED = (
    *("use_dora", "lora_bias", "modules_to_save", "alora_invocation_tokens", "layer_replication"),
    *("use_bdlora", "use_qalora", "trainable_token_indices"),
)
"""Settings of PEFT's LoRA that change what the adapter computes."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga", "true")
"""Values of init_lora_weights that leave the base's weights as they are."""
_GIVE = "give the folder that training wrote"


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter that vLLM can load."""

    path: Path
    model_id: str
    """From its manifest, else the folder's name."""
    names: Names
    """What the names of its tensors tell."""
    max_rank: int
    """The --max-lora-rank it needs: its rank rounded up to what vLLM allows."""
    dtype: str | None
    """What it was trained in (`float32`, `bfloat16`), where parity.json says."""
    chat_template: str | None
    """The template it was trained with."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Return the last name parts of the modules it changes."""
        return self.names.modules


def inspect_adapter(path: Path, base: BaseModel | None, lookup: Lookup | None = None) -> ServedAdapter:
    """Check an adapter's folder, that it belongs to `base`, and that an engine with this `lookup` finds its tensors.

    Raises InputError with all that is wrong with it.
    """
    where = f"adapter {path}"
    if not path.is_dir():
        raise InputError(Problem(where, "is not a folder", "give models/<model_id> of a run that has finished"))
    problems = odd_file_problems(path, where)
    if problems:
        raise InputError(problems)
    config = read_small(path / ADAPTER_CONFIG, where, problems, missing=_GIVE)
    manifest = read_small(path / MANIFEST, where, problems)
    parity = read_small(path / PARITY, where, problems)
    names = _check_weights(path, where, problems)
    _check_features(config, where, problems)
    rank = _max_rank(config, where, problems) if config else ALLOWED_RANKS[0]
    has_probes, dtype = bool(parity), parity.get("dtype")
    del parity, config  # others may be read at the same time, and whatever they hold they must fit into memory
    if has_probes and not manifest:
        problems.append(
            Problem(where, "has no model.json, so it is not whole", "give the finished models/<model_id>, copied whole")
        )
    template = _template(path, where, problems)
    if lookup is not None:
        problems += [Problem(where, rule, fix) for rule, fix in name_faults(names, lookup)]
    if not problems:
        _check_copy(manifest, path, where, problems)
    if base is not None and not problems:
        problems.extend(_of_another_base(path, base))
    if problems:
        raise InputError(problems)
    return ServedAdapter(
        path=path.resolve(),
        model_id=str(manifest.get("model_id") or path.resolve().name),
        names=names,
        max_rank=rank,
        dtype=None if dtype is None else str(dtype),
        chat_template=template,
    )


def _template(path: Path, where: str, problems: list[Problem]) -> str | None:
    try:
        return read_template(path)
    except (OSError, ValueError) as error:
        problems.append(Problem(f"{where}: {CHAT_TEMPLATE}", f"cannot be read ({error})", "copy it again"))
        return None


def allowed_rank(rank: int) -> int | None:
    """Round `rank` up to what vLLM allows; None above its highest."""
    return next((allowed for allowed in ALLOWED_RANKS if allowed >= rank), None)


def _check_weights(path: Path, where: str, problems: list[Problem]) -> Names:
    """Return what the weights' names tell; append to `problems` what is wrong."""
    # vLLM reads these names only; other pickles (a trainer's training_args.bin) are never opened.
    pickles = [name for name in (f"adapter_model{suffix}" for suffix in PICKLE_SUFFIXES) if (path / name).exists()]
    if pickles:
        problems.append(
            Problem(
                where,
                f"has pickled weights ({pickles[0]}), which can run code when they are loaded",
                f"save it with safe_serialization=True and remove {pickles[0]}",
            )
        )
        return Names()
    try:
        paths = adapted_paths(path)
    except FileNotFoundError:
        problems.append(Problem(where, f"has no {ADAPTER_WEIGHTS}", _GIVE))
        return Names()
    except (OSError, ValueError) as error:
        problems.append(Problem(f"{where}: {ADAPTER_WEIGHTS}", f"cannot be read ({error})", "copy it again"))
        return Names()
    if not paths:
        problems.append(
            Problem(f"{where}: {ADAPTER_WEIGHTS}", "holds no LoRA weights", "give the adapter's own folder")
        )
    return read_names(paths)


def _check_copy(manifest: dict[str, Any], path: Path, where: str, problems: list[Problem]) -> None:
    """Check that the weights are still those that were published."""
    files = manifest.get("files")
    expected = files.get(ADAPTER_WEIGHTS) if isinstance(files, dict) else None
    if expected and file_hash(path / ADAPTER_WEIGHTS) != expected:
        rule = "is not the file that model.json describes"
        problems.append(Problem(f"{where}: {ADAPTER_WEIGHTS}", rule, "copy the folder again"))


def _check_features(config: dict[str, Any], where: str, problems: list[Problem]) -> None:
    if config and config.get("peft_type") != "LORA":
        rule = f"is a PEFT adapter of type {config.get('peft_type')}; vLLM serves LoRA only"
        problems.append(Problem(where, rule, "train a LoRA adapter"))
    unsupported = {name: config.get(name) for name in _UNSERVED}
    unsupported["bias"] = config.get("bias", "none") != "none"
    for name, value in unsupported.items():
        if value:
            problems.append(Problem(f"{where}: {ADAPTER_CONFIG}", f"uses {name}, which vLLM does not serve"))
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        rule = (
            f"began with init_lora_weights={start!r}, which changes the base's weights, and vLLM serves those unchanged"
        )
        fix = "convert it with PEFT's path_initial_model_for_weight_conversion"
        problems.append(Problem(f"{where}: {ADAPTER_CONFIG}", rule, fix))


def _max_rank(config: dict[str, Any], where: str, problems: list[Problem]) -> int:
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) and rank >= 1 for rank in ranks):
        problems.append(Problem(f"{where}: {ADAPTER_CONFIG}", f"r must be a whole number from 1 on, got {ranks[0]!r}"))
        return ALLOWED_RANKS[0]
    fitting = allowed_rank(max(ranks))
    if fitting is None:
        rule = f"has rank {max(ranks)}, and vLLM serves at most {ALLOWED_RANKS[-1]}"
        problems.append(Problem(where, rule, "train it with a lower rank"))
        return ALLOWED_RANKS[-1]
    return fitting


def _of_another_base(path: Path, base: BaseModel) -> list[Problem]:
    """Return a problem if the base's weight hash is not the one that the manifest and the probes carry."""
    trained = trained_base(path)
    if not trained.weight_hash:
        return []
    actual = weight_hash(base, _hash_cache(path))
    if actual == trained.weight_hash:
        return []
    trained_on = f"{trained.name or 'another base'} (weights {trained.weight_hash[:12]})"
    fix = f"serve {trained.path}" if trained.path else "serve the base that it was trained on"
    return [Problem(f"adapter {path}", f"belongs to {trained_on}, not to {base.path} (weights {actual[:12]})", fix)]


def _hash_cache(adapter: Path) -> Path:
    """Return the file in which runs beside this adapter cache hashes, or one of our own where that is not writable."""
    shared = adapter.resolve().parent / CACHE_FOLDER
    if shared.is_dir() and os.access(shared, os.W_OK):
        return shared / BASE_HASHES
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    own = home / "llm_tuning"
    try:
        own.mkdir(parents=True, exist_ok=True)
    except OSError:
        own = Path(tempfile.mkdtemp(prefix="llm_tuning-"))
    return own / BASE_HASHES
