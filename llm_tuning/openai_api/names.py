"""Ids and names that the API gives, and where they lead. Pure, but for the random ones."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from pathlib import PurePosixPath

from llm_tuning.api.kube import GROUP
from llm_tuning.openai_api.errors import invalid

UPLOADS = PurePosixPath("datasets/uploads")
"""On the claim; the server writes nowhere else."""
MODELS = PurePosixPath("models")
DATA_FILE = "data.jsonl"

OF_API = f"openai.{GROUP}"
LABEL_API = f"{OF_API}/api"
"""`true` on what this API has made."""
LABEL_REQUEST = f"{OF_API}/request"
"""Hash of the request that made a TuningJob: a client's retry is known by it."""
LABEL_KEY = f"{OF_API}/key"
"""Name of the API key that made it."""
ANNOTATION_REQUEST = f"{OF_API}/request"
"""JSON of what Kubernetes has no field for; see `job_request.Kept`."""
ANNOTATION_CANCELLED = f"{OF_API}/cancelled"
"""When the job was cancelled (RFC 3339)."""
ANNOTATION_MODEL_DELETED = f"{OF_API}/model-deleted"
"""When its model was deleted: it gets no route again."""
ANNOTATION_RESULT_DELETED = f"{OF_API}/result-deleted"
"""When the file with its figures was deleted; what the run has written stays with its adapter."""

FILE_ID = re.compile(r"file-[0-9a-v]{24}")
RESULT_ID = re.compile(r"file-[0-9a-f]{32}")
SUFFIX = re.compile(r"[A-Za-z0-9_-]{1,64}")
NAME_CHARACTERS, ORGANIZATION_CHARACTERS, BASE_AND_ORGANIZATION = 46, 24, 50
"""A model's name is a route's, of 128 characters: `ft:`, two names of 50 together, a suffix of 64, and 8 of an id."""

_DIGITS = "0123456789abcdefghijklmnopqrstuv"
"""In the order of ASCII: texts of one length sort as their numbers do."""


def _base32(number: int, characters: int) -> str:
    text = ""
    for _ in range(characters):
        number, digit = divmod(number, 32)
        text = _DIGITS[digit] + text
    return text


def new_file_id() -> str:
    """Make up the id of a file; ids of files sort by the time at which they were made."""
    stamp = _base32(time.time_ns() // 1_000_000, 9)
    return f"file-{stamp}{_base32(secrets.randbits(75), 15)}"


def time_of(file_id: str) -> int:
    """Return when an uploaded file was made, in seconds since 1970."""
    return int(file_id[5:14], 32) // 1000


def upload_path(file_id: str) -> str:
    """Return where the rows of an uploaded file lie, relative to the claim."""
    return str(UPLOADS / file_id / DATA_FILE)


def file_id_of(path: str | None) -> str | None:
    """Return the id of the uploaded file that a data set's path leads to; None where it is no upload."""
    parts = PurePosixPath(path or "").parts
    is_upload = len(parts) == 4 and PurePosixPath(*parts[:2]) == UPLOADS and parts[3] == DATA_FILE
    return parts[2] if is_upload and FILE_ID.fullmatch(parts[2]) else None


def result_id(model_id: str) -> str:
    """Return the id of the file with the figures of a run."""
    return f"file-{hashlib.sha256(model_id.encode()).hexdigest()[:32]}"


def new_job_id(key: str, idempotency_key: str | None) -> str:
    """Return the id of a job: the same again for the same Idempotency-Key of an API key, else a random one."""
    if idempotency_key is None:
        return f"ftjob-{_base32(secrets.randbits(100), 20)}"
    digest = hashlib.sha256(f"{key}\n{idempotency_key}".encode()).digest()
    return f"ftjob-{_base32(int.from_bytes(digest), 20)}"


def check_suffix(suffix: str | None) -> str:
    """Return a suffix as it stands in a model's name, empty without one; raises ApiError."""
    if not suffix:
        return ""
    if not SUFFIX.fullmatch(suffix):
        raise invalid("suffix", f"must be 1 to 64 letters, digits, - and _, got {suffix[:80]!r}")
    return suffix.lower()


def fine_tuned_model(base: str, organization: str, suffix: str, job_id: str) -> str:
    """Form the name of the model that a job makes: `ft:gpt-4.1-mini:acme:support:7p4lurel`."""
    digest = hashlib.sha256(job_id.encode()).digest()
    return f"ft:{base}:{organization}:{suffix}:{_base32(int.from_bytes(digest), 8)}"
