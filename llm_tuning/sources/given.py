"""What a person gave for a path: a path, a URI, or a name of the hub; and where it lies once it is on this disk.

A path always wins. `owner/name` is taken for the hub only where neither it nor its folder exists, and that is said.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llm_tuning.core.text import shown_bytes
from llm_tuning.data.files.folder import COMPRESSED_ENDINGS, DATA_ENDINGS
from llm_tuning.errors import InputError, Problem
from llm_tuning.sources import store
from llm_tuning.sources.fetch import Fetched, fetch
from llm_tuning.sources.pace import Watch, silent
from llm_tuning.sources.reasons import SourceRefused, Terminal
from llm_tuning.sources.store import Stored
from llm_tuning.sources.uri import Kind, Source, hub_source, is_uri, parse_uri

log = logging.getLogger(__name__)

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def is_offline(environ: Mapping[str, str]) -> bool:
    """Return whether the environment forbids to ask the hub, as huggingface_hub reads it."""
    return any(environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE_VARIABLES)


def source_given(text: str, kind: Kind) -> Source | None:
    """Return the source that stands in the place of a path; None: it is a path. Raises InputError for a bad URI."""
    if is_uri(text):
        return parse_uri(text, kind)
    path = Path(text.partition("@")[0])
    if path.exists() or path.parent.is_dir() or path.suffix in (*DATA_ENDINGS, *COMPRESSED_ENDINGS):
        return None
    return hub_source(text, kind)


def local_path(
    text: str, kind: Kind, root: Path, *, commit: str = "", watch: Watch = silent, offline: bool = False
) -> str:
    """Return the path on this disk of what was given, fetched below `root` where it is a source; says what it does.

    `commit` is that of an earlier start of the same run. With `offline` the hub is not asked: what lies below `root`
    counts. Raises SourceRefused, SourceBusy, and InputError for a bad URI or one that is not here while `offline`.
    """
    source = source_given(text, kind)
    if source is None:
        return text
    named = not is_uri(text)
    if offline and source.scheme == "hf":
        found = lying(root, source, commit)
        if found is None:
            rule = f"is not below {root}, and HF_HUB_OFFLINE forbids to fetch it"
            fix = "unset that, or fetch it first where there is a network: {command:sources fetch}"
            problem = Problem(source.where, rule, fix, field=kind.field)
            if not named:
                raise InputError(problem)
            log.warning("%s is no path here, and %s", text, problem)
            return text  # the check of the path says what it lacks, with all else that is wrong
        log.info("%s is here, and the hub is not asked (HF_HUB_OFFLINE): %s", found.uri, found.path)
        return str(found.path)
    if named:
        log.info("%s is no path here, so it is taken for %s", text, source.uri)
    try:
        fetched = fetch(source, root, commit=commit, watch=watch)
    except SourceRefused as refused:
        raise (_neither(text, refused) if named else refused) from None
    log.info("%s", said(fetched))
    return str(fetched.path)


def lying(root: Path, source: Source, commit: str = "") -> Stored | None:
    """Return what lies of `source` below `root`, at its commit or the only one there is; raises InputError for more."""
    commit = commit or (source.revision if source.is_pinned else "")
    if commit:
        return store.find(root, source, commit)
    part = store.selection_of(source)
    found = [
        each for each in store.stored(root) if (each.record.uri, each.record.selection) == (source.repository, part)
    ]
    if len(found) > 1:
        rule = f"lies below {root} at {len(found)} commits, and the hub is not asked which is meant (HF_HUB_OFFLINE)"
        fix = f"name one: {' or '.join(each.uri for each in found[:3])}"
        raise InputError(Problem(source.where, rule, fix, field=source.kind.field))
    return found[0] if found else None


def said(fetched: Fetched) -> str:
    """Say what became of a fetch, in one line."""
    record = fetched.stored.record
    size = shown_bytes(record.size)
    if fetched.moved:
        return f"{record.uri} at {record.commit[:12]}: {size} fetched to {fetched.path}"
    return f"{record.uri} at {record.commit[:12]} is here already ({size}): {fetched.path}"


def _neither(text: str, refused: SourceRefused) -> InputError:
    """Build the refusal of a name that is neither a path here nor on the hub."""
    if refused.reason not in (Terminal.NOT_FOUND, Terminal.ACCESS):
        return refused
    (problem,) = refused.problems
    return InputError(replace(problem, rule=f"{problem.rule}; nor is there a path {text} here"))
