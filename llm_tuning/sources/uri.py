"""The grammar of sources: text in, a `Source` or a refusal of one sentence out. Pure.

    hf://owner/name[@revision]                                  a model repository of the hub (any HF_ENDPOINT)
    hf://datasets/owner/name[@revision][/file][?split=train]    a data set repository, one file or one split of it
    s3://bucket/key                                             an object, or what lies below a prefix (any endpoint)
    https://host/file[#sha256=HEX]                              one file of rows; the hash pins it

The form of hf:// is huggingface_hub's own (`parse_hf_uri`): a revision with a slash is written with %2F, but for
refs/pr/N and refs/convert/NAME. Nothing here reads the disk or the network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qsl, quote, unquote

from llm_tuning.core.suggestions import did_you_mean
from llm_tuning.core.text import one_line
from llm_tuning.errors import InputError, Problem

SCHEMES = ("hf", "s3", "https")
MOST_CHARACTERS = 1024
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_NAME = r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
HUB_NAME = re.compile(rf"{_NAME}/{_NAME}")
"""`owner/name` as the hub allows it, but for `--` and `..`, which it refuses."""
_SPECIAL_REVISION = re.compile(r"refs/(?:convert/[\w.-]+|pr/\d+)(?=/|$)")
_REVISION = re.compile(r"[\w./+-]{1,200}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
_SPLIT = re.compile(r"[\w.-]{1,100}")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_HUB_PAGE = re.compile(
    r"(?P<datasets>datasets/)?(?P<name>[^/]+/[^/]+?)(?:/(?:tree|blob|resolve|raw)/(?P<rest>[^?#]+))?/?(?:[?#].*)?"
)
_SECRET = re.compile(r"(?i)(?:^|[-_])(?:signature|sig|token|access_?token|api_?key|password|secret|credential)$")
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz", ".bz2", ".xz", ".7z", ".rar")


class Kind(StrEnum):
    """What a source is given as."""

    MODEL = "model"
    DATASET = "dataset"

    @property
    def field(self) -> str:
        """The field of the API that takes it."""
        return f"{self.value}.uri"


@dataclass(frozen=True)
class Source:
    """A place outside of this disk; equal sources are the same bytes at the same commit."""

    scheme: str
    kind: Kind
    location: str
    """hf: `owner/name`; s3: `bucket/key`; https: host, path and query."""
    revision: str = ""
    """hf: branch, tag or commit; "" is the repository's `main`."""
    file: str = ""
    """hf data sets: one file of the repository."""
    split: str = ""
    """hf data sets, and prefixes of s3: the files of one split."""
    sha256: str = ""
    """https: what the file must hash to."""

    @property
    def uri(self) -> str:
        """The canonical form, revision included."""
        if self.scheme == "https":
            return f"https://{self.location}" + (f"#sha256={self.sha256}" if self.sha256 else "")
        query = f"?split={self.split}" if self.split else ""
        if self.scheme == "s3":
            return f"s3://{self.location}{query}"
        special = _SPECIAL_REVISION.fullmatch(self.revision)
        revision = self.revision if special else self.revision.replace("/", "%2F")
        return f"{self.repository}{f'@{revision}' if revision else ''}{f'/{self.file}' if self.file else ''}{query}"

    @property
    def repository(self) -> str:
        """What a commit belongs to: the URI without revision, file, split and hash."""
        if self.scheme == "hf":
            return f"hf://{'datasets/' if self.kind is Kind.DATASET else ''}{self.location}"
        return f"{self.scheme}://{self.location}"

    @property
    def name(self) -> str:
        """What the source is called: the last part of its location."""
        return self.location.partition("?")[0].rstrip("/").rpartition("/")[2]

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"{self.kind} {self.uri}"

    @property
    def is_pinned(self) -> bool:
        """The URI names a commit of the hub: it needs no resolving."""
        return self.scheme == "hf" and COMMIT.fullmatch(self.revision) is not None


def is_uri(text: str) -> bool:
    """Return whether `text` is meant as a URI, known scheme or not; a path (`C:\\x`, `a#b`) is none."""
    found = _SCHEME.match(text)
    return found is not None and (found[2] is not None or found[1].lower() in SCHEMES)


def hub_source(text: str, kind: Kind) -> Source | None:
    """Return the hub source that the plain `owner/name[@revision]` stands for; None where `text` is something else."""
    name, _, _ = text.partition("@")
    if is_uri(text) or not HUB_NAME.fullmatch(name):
        return None
    try:
        return parse_uri(f"hf://{'datasets/' if kind is Kind.DATASET else ''}{text}", kind)
    except InputError:
        return None


