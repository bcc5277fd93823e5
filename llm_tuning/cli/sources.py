"""`tune-llm sources`: what was fetched to this disk by name, from where, how large, and which adapters need it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llm_tuning.cli.tables import print_table
from llm_tuning.core.text import shown_bytes
from llm_tuning.errors import EXIT_OK, InputError, Problem
from llm_tuning.sources.uri import Kind

EXIT_PROBLEMS = 1
"""`verify` found something: not bad input of this command, so not 64."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the four actions and their flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|fetch|verify|remove")
    for name, (_, text) in ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text)
        if name == "fetch":
            action.add_argument("uri", help="hf://owner/name[@revision], hf://datasets/..., s3://..., https://...")
            action.add_argument("--as", dest="kind", choices=["model", "dataset"], help="where the URI does not say it")
        if name == "verify":
            action.add_argument("source", nargs="?", help="URI or folder (default: all)")
        if name == "remove":
            action.add_argument("source", help="URI with its commit, or folder, as `list` has it")
            action.add_argument("--force", action="store_true", help="also one that an adapter was made of")
        if name in ("list", "remove"):
            action.add_argument(
                "--output_dir", default="models", metavar="FOLDER", help="the adapters (default: models)"
            )
        action.add_argument("--sources_dir", default="sources", metavar="FOLDER", help="the sources (default: sources)")
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Do the action and print what came of it; returns 0, or 1 when `verify` found problems. Raises InputError."""
    return ACTIONS[args.action][0](args)


def _list(args: argparse.Namespace) -> int:
    from llm_tuning.sources.store import stored, unfinished

    root = Path(args.sources_dir)
    users = _users(Path(args.output_dir))
    rows = [{**_shown(each), "used_by": users(each)} for each in stored(root)]
    left = unfinished(root)
    if args.json:
        print(
            json.dumps(
                {"sources": rows, "unfinished": [{"folder": str(folder), "bytes": size} for folder, size in left]},
                indent=2,
            )
        )
        return EXIT_OK
    if rows:
        header = ["SOURCE", "KIND", "SIZE", "FETCHED", "USED BY"]
        cells = [
            [r["uri"], r["kind"], shown_bytes(r["bytes"]), r["fetched_at"], ", ".join(r["used_by"]) or "-"]
            for r in rows
        ]
        print_table(header, cells)
    else:
        print(f"no sources in {root.resolve()}")
    for folder, size in left:
        print(f"begun, and continued by the next fetch: {folder} ({shown_bytes(size)})")
    return EXIT_OK


def _fetch(args: argparse.Namespace) -> int:
    from llm_tuning.progress.fetching import fetch_shown
    from llm_tuning.sources.fetch import fetch
    from llm_tuning.sources.given import is_offline, said
    from llm_tuning.sources.uri import hub_source, is_uri, parse_uri

    kind = _kind(args)
    source = parse_uri(args.uri, kind) if is_uri(args.uri) else hub_source(args.uri, kind)
    if source is None:
        source = parse_uri(args.uri, kind)  # which says what a URI is
    if source.scheme == "hf" and is_offline(os.environ):
        raise InputError(Problem("HF_HUB_OFFLINE", "is set, and forbids to ask the hub", "unset it"))
    with fetch_shown() as watch:
        fetched = fetch(source, Path(args.sources_dir), watch=watch)
    if args.json:
        print(json.dumps({**_shown(fetched.stored), "bytes_moved": fetched.moved}, indent=2))
    else:
        import sys

        print(said(fetched), file=sys.stderr)
        print(fetched.path)
    return EXIT_OK


def _verify(args: argparse.Namespace) -> int:
    from llm_tuning.api.flags import FLAG_WORDS
    from llm_tuning.sources.store import stored, verify

    found = [_one(args.source, Path(args.sources_dir))] if args.source else list(stored(Path(args.sources_dir)))
    problems = [problem.in_words(FLAG_WORDS) for each in found for problem in verify(each)]
    if args.json:
        print(json.dumps({"problems": [{"where": p.where, "rule": p.rule, "fix": p.fix} for p in problems]}, indent=2))
    else:
        print("\n".join(map(str, problems)) or f"{len(found)} sources: all as fetched")
    return EXIT_PROBLEMS if problems else EXIT_OK


def _remove(args: argparse.Namespace) -> int:
    from llm_tuning.sources.store import WORK, bytes_in, remove

    root = Path(args.sources_dir)
    given = Path(args.source)
    if given.is_dir() and given.resolve().parent == (root / WORK).resolve():
        size = bytes_in(given)
        remove(root, root / WORK / given.name)
        print(f"removed what was begun of {given.name} ({shown_bytes(size)})")
        return EXIT_OK
    found = _one(args.source, root)
    users = _users(Path(args.output_dir))(found)
    if users and not args.force:
        rule = f"is what {', '.join(users)} was made of, which needs it to be served and evaluated"
        raise InputError(Problem(found.uri, rule, "use --force if it lies elsewhere, too"))
    remove(root, found.folder)
    if args.json:
        print(json.dumps({**_shown(found), "used_by": users}, indent=2))
    else:
        print(f"removed {found.uri} ({shown_bytes(found.record.size)})")
    return EXIT_OK


ACTIONS: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
    "list": (_list, "what lies on this disk, from where, and which adapters were made of it"),
    "fetch": (_fetch, "fetch a model or a data set, or find it here; prints its path"),
    "verify": (_verify, "compare the files with the hashes that they were fetched with"),
    "remove": (_remove, "remove one source; refused while an adapter was made of it"),
}


def _kind(args: argparse.Namespace) -> Kind:
    """Return what a URI is given as: as told, or as it says itself."""
    if args.kind:
        return Kind(args.kind)
    uri = args.uri.lower()
    if uri.startswith("s3:"):
        raise InputError(Problem(args.uri, "may be a model or a data set", "use --as model or --as dataset"))
    return Kind.DATASET if uri.startswith(("hf://datasets/", "https:")) else Kind.MODEL


def _one(given: str, root: Path) -> Any:
    """Return the source that a URI or a folder names; raises InputError."""
    from llm_tuning.sources.store import stored

    every = list(stored(root))
    named = [each for each in every if given in (each.uri, each.record.uri)]
    named = named or [each for each in every if Path(given).resolve() in (each.folder.resolve(), each.path.resolve())]
    if len(named) == 1:
        return named[0]
    fix = f"name one: {' or '.join(each.uri for each in named[:3])}" if named else "{command:sources list} shows them"
    rule = f"names {len(named)} sources" if named else f"is no source below {root}"
    raise InputError(Problem(given, rule, fix))


def _users(models: Path) -> Callable[[Any], list[str]]:
    """Return a function from a source to the model_ids of adapters that were made of it."""
    from llm_tuning.models.manifest import FromSource, Manifest, read_model

    def manifests() -> Iterator[Manifest]:
        for folder in sorted(models.iterdir()) if models.is_dir() else ():
            try:
                manifest = None if folder.name.startswith(".") else read_model(folder)
            except InputError:
                continue
            if manifest is not None:
                yield manifest

    made_of: dict[tuple[str, str], list[str]] = {}
    for manifest in manifests():
        rows = manifest.dataset
        used: list[FromSource | None] = [manifest.base.source, rows.source if rows else None]
        used.append(rows.evaluation.source if rows and rows.evaluation else None)
        for source in used:
            if source is not None:
                made_of.setdefault((source.uri, source.commit), []).append(manifest.model_id)
    return lambda each: made_of.get((each.record.uri, each.record.commit), [])


def _shown(each: Any) -> dict[str, Any]:
    record = each.record
    return {
        "uri": each.uri,
        "kind": record.kind,
        "commit": record.commit,
        "path": str(each.path),
        "bytes": record.size,
        "fetched_at": record.fetched_at,
    }
