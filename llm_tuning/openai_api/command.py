"""`tune-llm api`: the fine-tuning API on this machine, without a cluster. It is on loopback, and asks for no key.

Every base is an InferenceService from the start: vLLM starts for the one that is asked, so a base that was never tuned
can be asked, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llm_tuning.errors import InputError, Problem
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.local.backend import CLAIM

HOST = "127.0.0.1"
DRAIN_SECONDS = 10
"""For answers that are under way when it is told to end."""
CONFIG = "config.json"
"""What makes a folder a base."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `tune-llm api`."""
    add = parser.add_argument
    add("--port", type=int, default=8001, help="port on 127.0.0.1")
    text = "folder of base models, a folder each; scripts ask for them by those names"
    add("--models", metavar="FOLDER", default="base", help=text)
    text = (
        "another name for a base, so that a script needs no change: gpt-4.1-mini=base/qwen3-0.6b; may be given several "
        "times"
    )
    add("--base", metavar="NAME=FOLDER", action="append", default=[], help=text)
    text = (
        "keeps datasets/uploads, models/ and api/, and has the bases in it; without it the folder that --models is in"
    )
    add("--folder", metavar="FOLDER", help=text)
    add("--gpus", type=int, default=1, help="GPUs of a training; on a machine without one it trains on the CPU")
    text = "YAML file of settings as the chart has them, in place of --models, --base and --gpus"
    add("--settings", metavar="FILE", help=text)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; raises InputError for what cannot be served."""
    try:
        from llm_tuning.openai_api.local.backend import LocalBackend
        from llm_tuning.openai_api.server import serve
    except ImportError as error:
        rule, fix = f"the server needs the package {error.name}", "install llm-tuning with its extra `api`"
        raise InputError(Problem("", rule, fix)) from None

    root = root_of(args)
    settings = settings_of(args, root)
    backend = LocalBackend(root)
    names = ", ".join(settings.bases)
    print(f"base_url http://{HOST}:{args.port}/v1, models {names}; files and jobs in {root}", flush=True)  # noqa: T201
    return serve(backend, settings, host=HOST, port=args.port, drain_seconds=DRAIN_SECONDS)


def root_of(args: argparse.Namespace) -> Path:
    """Return the folder that has everything."""
    given = args.folder if args.folder is not None else Path(args.models).expanduser().absolute().parent
    return Path(given).expanduser().resolve()


def settings_of(args: argparse.Namespace, root: Path) -> Settings:
    """Return the settings that the flags mean; raises InputError."""
    if args.settings is not None:
        settings = Settings.load(Path(args.settings).expanduser())
        fetched = [name for name, base in settings.bases.items() if base.path is None]
        if fetched:
            rule = f"{', '.join(fetched)} has a uri, and this server fetches nothing"
            fix = "fetch it with `tune-llm sources fetch`, and give the folder as path"
            raise InputError(Problem(args.settings, rule, fix))
        return settings.model_copy(update={"claim_name": CLAIM})
    here: dict[str, Any] = {"resources": {"gpus": args.gpus}, "serving": {"always": True}}
    bases: dict[str, Any] = {path.name: {"path": _inside(path, root)} | here for path in _bases_in(args.models)}
    for given in args.base:
        name, equals, folder = given.partition("=")
        if not equals:
            raise InputError(Problem("--base", f"must be NAME=FOLDER, got {given!r}"))
        bases[name] = {"path": _inside(_base(Path(folder).expanduser()), root)} | here
    return Settings.parse({"bases": bases, "claimName": CLAIM})


def _bases_in(models: str) -> list[Path]:
    folder = Path(models).expanduser()
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not found:
        rule = "has no base model" if folder.is_dir() else "is no folder"
        fix = f"give the folder that has bases as folders, each with its {CONFIG}"
        raise InputError(Problem(f"--models {models}", rule, fix))
    return found


def _base(path: Path) -> Path:
    if not (path / CONFIG).is_file():
        raise InputError(Problem("--base", f"{path} is no base model: it has no {CONFIG}"))
    return path


def _inside(path: Path, root: Path) -> str:
    """Return a path relative to the server's folder; raises InputError for one outside of it."""
    whole = path.resolve()
    if not whole.is_relative_to(root):
        fix = "give --folder as a folder that has both, or copy the base there"
        raise InputError(Problem(str(path), f"is not in {root}, where files and adapters are kept", fix))
    return str(whole.relative_to(root))
