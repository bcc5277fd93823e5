"""API keys: a record for each, in Secrets that the server has mounted; only a key's hash is kept.

An entry of such a Secret is the key's name and a JSON object:

    alice: {"sha256": "<hash of the whole key>", "role": "full", "expires": "2027-06-30T00:00:00Z"}

The kubelet brings changes into the folder within about a minute, so that the server needs neither a restart nor the
right to read Secrets. Entries may hold a key by mistake, so no message here repeats a value.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AwareDatetime, StringConstraints, ValidationError

from llm_tuning.core.model import ApiModel
from llm_tuning.core.text import printable
from llm_tuning.errors import InputError, Problem

log = logging.getLogger(__name__)

SECRET_NAME = "llm-tuning-api-keys"
"""Where `kubectl tuning api-key` keeps the records, and what the chart mounts unless it is told otherwise."""
PREFIX = "sk-llmtuning-"
"""Of every key that is made here: scanners of repositories find it by that."""
KEY_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""It is an entry of a Secret, and the value of a label on the TuningJobs that are made with it."""
LOOK_SECONDS = 1.0
"""How often the folder is looked at for changes."""

Role = Literal["full", "read", "chat"]
ROLES: dict[Role, str] = {
    "full": "everything",
    "read": "list and read files, jobs and models; changes nothing and chats with nothing",
    "chat": "chat and completions, and the list of models",
}
COMPLETIONS = ("/v1/chat/completions", "/v1/completions")


class KeyRecord(ApiModel):
    """What is kept of a key."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    role: Role
    expires: AwareDatetime | None = None
    created: AwareDatetime | None = None

    def encode(self) -> str:
        """Return the entry's text."""
        return self.model_dump_json(exclude_none=True)


@dataclass(frozen=True)
class Key:
    """A record by its name."""

    name: str
    record: KeyRecord

    def has_expired(self, now: datetime) -> bool:
        """Return whether its time is over."""
        return self.record.expires is not None and self.record.expires <= now


def new_key() -> str:
    """Make up a key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    """Return what is kept of a key: it is random and long, so a plain hash of it tells nothing."""
    return hashlib.sha256(key.encode()).hexdigest()


def checked_name(name: str) -> str:
    """Return a name that keys may have; raises InputError."""
    if not KEY_NAME.fullmatch(name):
        rule = f"must be of lower-case letters, digits and -, 63 at most, got {name!r}"
        raise InputError(Problem("NAME", rule, "name who or what uses the key, such as alice or ci"))
    return name


def parse_record(name: str, text: str) -> Key:
    """Read one entry; raises InputError that says what is wrong with it, but not what it holds."""
    if not KEY_NAME.fullmatch(name):
        where = f"an entry with a name of {len(name)} characters"  # which may be a key, at the wrong place
        raise InputError(Problem(where, "must have a name of lower-case letters, digits and -, 63 at most"))
    try:
        return Key(name, KeyRecord.model_validate_json(text))
    except ValidationError as error:
        wrong = {str(detail["loc"][0]) if detail["loc"] else "" for detail in error.errors(include_url=False)}
    rules = {
        "sha256": "sha256 must be the 64 lower-case hexadecimal digits of the key's SHA-256",
        "role": f"role must be one of {', '.join(get_args(Role))}",
        "expires": "expires must be a time with its zone, such as 2027-06-30T00:00:00Z",
        "created": "created must be a time with its zone, such as 2027-06-30T00:00:00Z",
    }
    known = [rules[field] for field in rules if field in wrong]
    rule = "; ".join(known) or "must be a JSON object of sha256, role and perhaps expires and created, and no more"
    raise InputError(Problem(f"key {name}", rule, "make it with `kubectl tuning api-key create`"))


def may(role: Role, method: str, path: str) -> bool:
    """Return whether a key of this role may do this."""
    if role == "full":
        return True
    reads = method in ("GET", "HEAD")
    if role == "read":
        return reads
    return (
        path in COMPLETIONS if method == "POST" else reads and (path == "/v1/models" or path.startswith("/v1/models/"))
    )


class KeyRing:
    """The keys of a folder that has a folder for each mounted Secret; what changes there counts within a second."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._looked = -LOOK_SECONDS
        self._seen: tuple[tuple[str, int, int], ...] | None = None
        self._keys: tuple[Key, ...] = ()

    def find(self, text: str) -> Key | None:
        """Return the key that `text` is, in a time that does not depend on how much of one it has right."""
        wanted, found = digest(text), None
        for key in self.present():
            if hmac.compare_digest(wanted, key.record.sha256):
                found = found or key
        return found

    def present(self) -> tuple[Key, ...]:
        """Return the keys of now."""
        now = self._clock()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look()
        return self._keys

    def _look(self) -> None:
        files = sorted(file for file in self._folder.glob("*/*") if not file.name.startswith(".."))
        seen = tuple(mark for file in files if (mark := _mark(file)) is not None)
        if seen == self._seen:
            return
        before = {key.name for key in self._keys}
        self._seen, self._keys = seen, tuple(key for file in files if (key := _read(file)) is not None)
        if (names := {key.name for key in self._keys}) != before:
            log.info("keys: %s", ", ".join(sorted(names)) or "none")


def _mark(file: Path) -> tuple[str, int, int] | None:
    try:
        found = file.stat()
    except OSError:  # the kubelet has just taken it away
        return None
    return str(file), found.st_mtime_ns, found.st_ino


def _read(file: Path) -> Key | None:
    try:
        return parse_record(file.name, file.read_text(encoding="utf-8"))
    except OSError:
        return None
    except (InputError, UnicodeDecodeError) as error:
        said = str(error) if isinstance(error, InputError) else "an entry is not UTF-8"
        log.warning("Secret %s: %s (it is left out)", printable(file.parent.name), printable(said))
        return None


def utc_now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)
