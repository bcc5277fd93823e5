"""Refuses a base whose server would see other token ids than its training: before the training, and with the remedy.

The rows are tokenised by tokenizer.json, a vLLM server has what transformers builds from the folder. Both are asked for
the ids of the data set's own texts and of fixed ones (`data.id_sample`). A remedy is only named after it was tried on a
copy of the folder's small files. What was found equal is remembered in `.cache/`, by the hash of the tokenizer's files,
of the texts and the version of transformers, so that the training pod does not ask again what the check pod has.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from llm_tuning.core.files import read_json, write_json
from llm_tuning.data.check import BaseCheck
from llm_tuning.data.id_sample import IdSample, SampledText
from llm_tuning.data.report import Report
from llm_tuning.data.tokens import RowTokenizer
from llm_tuning.errors import Problem
from llm_tuning.models.layout import TOKENIZER_CONFIG
from llm_tuning.run.checks import BASE
from llm_tuning.run.rebuilt import (
    Rebuild,
    RebuildFailed,
    RebuildStopped,
    Rebuilt,
    rebuild_apart,
    rebuild_here,
    transformers_version,
)

TOKENIZER = "tokenizer.json"
AS_IT_IS = "PreTrainedTokenizerFast"
"""The class that reads tokenizer.json as it is, under a name that transformers 4 and 5 both know."""
REMEMBERED = 1000
DECIDING = (
    "add_bos_token",
    "add_eos_token",
    "fix_mistral_regex",
    "add_prefix_space",
    "split_special_tokens",
    "added_tokens_decoder",
    "additional_special_tokens",
    "extra_special_tokens",
)
"""Keys of tokenizer_config.json by which transformers changes what it has read from tokenizer.json."""


def ids_as_served(folder: Path, *, cache: Path | None, apart: bool = True) -> BaseCheck | None:
    """Return the comparison for the base in `folder`; None where there is nothing to compare.

    That is without transformers (as in the operator's image: the training pod compares then, before it loads a model),
    and for a base without tokenizer.json, whose rows are tokenised by what transformers builds. `apart`: in a process
    of its own, as always where the rows are refused and nothing else of this process needs transformers.
    """
    if transformers_version() is None or not (folder / TOKENIZER).exists():
        return None

    def compare(report: Report, tokenizer: RowTokenizer, sample: IdSample) -> None:
        rebuild = rebuild_here if report.ok and not apart else rebuild_apart
        _compare(folder, report, tokenizer, sample, rebuild=rebuild, cache=cache)

    return compare


def _compare(
    folder: Path, report: Report, tokenizer: RowTokenizer, sample: IdSample, *, rebuild: Rebuild, cache: Path | None
) -> None:
    sampled = sample.texts(tokenizer.template)
    texts, special = [text.text for text in sampled], sample.of_text
    want = tokenizer.ids(texts, add_special_tokens=special)
    key = _key(folder, texts)
    if not texts or key in _remembered(cache):
        return
    try:
        built = rebuild(folder, texts, special)
    except RebuildStopped as stopped:
        report.warnings.append(
            f"the base's token ids could not be compared with those of a server: {stopped}; check again where there is "
            f"more time or memory for it"
        )
        return
    except RebuildFailed as failure:
        report.warnings.append(
            f"the base's token ids could not be compared with those of a server: transformers {transformers_version()} "
            f"does not load its tokenizer ({failure}), and a server that uses it will not start"
        )
        return
    differing = [at for at, ids in enumerate(built.ids) if ids != want[at]]
    if not differing:
        _remember(cache, key)
        return

    def agrees(config: dict[str, object]) -> bool:
        with suppress(RebuildFailed), _with_config(folder, config) as copy:
            return rebuild(copy, texts, special).ids == want
        return False

    rule = _rule(built, sampled, differing, want)
    report.refuse(Problem(f"model {folder}: {TOKENIZER_CONFIG}", rule, _remedy(folder, agrees), field=BASE))


def _rule(
    built: Rebuilt, sampled: Sequence[SampledText], differing: Sequence[int], want: Sequence[Sequence[int]]
) -> str:
    """Say what differs, and where first: in a row of the data set, if in any."""
    at = next((at for at in differing if sampled[at].of_row), differing[0])
    pairs = enumerate(zip(built.ids[at], want[at], strict=False), start=1)
    token = next((i for i, (got, wanted) in pairs if got != wanted), min(len(built.ids[at]), len(want[at])) + 1)
    return (
        f"makes transformers {transformers_version()} build a {built.tokenizer_class} that gives other token ids than "
        f"{TOKENIZER}, in {len(differing)} of {len(sampled)} texts (at token {token} of {sampled[at].source}): a "
        f"server would show the adapter other tokens than it learned"
    )


def _remedy(folder: Path, agrees: Callable[[dict[str, object]], bool]) -> str:
    config = {**(read_json(folder / TOKENIZER_CONFIG) or {}), "tokenizer_class": AS_IT_IS}
    said = f'set "tokenizer_class": "{AS_IT_IS}" in it'
    served = "serve this folder too"
    if agrees(config):
        return f"{said}, which reads {TOKENIZER} as the base's authors published it, and {served}"
    rewrite = (
        f"AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) makes {TOKENIZER} what transformers builds"
    )
    for key in DECIDING:
        if key in config and agrees({name: value for name, value in config.items() if name != key}):
            return (
                f"its `{key}` contradicts {TOKENIZER}: if {TOKENIZER} is what the base was trained with, take it out "
                f"and {said}; if it is `{key}`, {rewrite}; then {served}"
            )
    return f"the two contradict each other: find out which one the base was trained with. {rewrite}; then {served}"


class _with_config:  # noqa: N801 - a context manager
    """A temporary folder with links to the base's small files and another tokenizer_config.json."""

    def __init__(self, folder: Path, config: dict[str, object]) -> None:
        self._folder, self._config = folder.resolve(), config
        self._temporary = tempfile.TemporaryDirectory(prefix="tokenizer-")

    def __enter__(self) -> Path:
        copy = Path(self._temporary.name)
        for file in _tokenizer_files(self._folder):
            if file.name != TOKENIZER_CONFIG:
                (copy / file.name).symlink_to(file)
        (copy / TOKENIZER_CONFIG).write_text(json.dumps(self._config), encoding="utf-8")
        return copy

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()


def _tokenizer_files(folder: Path) -> list[Path]:
    """Return all files beside the weights, by name: which of them a tokenizer reads depends on its class."""
    files = (file for file in folder.iterdir() if file.is_file())
    return sorted(file for file in files if file.suffix in (".json", ".txt", ".model", ".jinja", ".tiktoken"))


def _key(folder: Path, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(f"1 {transformers_version()}\n".encode())
    for file in _tokenizer_files(folder):
        if not file.name.endswith(".index.json"):
            digest.update(f"{file.name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    digest.update(json.dumps(texts).encode())
    return digest.hexdigest()


def _remembered(cache: Path | None) -> list[str]:
    if cache is None:
        return []
    with suppress(OSError, ValueError):
        found = read_json(cache)
        return [str(key) for key in found] if isinstance(found, list) else []
    return []


def _remember(cache: Path | None, key: str) -> None:
    """Write the key down. A cache that cannot be written costs the next run a moment, and this one nothing."""
    if cache is None:
        return
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, [*_remembered(cache), key][-REMEMBERED:])