def parse_uri(text: str, kind: Kind | str) -> Source:
    """Return the source that `text` names, as a model or as a data set; raises InputError with the fix."""
    kind = Kind(kind)
    refuse = _Refusal(text, kind)
    if len(text) > MOST_CHARACTERS:
        raise refuse(f"has {len(text):,} characters, and at most {MOST_CHARACTERS:,} are taken", "give a shorter one")
    found = _SCHEME.match(text)
    if found is None or found[2] is None:
        raise refuse("is no URI", f"give one of {', '.join(f'{scheme}://...' for scheme in SCHEMES)}")
    scheme, rest = found[1].lower(), text[found.end() :]
    if scheme not in SCHEMES:
        known = f"known are {', '.join(f'{name}://' for name in SCHEMES)}"
        raise refuse(f"has the scheme {scheme}://, and {known}", _instead(scheme))
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        raise refuse("holds a user or a password, which would be seen by all who read it", _CREDENTIALS[scheme])
    if re.search(r"[\x00-\x20\x7f\\]", text):
        raise refuse("holds a space, a backslash or a control character", "percent-encode it: %20 is a space")
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    if any(unquote(part) in ("..", ".") for part in path.split("/")):
        raise refuse("holds `..` or `.` as a part of its path", "give the path that it leads to")
    return {"hf": _hub, "s3": _s3, "https": _https}[scheme](rest, kind, refuse)


_CREDENTIALS = {
    "hf": "leave it out: the token is HF_TOKEN, on a cluster a key of the Secret",
    "s3": "leave it out: the keys are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, on a cluster of the Secret",
    "https": "give a file that needs no sign-in, or put it into a bucket and give s3://bucket/key",
}


class _Refusal:
    """Builds the error for one URI; a password in it is never shown."""

    def __init__(self, text: str, kind: Kind) -> None:
        shown = re.sub(r"(//)[^/?#@]*@", r"\1***@", text[:200])
        self._where, self._field = f"{kind} {one_line(shown)}", kind.field

    def __call__(self, rule: str, fix: str) -> InputError:
        return InputError(Problem(self._where, rule, fix, field=self._field))


