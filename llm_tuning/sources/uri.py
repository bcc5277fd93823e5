"""The URIs of models and data sets: which there are, what one means, and why one is refused.

    hf://owner/name[@revision]                                a model of a hub
    hf://datasets/owner/name[@revision][?split=train]         a split of a data set of a hub
    hf://datasets/owner/name[@revision]/folder/file.jsonl     a file of it
    s3://bucket/prefix, gs://..., az://...                    an object store; of a data set an object, too
    https://host/file.jsonl[#sha256=64 hex digits]            a file of a data set

Each rule is a pattern and a sentence, in the language that the API server's RE2 and Python's re have in common: the CRD
and pydantic are made from the same tables, and so give the same verdict. Nothing here knows a network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

SourceKind = Literal["model", "dataset"]

MAX_CHARACTERS = 1024
HUB = "hf"
STORES = ("s3", "gs", "az")
WEB = "https"
SCHEMES = (HUB, *STORES, WEB)


@dataclass(frozen=True)
class UriRule:
    """What a URI has to look like, or (`wanted` False) must not; the pattern may be found anywhere in it."""

    pattern: str
    sentence: str
    wanted: bool = True
    is_secret: bool = False
    """Whether the refusal shows the URI's kind of fault only, since it may hold a password."""

    def holds(self, text: str) -> bool:
        """Return whether `text` keeps the rule; the end is RE2's, where Python's `$` would allow a newline."""
        pattern = rf"{self.pattern[:-1]}\Z" if self.pattern.endswith("$") else self.pattern
        return (re.search(pattern, text) is not None) == self.wanted


_NAME = r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_REVISION = r"(@[A-Za-z0-9]([A-Za-z0-9._%-]{0,126}[A-Za-z0-9_-])?)?"
_SEGMENT = r"[A-Za-z0-9._=+,@%~!$&()*:-]+"
_SPLIT = r"(\?split=[A-Za-z0-9._-]{1,64})?"
_BUCKET = r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]"
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?"
_STORE = rf"(s3|gs|az)://{_BUCKET}(/{_SEGMENT})+/?"
_QUERY = r"(\?[A-Za-z0-9._=+,@%~!$&()*:/?;-]*)?"

_FOR_ALL = (
    UriRule(
        r"^(hf://[^/?#]*@[^/?#]*/|([^h:/]|h[^f:/])[A-Za-z0-9+.-]*:/?/?[^/?#]*@)",
        "must not have a user, password or token in it, which everybody who may read this sees; put it into a Secret "
        "and name that in credentialsSecret",
        wanted=False,
        is_secret=True,
    ),
    UriRule(
        r"^(hf|s3|gs|az|https)://",
        "must begin with hf://, s3://, gs://, az:// or https://, such as hf://Qwen/Qwen3-0.6B; what lies on the volume "
        "is given as path",
    ),
    UriRule(r"(/|%2[Ff])(\.|%2[Ee]){1,2}(/|%2[Ff]|[?#]|$)", "must not have . or .. between slashes", wanted=False),
)
RULES: Mapping[SourceKind, tuple[UriRule, ...]] = {
    "model": (
        *_FOR_ALL,
        UriRule(
            r"^hf://datasets/",
            "names a data set where a model is asked for; a model is hf://owner/name, and this one belongs in "
            "dataset.uri",
            wanted=False,
        ),
        UriRule(
            r"^https://",
            "names one file by https, and a model is a folder; use hf://owner/name, or s3://bucket/prefix",
            wanted=False,
        ),
        UriRule(
            rf"^(hf://{_NAME}/{_NAME}{_REVISION}|{_STORE})$",
            "must be hf://owner/name[@revision] or s3://bucket/prefix (gs, az), without a file, query or fragment",
        ),
    ),
    "dataset": (
        *_FOR_ALL,
        UriRule(
            r"^(hf://datasets/|[^h]|https://)",
            "names a model where a data set is asked for; a data set of the hub is hf://datasets/owner/name",
        ),
        UriRule(
            rf"^(hf://datasets/{_NAME}/{_NAME}{_REVISION}((/{_SEGMENT})+|{_SPLIT})|{_STORE}"
            rf"|https://{_HOST}(/{_SEGMENT})+{_QUERY}(#sha256=[0-9a-fA-F]{{64}})?)$",
            "must be hf://datasets/owner/name[@revision] with /file or ?split=train, s3://bucket/key (gs, az), or "
            "https://host/file with an optional #sha256=HEX",
        ),
    ),
}


def refusal(text: str, kind: SourceKind) -> str | None:
    """Return why `text` is no URI of a `kind`, as a sentence without the field's name; None where it is one."""
    if not 1 <= len(text) <= MAX_CHARACTERS:
        return f"must have 1 to {MAX_CHARACTERS} characters, got {len(text)}"
    broken = next((rule for rule in RULES[kind] if not rule.holds(text)), None)
    if broken is None:
        return None
    return broken.sentence if broken.is_secret else f"{broken.sentence}; got {_shown(text)}"


@dataclass(frozen=True)
class SourceUri:
    """What a URI says; of what it has no part of, None."""

    text: str
    """As it was given, without a slash at its end."""
    kind: SourceKind
    scheme: str
    owner: str
    """The owner of a repository, the bucket of a store, the host of a file."""
    name: str
    """The name of a repository, the key or prefix in a bucket, the path of a file with its query."""
    revision: str | None = None
    """Branch, tag or commit; None: the repository's main branch."""
    file: str | None = None
    """A file of a repository."""
    split: str | None = None
    sha256: str | None = None
    """What an https file has to have, in lower case."""

    @property
    def base_name(self) -> str:
        """The short name of a model: `Qwen3-0.6B` of `hf://Qwen/Qwen3-0.6B@main`."""
        return self.name.rpartition("/")[2]


def parse_uri(text: str, kind: SourceKind) -> SourceUri:
    """Parse the URI of a `kind`; raises ValueError with a sentence that lacks the field's name."""
    if (refused := refusal(text, kind)) is not None:
        raise ValueError(refused)
    text = text.rstrip("/")
    scheme, _, rest = text.partition("://")
    if scheme in STORES:
        owner, _, name = rest.partition("/")
        return SourceUri(text, kind, scheme, owner, name)
    if scheme == WEB:
        parts = urlsplit(text)
        name = parts.path.removeprefix("/") + (f"?{parts.query}" if parts.query else "")
        digest = parts.fragment.removeprefix("sha256=").lower() or None
        return SourceUri(text, kind, scheme, parts.netloc, name, sha256=digest)
    rest, _, query = rest.partition("?")
    if kind == "dataset":
        rest = rest.removeprefix("datasets/")
    owner, name, *file = rest.split("/", 2)
    name, _, revision = name.partition("@")
    split = parse_qs(query).get("split", [None])[0]
    return SourceUri(
        text, kind, scheme, owner, name, unquote(revision) or None, unquote(file[0]) if file else None, split
    )


def is_uri(text: str) -> bool:
    """Return whether `text` is written as a URI, known or not; a path never has `://` behind its first word."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
