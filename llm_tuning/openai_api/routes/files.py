"""`/v1/files`: uploads, and the result files of jobs, in one list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response
from starlette.requests import ClientDisconnect

from llm_tuning.openai_api.claim_io import on_claim
from llm_tuning.openai_api.context import Context, Served
from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.file_uses import RESULT_NAME, Result, delete_result, results, uses
from llm_tuning.openai_api.files import FileRecord
from llm_tuning.openai_api.names import FILE_ID, MODELS, RESULT_ID, time_of
from llm_tuning.openai_api.paging import page
from llm_tuning.openai_api.run_files import RunFiles
from llm_tuning.openai_api.upload import receive
from llm_tuning.openai_api.wire import Deleted, FileObject, FileQuery, Page

router = APIRouter(prefix="/v1/files")

FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["fine-tune"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer"},
    },
}


@router.post("", openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": FORM}}}})
async def create(request: Request, served: Served) -> FileObject:
    """Upload a file of rows, JSON Lines, for a job."""
    try:
        record = await receive(request.headers, request.stream(), served.files)
    except ClientDisconnect:  # nobody reads the answer
        raise ApiError(400, "The connection ended before the file did.", code="invalid_form") from None
    return record.as_object()


@router.get("")
async def listed(served: Served, query: Annotated[FileQuery, Query()]) -> Page[FileObject]:
    """List files."""
    found: list[FileRecord | Result] = []
    gone: dict[str, tuple[int, str]] = {}
    if query.purpose in (None, "fine-tune"):
        found += await on_claim(served.files.records)
    if query.purpose in (None, "fine-tune-results"):
        jobs = (await served.backend.jobs()).readable
        found += await on_claim(_there, _runs(served), results(jobs))
        gone = {result.id: _place(result) for result in results(jobs, deleted=True)}
    newest_first = query.order == "desc"
    found.sort(key=_place, reverse=newest_first)
    after = query.after or ""
    place = (time_of(after), after) if FILE_ID.fullmatch(after) else gone.get(after)

    def is_behind(item: FileRecord | Result, cursor: str) -> bool:
        assert place is not None
        return _place(item) < place if newest_first else _place(item) > place

    data, has_more = page(
        found,
        after=query.after,
        limit=query.limit,
        id_of=lambda item: item.id,
        is_behind=is_behind if place is not None else None,
    )
    return Page(data=await on_claim(_as_objects, _runs(served), data), has_more=has_more)


@router.get("/{file_id}")
async def retrieve(file_id: str, served: Served) -> FileObject:
    """Describe a file."""
    found = await _find(served, file_id)
    return (await on_claim(_as_objects, _runs(served), [found]))[0]


@router.get("/{file_id}/content", response_class=Response)
async def content(file_id: str, served: Served) -> Response:
    """Return the bytes of a file."""
    found = await _find(served, file_id)
    if isinstance(found, FileRecord):
        path = served.files.content(found)
        return FileResponse(path, media_type="application/octet-stream", filename=found.filename)
    figures = await on_claim(_runs(served).metrics_csv, found.model_id)
    if figures is None:
        raise _no_file(file_id)
    head = {"content-disposition": f'attachment; filename="{RESULT_NAME}"'}
    return Response(figures, media_type="text/csv", headers=head)


@router.delete("/{file_id}")
async def delete(file_id: str, served: Served) -> Deleted:
    """Remove an uploaded file, or take a result file out of the list: what it is made from stays with the adapter."""
    found = await _find(served, file_id)
    if isinstance(found, Result):
        await delete_result(served, found)
        return Deleted(id=file_id, object="file")
    if (why := uses(await served.backend.jobs()).get(file_id)) is not None:
        raise ApiError(400, f"The file '{file_id}' {why}.", code="file_in_use", param="id")
    if not await on_claim(served.files.delete, file_id):
        raise _no_file(file_id)
    return Deleted(id=file_id, object="file")


def _runs(served: Context) -> RunFiles:
    return RunFiles(served.backend.root / MODELS)


def _place(item: FileRecord | Result) -> tuple[int, str]:
    return item.created_at, item.id


def _there(runs: RunFiles, found: Sequence[Result]) -> list[Result]:
    return [result for result in found if runs.has_metrics(result.model_id)]


def _as_objects(runs: RunFiles, items: Sequence[FileRecord | Result]) -> list[FileObject]:
    return [
        item.as_object()
        if isinstance(item, FileRecord)
        else FileObject(
            id=item.id,
            bytes=runs.csv_bytes(item.model_id) or 0,
            created_at=item.created_at,
            filename=RESULT_NAME,
            purpose="fine-tune-results",
        )
        for item in items
    ]


async def _find(served: Context, file_id: str) -> FileRecord | Result:
    """Return the file of an id; raises ApiError where there is none."""
    if RESULT_ID.fullmatch(file_id):
        wanted = [result for result in results((await served.backend.jobs()).readable) if result.id == file_id]
        there = await on_claim(_there, _runs(served), wanted)
        if there:
            return there[0]
    record = await on_claim(served.files.find, file_id)
    if record is None:
        raise _no_file(file_id)
    return record


def _no_file(file_id: str) -> ApiError:
    return ApiError(404, f"No such File object: {file_id[:100]!r}.", code="file_not_found", param="id")