def _instead(scheme: str) -> str:
    """Say how what lies behind another scheme can be given."""
    if scheme == "http":
        return "give https://"
    if scheme == "gs":
        return (
            "Google's buckets are read by their S3-compatible XML API: give s3://bucket/key with that API's address as "
            "AWS_ENDPOINT_URL, AWS_REGION=auto, and an HMAC key as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if scheme in ("az", "abfs", "abfss", "wasb", "wasbs", "adl"):
        return (
            "Azure's storage is not read: copy it to the volume, with azcopy for example, and give its path; a file of "
            "rows that is open to all is given by its https:// address"
        )
    if scheme == "oci":
        return "copy it to the volume and give its path, or to a bucket with an S3 endpoint and give s3://"
    if scheme == "file":
        return "give a path without a scheme for what lies on this disk"
    return did_you_mean(f"{scheme}://", [f"{name}://" for name in SCHEMES], otherwise="give one of these")


def _hub(rest: str, kind: Kind, refuse: _Refusal) -> Source:
    of_datasets = rest.startswith("datasets/") and rest.count("/") > 1
    rest = rest.removeprefix("datasets/") if of_datasets else rest.removeprefix("models/")
    form = "hf://datasets/owner/name[@revision][/file]" if kind is Kind.DATASET else "hf://owner/name[@revision]"
    if rest.split("/")[0] in ("datasets", "spaces", "buckets", "kernels") or not rest:
        raise refuse("names no repository of a model or a data set", f"the form is {form}")
    rest, query = _query(rest, refuse)
    name, revision, file = _hub_parts(rest)
    if not HUB_NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise refuse(f"must name a repository as owner/name, got {one_line(name)!r}", f"the form is {form}")
    if of_datasets and kind is Kind.MODEL:
        raise refuse("is a data set, not a model", f"give it as {{field:dataset.uri}}, or the model as {form}")
    if not of_datasets and kind is Kind.DATASET:
        raise refuse("is a model repository, not a data set", f"a data set is hf://datasets/{rest}")
    if revision is not None and (
        not _REVISION.fullmatch(revision) or ".." in revision or revision.startswith(("-", "/"))
    ):
        raise refuse(f"has the revision {one_line(revision)!r}", "give a branch, a tag or a commit behind the @")
    if kind is Kind.MODEL and (file or query):
        rule = f"asks for {'a file' if file else 'a split'} of a model, which is taken whole"
        raise refuse(rule, f"give hf://{name}{f'@{revision}' if revision else ''}")
    if file and query:
        raise refuse("asks for a file and a split", "give one of them")
    _check_file(file, refuse)
    return Source("hf", kind, name, revision=revision or "", file=file, split=query)


def _hub_parts(rest: str) -> tuple[str, str | None, str]:
    """Split `owner/name[@revision][/file]`; the revision is decoded, None where there is none."""
    owner, _, tail = rest.partition("/")
    found = re.match(r"([^/@]*)(?:@|(?=/)|$)", tail)
    assert found is not None
    name, tail = found[1], tail[found.end() :]
    if not found[0].endswith("@"):
        return f"{owner}/{name}", None, tail.strip("/")
    special = _SPECIAL_REVISION.match(tail)
    revision = special[0] if special else tail.split("/")[0]
    return f"{owner}/{name}", unquote(revision), tail[len(revision) :].strip("/")


def _query(rest: str, refuse: _Refusal) -> tuple[str, str]:
    """Cut `?split=NAME` off; returns the rest and the name, "" without one."""
    if "#" in rest:
        raise refuse("holds a #", "a split is named by ?split=train")
    rest, mark, query = rest.partition("?")
    if not mark:
        return rest, ""
    given = parse_qsl(query, keep_blank_values=True)
    if len(given) != 1 or given[0][0] != "split" or not _SPLIT.fullmatch(given[0][1]):
        raise refuse(f"asks for {one_line(query)!r}", "what can be asked for is ?split=NAME, as in ?split=train")
    return rest, given[0][1]


def _s3(rest: str, kind: Kind, refuse: _Refusal) -> Source:
    rest, split = _query(rest, refuse)
    bucket, _, key = rest.partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise refuse(f"has {one_line(bucket)!r} as its bucket", "the form is s3://bucket/key")
    if not key.strip("/"):
        raise refuse("is a whole bucket", "give an object or a prefix in it: s3://bucket/key")
    if "//" in key or key.startswith("/"):
        raise refuse("has an empty part in its key", "write one slash")
    if kind is Kind.MODEL and split:
        raise refuse("asks for a split of a model, which is taken whole", f"give s3://{rest}")
    _check_file(key, refuse)
    return Source("s3", kind, f"{bucket}/{key.rstrip('/')}", split=split)


def _https(rest: str, kind: Kind, refuse: _Refusal) -> Source:
    rest, mark, fragment = rest.partition("#")
    host, _, path = rest.partition("/")
    if not _HOST.fullmatch(host):
        raise refuse(f"has {one_line(host)!r} as its host", "the form is https://host/file")
    host = host.lower()
    if host in _HUB_HOSTS:
        raise refuse("is a page of the hub", _as_hub(path))
    if kind is Kind.MODEL:
        raise refuse("is one file, and a model is a folder of them", "give hf://owner/name or s3://bucket/prefix")
    path, question, query = path.partition("?")
    if not path or path.endswith("/"):
        raise refuse("is a folder, and https gives one file", "give the file in it, or a prefix of a bucket by s3://")
    if secret := next((name for name, _ in parse_qsl(query, keep_blank_values=True) if _SECRET.search(name)), None):
        rule = f"holds a credential ({one_line(secret)}), which would be seen by all who read it"
        raise refuse(rule, _CREDENTIALS["https"])
    _check_file(unquote(path), refuse)
    if not mark:
        return Source("https", kind, f"{host}/{path}{question}{query}")
    name, _, digest = fragment.partition("=")
    if name != "sha256" or not _SHA256.fullmatch(digest):
        raise refuse(f"ends in #{one_line(fragment)[:80]}", "what may stand there is #sha256= and 64 hex digits")
    return Source("https", kind, f"{host}/{path}{question}{query}", sha256=digest.lower())


def _as_hub(path: str) -> str:
    found = _HUB_PAGE.fullmatch(path)
    if found is None:
        return "give hf://owner/name, or hf://datasets/owner/name"
    revision, _, file = (found["rest"] or "").partition("/")
    at = f"@{revision}" if revision not in ("", "main") else ""
    return f"give hf://{found['datasets'] or ''}{found['name']}{at}{f'/{file}' if file and found['datasets'] else ''}"


def _check_file(name: str, refuse: _Refusal) -> None:
    if ending := next((ending for ending in ARCHIVES if name.lower().endswith(ending)), None):
        fix = "unpack it, and give the files; rows may be compressed one by one, as rows.jsonl.gz or .zst"
        raise refuse(f"is an archive or has a compression that is not read ({ending})", fix)


def path_parts(source: Source) -> tuple[str, ...]:
    """Return the names of the folders that lead to a source on this disk, its commit aside.

    The hub's own names are kept. Keys and addresses may be as long and as odd as they like: their last part stands for
    them, with the hash of the whole.
    """
    if source.scheme == "hf":
        return ("hf", *(("datasets",) if source.kind is Kind.DATASET else ()), *source.location.split("/"))
    import hashlib

    host, _, rest = source.location.partition("/")
    last = re.sub(r"[^\w.-]", "-", source.name)[:60].lstrip(".-") or "file"
    return (source.scheme, quote(host, safe=""), f"{last}-{hashlib.sha256(rest.encode()).hexdigest()[:8]}")
