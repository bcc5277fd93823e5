"""Each fault of a hub, with the reason it becomes, and what of the bytes comes again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from llm_tuning.sources.fetch import Fetched, fetch
from llm_tuning.sources.hub import Hub
from llm_tuning.sources.pace import Transfer
from llm_tuning.sources.patience import Limits
from llm_tuning.sources.reasons import Passing, SourceBusy, SourceRefused, Terminal
from llm_tuning.sources.store import unfinished, verify
from llm_tuning.sources.uri import Source, parse_uri
from tests.support.hub_server import Answer, HubServer, hub_server, tiny_model

WEIGHTS = 300_000
MODEL = parse_uri("hf://o/n", "model")
QUICK = Limits(tries=3, backoff_seconds=0.01, beat_seconds=0.05, stale_seconds=0.5, connections=1)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        server.model("o/n", tiny_model(WEIGHTS))
        yield server


def get(hub: HubServer, root: Path, source: Source = MODEL, *, token: str | None = None, commit: str = "") -> Fetched:
    origin = Hub(hub.url, token, stall_seconds=0.3)
    return fetch(source, root, origin=origin, commit=commit, limits=QUICK)


def refused(hub: HubServer, root: Path, source: Source = MODEL, *, token: str | None = None) -> SourceRefused:
    with pytest.raises(SourceRefused) as caught:
        get(hub, root, source, token=token)
    assert caught.value.problems[0].fix
    assert caught.value.problems[0].field == source.kind.field
    return caught.value


def busy(hub: HubServer, root: Path) -> SourceBusy:
    with pytest.raises(SourceBusy) as caught:
        get(hub, root)
    return caught.value


def test_a_second_fetch_asks_for_the_commit_alone_and_a_pinned_one_for_nothing(hub: HubServer, tmp_path: Path) -> None:
    first = get(hub, tmp_path)
    assert first.moved == hub.bytes_sent == first.stored.record.size
    assert sorted(path.name for path in first.path.iterdir()) == [
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "source.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert verify(first.stored) == []
    assert not unfinished(tmp_path)
    hub.requests.clear()
    assert get(hub, tmp_path).moved == 0
    assert [request.path for request in hub.requests] == ["/api/models/o/n/revision/main"]
    hub.requests.clear()
    for again in (
        get(hub, tmp_path, commit=first.commit),
        get(hub, tmp_path, parse_uri(f"hf://o/n@{first.commit}", "model")),
    ):
        assert not again.asked
        assert again.path == first.path
    assert not hub.requests


def test_a_moved_branch_is_a_new_source_beside_the_old_one(hub: HubServer, tmp_path: Path) -> None:
    first = get(hub, tmp_path)
    hub.model("o/n", tiny_model(WEIGHTS, hidden_size=8))
    second = get(hub, tmp_path)
    assert second.commit != first.commit
    assert get(hub, tmp_path, commit=first.commit).path == first.path
    assert verify(first.stored) == verify(second.stored) == []


def test_a_branch_that_moves_during_a_fetch_changes_nothing_of_it(hub: HubServer, tmp_path: Path) -> None:
    before = hub.repositories["models/o/n"].branches["main"]

    def move(request: object) -> None:
        if "/resolve/" in getattr(request, "path", ""):
            hub.model("o/n", tiny_model(WEIGHTS + 1, hidden_size=16))

    hub.faults.append(move)
    found = get(hub, tmp_path)
    assert found.commit == before
    assert (found.path / "model.safetensors").stat().st_size == WEIGHTS


@pytest.mark.parametrize(
    ("change", "token", "meant"),
    [
        ({"private_to": "hf_right"}, None, (Terminal.ACCESS, "does not exist, or is private (HTTP 401)")),
        ({"private_to": "hf_right"}, "hf_wrong", (Terminal.NOT_FOUND, "is not on 127.0.0.1")),
        ({"gated": True}, "hf_right", (Terminal.ACCESS, "/o/n")),
    ],
    ids=["private, no token", "private, another token", "gated"],
)
def test_what_is_not_open_says_what_to_do(
    hub: HubServer, tmp_path: Path, change: dict[str, object], token: str | None, meant: tuple[Terminal, str]
) -> None:
    reason, said = meant
    vars(hub.repositories["models/o/n"]).update(change)
    error = refused(hub, tmp_path, token=token)
    assert error.reason is reason
    assert said in str(error)
    assert "hf_" not in str(error)


def test_a_token_opens_a_private_repository(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["models/o/n"].private_to = "hf_right"
    assert get(hub, tmp_path, token="hf_right").moved


def test_a_missing_repository_revision_and_the_other_kind_are_told_apart(hub: HubServer, tmp_path: Path) -> None:
    hub.dataset("o/rows", {"rows.jsonl": b"{}\n"})
    gone = refused(hub, tmp_path, parse_uri("hf://o/gone", "model"), token="t")
    assert gone.reason is Terminal.NOT_FOUND
    other = refused(hub, tmp_path, parse_uri("hf://o/rows", "model"), token="t")
    assert other.reason is Terminal.NOT_FOUND
    assert "is a data set, not a model" in str(other)
    model = refused(hub, tmp_path, parse_uri("hf://datasets/o/n", "dataset"), token="t")
    assert "is a model, not a data set" in str(model)
    revision = refused(hub, tmp_path, parse_uri("hf://o/n@v9", "model"))
    assert revision.reason is Terminal.REVISION
    assert "has no revision v9" in str(revision)


@pytest.mark.parametrize("form", ["seconds", "date", "RateLimit"])
def test_a_server_that_says_how_long_is_obeyed(hub: HubServer, tmp_path: Path, form: str) -> None:
    asked = {
        "seconds": {"Retry-After": "1"},
        "date": {"Retry-After": formatdate(time.time() + 2, usegmt=True)},
        "RateLimit": {"RateLimit": '"api";r=0;t=1'},
    }[form]
    hub.once(Answer(status=429, headers=asked))
    began = time.monotonic()
    assert get(hub, tmp_path).moved
    assert time.monotonic() - began >= 0.9


def test_one_that_asks_for_more_than_an_hour_is_left_until_a_later_start(hub: HubServer, tmp_path: Path) -> None:
    hub.once(Answer(status=429, headers={"Retry-After": "4000"}), of="/api/")
    error = busy(hub, tmp_path)
    assert (error.passing, error.wait_seconds) == (Passing.RATE, 4000)


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_server_that_fails_now_and_then_delays_and_one_that_always_does_ends(
    hub: HubServer, tmp_path: Path, status: int
) -> None:
    hub.once(Answer(status=status), times=2)
    hub.once(Answer(status=status), of="/api/", times=2)
    assert get(hub, tmp_path).moved == hub.bytes_sent
    hub.model("o/n", tiny_model(WEIGHTS, hidden_size=8))
    hub.once(Answer(status=status), of="/api/", times=9)
    assert busy(hub, tmp_path).passing is Passing.UNREACHABLE


def test_a_connection_that_is_cut_is_continued_where_it_was(hub: HubServer, tmp_path: Path) -> None:
    for _ in range(4):
        hub.once(Answer(stop_after=70_000), of="model.safetensors")
    found = get(hub, tmp_path)
    assert found.moved == hub.bytes_sent == found.stored.record.size
    assert [r.start for r in hub.file_requests() if "model.safetensors" in r.path] == [
        0,
        70_000,
        140_000,
        210_000,
        280_000,
    ]


def test_a_silent_connection_is_ended_and_continued(hub: HubServer, tmp_path: Path) -> None:
    hub.once(Answer(stop_after=70_000, stall_seconds=3), of="model.safetensors")
    found = get(hub, tmp_path)
    assert found.moved == found.stored.record.size
    hub.model("o/n", tiny_model(WEIGHTS, hidden_size=8))
    hub.once(Answer(stop_after=0, stall_seconds=3), of="model.safetensors", times=9)
    assert busy(hub, tmp_path).passing is Passing.STALLED


def test_a_later_start_fetches_no_byte_that_is_there(hub: HubServer, tmp_path: Path) -> None:
    hub.once(Answer(stop_after=100_000), of="model.safetensors")
    hub.once(Answer(status=500), of="model.safetensors", times=2)
    assert busy(hub, tmp_path).passing is Passing.UNREACHABLE
    assert unfinished(tmp_path)
    found = get(hub, tmp_path)
    assert hub.bytes_sent == found.stored.record.size
    assert not unfinished(tmp_path)


def test_a_server_without_ranges_sends_the_file_again_and_it_is_whole(hub: HubServer, tmp_path: Path) -> None:
    hub.once(Answer(stop_after=70_000), of="model.safetensors")
    hub.once(Answer(ignore_range=True), of="model.safetensors")
    assert verify(get(hub, tmp_path).stored) == []


def test_bytes_that_are_not_those_listed_are_never_published(hub: HubServer, tmp_path: Path) -> None:
    hub.once(Answer(corrupt=True), of="model.safetensors")
    error = refused(hub, tmp_path)
    assert error.reason is Terminal.HASH
    assert "model.safetensors" in str(error)
    assert not (tmp_path / "hf").exists()
    assert verify(get(hub, tmp_path).stored) == []


def test_a_small_file_is_held_to_the_hash_that_git_has(hub: HubServer, tmp_path: Path) -> None:
    hub.once(Answer(corrupt=True), of="tokenizer.json")
    assert refused(hub, tmp_path).reason is Terminal.HASH


def test_what_a_disk_has_spoiled_between_two_starts_is_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    hub.once(Answer(stop_after=100_000), of="model.safetensors")
    hub.once(Answer(status=500), of="model.safetensors", times=2)
    busy(hub, tmp_path)
    (part,) = tmp_path.glob(".work/*/parts/model.safetensors")
    part.write_bytes(b"\0" * 50_000)
    (whole,) = tmp_path.glob(".work/*/files/config.json")
    whole.write_bytes(b"x" * whole.stat().st_size)
    assert verify(get(hub, tmp_path).stored) == []


def test_another_host_gets_the_bytes_to_send_but_never_the_token(hub: HubServer, tmp_path: Path) -> None:
    with hub_server() as store:
        store.repositories = hub.repositories
        elsewhere = store.url.replace("127.0.0.1", "localhost")
        hub.faults.append(lambda request: Answer(redirect=elsewhere) if "/resolve/" in request.path else None)
        assert verify(get(hub, tmp_path, token="hf_right").stored) == []
        assert {request.token for request in hub.requests} == {"hf_right"}
        assert {request.token for request in store.requests} == {None}


def test_a_renamed_repository_is_followed_with_the_token(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["models/new/n"] = hub.repositories.pop("models/o/n")
    hub.repositories["models/new/n"].private_to = "hf_right"
    hub.faults.append(
        lambda request: Answer(redirect_to=request.path.replace("o/n", "new/n")) if "o/n" in request.path else None
    )
    assert get(hub, tmp_path, token="hf_right").moved


def test_nothing_that_is_run_is_ever_fetched_and_a_refusal_leaves_nothing(hub: HubServer, tmp_path: Path) -> None:
    for name, files in {
        "code": tiny_model(10, auto_map={"AutoModel": "own.Model"}),
        "adapter": {"adapter_config.json": b'{"base_model_name_or_path": "o/n"}', "adapter_model.safetensors": b"x"},
        "pickle": {"config.json": b"{}", "pytorch_model.bin": b"x"},
    }.items():
        hub.model(f"o/{name}", files)
        assert refused(hub, tmp_path, parse_uri(f"hf://o/{name}", "model")).reason is Terminal.FORMAT
    assert not [request for request in hub.file_requests() if not request.path.endswith(".json")]
    assert not unfinished(tmp_path)


def test_sizes_are_asked_first_and_what_does_not_fit_is_refused_with_both_numbers(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 200_000
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free}))
    error = refused(hub, tmp_path)
    assert error.reason is Terminal.ROOM
    assert f"{free:,} bytes" in str(error)
    assert "still needs 4,494" in str(error)
    assert not hub.file_requests()


def test_a_watcher_sees_bytes_speed_and_time(hub: HubServer, tmp_path: Path) -> None:
    hub.once(Answer(chunk_pause_seconds=0.25), of="model.safetensors")
    seen: list[Transfer] = []
    fetch(MODEL, tmp_path, origin=Hub(hub.url), watch=seen.append, limits=QUICK)
    assert seen[-1].done_bytes == seen[-1].total_bytes > WEIGHTS
    assert [now.done_bytes for now in seen] == sorted(now.done_bytes for now in seen)
    assert any(now.bytes_per_second and now.remaining_seconds for now in seen)


def test_an_unreachable_hub_is_passing(tmp_path: Path) -> None:
    with pytest.raises(SourceBusy, match="cannot be reached") as caught:
        fetch(MODEL, tmp_path, origin=Hub("http://127.0.0.1:9"), limits=QUICK)
    assert caught.value.passing is Passing.UNREACHABLE
