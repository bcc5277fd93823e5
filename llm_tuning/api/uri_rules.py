"""Which URIs the API takes for models and data sets: patterns with a sentence each, which the CRD and pydantic share.

    hf://owner/name[@revision]                                a model of a hub
    hf://datasets/owner/name[@revision][?split=train]         a data set of a hub, or a split of it
    hf://datasets/owner/name[@revision]/folder/file.jsonl     a file of it
    s3://bucket/prefix                                        what lies there; of a data set an object, too
    https://host/file.jsonl[#sha256=64 hex digits]            a file of a data set

The language is what the API server's RE2 and Python's re have in common. What a URI means in full is told by
`llm_tuning.sources`; a test holds the two to the same verdict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SourceKind = Literal["model", "dataset"]

MAX_CHARACTERS = 1024


@dataclass(frozen=True)
class UriRule:
    """What a URI has to look like, or (`wanted` False) must not; the pattern may be found anywhere in it."""

    pattern: str
    sentence: str
    wanted: bool = True
    is_secret: bool = False
    """Whether the refusal does not show the URI, since it may hold a password."""

    def holds(self, text: str) -> bool:
        """Return whether `text` keeps the rule; the end is RE2's, where Python's `$` would allow a newline."""
        pattern = rf"{self.pattern[:-1]}\Z" if self.pattern.endswith("$") else self.pattern
        return (re.search(pattern, text) is not None) == self.wanted


_NAME = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REVISION = r"(@(refs/(convert/[A-Za-z0-9_.-]+|pr/[0-9]+)|[A-Za-z0-9_.+]([A-Za-z0-9_.+-]|%2[Ff]){0,199}))?"
_SEGMENT = r"[A-Za-z0-9_.=+,@%~!$&()*:;-]+"
_SPLIT = r"(\?split=[A-Za-z0-9_.-]{1,100})?"
_S3 = rf"s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9](/{_SEGMENT})+/?"
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?"
_QUERY = r"(\?[A-Za-z0-9_.=+,@%~!$&()*:/?;-]*)?"
_WEB = rf"https://{_HOST}(/{_SEGMENT})+{_QUERY}(#sha256=[0-9a-fA-F]{{64}})?"

_BEFORE = (
    UriRule(
        r"^(az|abfss?|wasbs?|adl)://",
        "must not be of Azure's storage, which is not read; copy it to the volume, with azcopy for example, and use "
        "path, or https:// for a file of rows that is open to all",
        wanted=False,
        is_secret=True,  # abfss://container@account
    ),
    UriRule(
        r"^(hf://[^/?#]*@[^/?#]*/|([^h:/]|h[^f:/])[A-Za-z0-9+.-]*:/?/?[^/?#]*@)",
        "must not have a user, password or token in it, which everybody who may read this sees; put it into a Secret "
        "and name that in credentialsSecret",
        wanted=False,
        is_secret=True,
    ),
    UriRule(
        r"^gs://",
        "must not begin with gs://: Google's buckets are read by their S3-compatible XML API; use s3://bucket/key with "
        "that API's address as AWS_ENDPOINT_URL, AWS_REGION auto and an HMAC key as AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY in the Secret of credentialsSecret",
        wanted=False,
    ),
    UriRule(
        r"^(hf|s3|https)://",
        "must begin with hf://, s3:// or https://, such as hf://Qwen/Qwen3-0.6B; what lies on the volume is given as "
        "path",
    ),
    UriRule(r"(/|%2[Ff])(\.|%2[Ee]){1,2}(/|%2[Ff]|[?#]|$)", "must not have . or .. between slashes", wanted=False),
)
_AFTER = (
    UriRule(
        r"^hf://[^@?#]*(--|\.\.|\.git([@/?]|$))",
        "must not have -- or .. in the names of a repository, nor .git at its end: the hub has no such one",
        wanted=False,
    ),
    UriRule(
        r"^(hf://[^@?#]*@[^/?#]*\.\.|s3://[^/]*\.\.)",
        "must not have two dots in a row in a revision or a bucket's name",
        wanted=False,
    ),
    UriRule(
        r"(?i)^[^?#]*\.(zip|tar|tgz|tar\.(gz|zst|bz2|xz)|bz2|xz|7z|rar)/?([?#]|$)",
        "is an archive, or has a compression that is not read; give its files, which may be compressed one by one as "
        "rows.jsonl.gz or .zst",
        wanted=False,
    ),
)
RULES: Mapping[SourceKind, tuple[UriRule, ...]] = {
    "model": (
        *_BEFORE,
        UriRule(
            r"^hf://datasets/",
            "names a data set where a model is asked for; a model is hf://owner/name, and this one belongs in "
            "dataset.uri",
            wanted=False,
        ),
        UriRule(
            r"^https://",
            "is one file or a page, and a model is a folder; use hf://owner/name, or s3://bucket/prefix",
            wanted=False,
        ),
        UriRule(
            rf"^(hf://{_NAME}/{_NAME}{_REVISION}|{_S3})$",
            "must be hf://owner/name[@revision] or s3://bucket/prefix, without a file, query or fragment",
        ),
        *_AFTER,
    ),
    "dataset": (
        *_BEFORE,
        UriRule(
            r"^(hf://datasets/|s3://|https://)",
            "names a model where a data set is asked for; a data set of the hub is hf://datasets/owner/name",
        ),
        UriRule(
            r"(?i)^https://(www\.)?(huggingface\.co|hf\.co)/",
            "is a page of the hub; use hf://datasets/owner/name[@revision][/file]",
            wanted=False,
        ),
        UriRule(
            r"(?i)^https://[^#]*[?&;]([^=&;#]*[-_])?(signature|sig|token|access_?token|api_?key|password|secret"
            r"|credential)=",
            "must not have a credential in its query, which everybody who may read this sees; put the file into a "
            "bucket and use s3://, with a Secret in credentialsSecret",
            wanted=False,
            is_secret=True,
        ),
        UriRule(
            rf"^(hf://datasets/{_NAME}/{_NAME}{_REVISION}((/{_SEGMENT})+|{_SPLIT})|{_S3}{_SPLIT}|{_WEB})$",
            "must be hf://datasets/owner/name[@revision] with /file or ?split=train, s3://bucket/key, or "
            "https://host/file with an optional #sha256=HEX",
        ),
        *_AFTER,
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


def name_of_model(uri: str) -> str:
    """Return the short name of a model by its URI: `Qwen3-0.6B` of `hf://Qwen/Qwen3-0.6B@main`."""
    is_hub = uri.startswith("hf://")
    return (uri.partition("@")[0] if is_hub else uri).rstrip("/").rpartition("/")[2]


def is_uri(text: str) -> bool:
    """Return whether `text` is written as a URI, known or not; a path never has `://` behind its first word."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
