"""The body of `POST /v1/files`, multipart/form-data, read as a stream into a draft of the store.

A megabyte at a time is in memory, whatever the file's size; form parsers of web frameworks write the whole file to
/tmp first. The order of the parts does not matter.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from llm_tuning.openai_api.claim_io import on_claim
from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.files import Draft, FileRecord, FileStore

BLOCK_BYTES = 2**20
"""What is written at a time."""
FIELD_BYTES, NAME_CHARACTERS = 1024, 255
OVERHEAD_BYTES = 2**16
"""What a body has at most besides its file's bytes."""
SHORTEST_SECONDS, LONGEST_SECONDS = 3600, 2_592_000
"""Of `expires_after`, as OpenAI has it: an hour to 30 days."""

_NUMBER = re.compile(r"[0-9]{1,15}")
FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
_ESCAPED = {"%22": '"', "%0D": "", "%0A": ""}
"""What browsers and SDKs write in a file's name; line breaks are of no use there."""


@dataclass
class _Part:
    """One part of the body: its headers, then its content."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    is_file: bool = False
    value: bytearray = field(default_factory=bytearray)


class _Form:
    """What the parser calls: collects fields, and the bytes of the file until they are taken."""

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.pending = bytearray()
        self.is_whole = False
        self._part = _Part()
        self._header = (bytearray(), bytearray())
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_content,
                "on_part_data": self._content,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Read on; raises ApiError for what is no form of this endpoint."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _bad_form(f"the form cannot be read ({error})") from None

    def take(self) -> bytes:
        """Return the bytes of the file that came since the last call."""
        taken = bytes(self.pending)
        self.pending.clear()
        return taken

    def _begin_part(self) -> None:
        self._part = _Part()

    def _end_header(self) -> None:
        name, value = (bytes(part) for part in self._header)
        self._part.headers[name.lower()] = value
        for part in self._header:
            part.clear()

    def _begin_content(self) -> None:
        kind, options = parse_options_header(self._part.headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise _bad_form("a part has no `Content-Disposition: form-data` with a name")
        name = self._part.name = options[b"name"].decode("utf-8", "replace")
        if name not in FIELDS:
            message = f"Unknown parameter: '{name[:100]}'. This endpoint takes {', '.join(FIELDS)}."
            raise ApiError(400, message, code="unknown_parameter", param=name[:100])
        if name in self.fields or (name == "file" and self.filename is not None):
            raise ApiError(400, f"'{name}' is there twice; give it once.", code="invalid_value", param=name)
        self._part.is_file = name == "file"
        if self._part.is_file:
            self.filename = plain_name(options.get(b"filename", b"").decode("utf-8", "replace"))

    def _content(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self.pending += data[start:end]
            return
        self._part.value += data[start:end]
        if len(self._part.value) > FIELD_BYTES:
            name = self._part.name
            raise ApiError(400, f"'{name}' has more than {FIELD_BYTES} bytes.", code="invalid_value", param=name)

    def _end_part(self) -> None:
        if not self._part.is_file:
            self.fields[self._part.name] = self._part.value.decode("utf-8", "replace")

    def _end(self) -> None:
        self.is_whole = True


async def receive(headers: Mapping[str, str], body: AsyncIterator[bytes], store: FileStore) -> FileRecord:
    """Read an upload to its end and publish it; raises ApiError, and leaves nothing behind then."""
    form = _Form(_boundary(headers.get("content-type", "")))
    draft = await on_claim(store.draft)
    try:
        await _check_announced(headers.get("content-length", ""), draft)
        async for chunk in body:
            form.feed(chunk)
            if len(form.pending) >= BLOCK_BYTES:
                await on_claim(draft.write, form.take())
        await on_claim(draft.write, form.take())
        if not form.is_whole:
            raise _bad_form("the body ends before the form does")
        if form.filename is None:
            raise ApiError(400, "Missing required parameter: 'file'.", code="missing_required_parameter", param="file")
        _check_purpose(form.fields.get("purpose"))
        seconds = _expires_after(form.fields)
        return await on_claim(draft.publish, filename=form.filename, expires_after=seconds)
    finally:
        await on_claim(draft.close)  # the claim may be slow, and others wait for the event loop


def plain_name(name: str) -> str:
    """Return a file's name without folders, line breaks and what no terminal shows; `file` where nothing is left."""
    for escaped, character in _ESCAPED.items():
        name = name.replace(escaped, character)
    name = name.replace("\\", "/").rpartition("/")[2]
    name = "".join(character for character in name if character.isprintable())[:NAME_CHARACTERS]
    return name if name.strip(". ") else "file"


async def _check_announced(length: str, draft: Draft) -> None:
    """Refuse what cannot fit before its bytes are sent."""
    if _NUMBER.fullmatch(length):
        await on_claim(draft.expect, max(0, int(length) - OVERHEAD_BYTES))


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise _bad_form(f"the Content-Type must be multipart/form-data with a boundary, got {content_type[:100]!r}")
    return options[b"boundary"]


def _check_purpose(purpose: str | None) -> None:
    if purpose is None:
        raise ApiError(
            400, "Missing required parameter: 'purpose'.", code="missing_required_parameter", param="purpose"
        )
    if purpose != "fine-tune":
        message = f"purpose must be 'fine-tune', got {purpose[:100]!r}: this server keeps files for fine-tuning alone."
        raise ApiError(400, message, code="invalid_value", param="purpose")


def _expires_after(fields: Mapping[str, str]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        message = f"expires_after.anchor must be 'created_at', got {anchor!r}."
        raise ApiError(400, message, code="invalid_value", param="expires_after.anchor")
    if not _NUMBER.fullmatch(seconds or "") or not SHORTEST_SECONDS <= int(seconds or 0) <= LONGEST_SECONDS:
        message = (
            f"expires_after.seconds must be a whole number from {SHORTEST_SECONDS} (an hour) to {LONGEST_SECONDS} "
            f"(30 days), got {seconds!r}."
        )
        raise ApiError(400, message, code="invalid_value", param="expires_after.seconds")
    return int(seconds or 0)


def _bad_form(what: str) -> ApiError:
    return ApiError(400, f"The upload cannot be read: {what}.", code="invalid_form")
