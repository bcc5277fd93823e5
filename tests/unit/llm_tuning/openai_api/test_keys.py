"""Keys: what a folder of mounted Secrets holds, what a role may, and what no message repeats."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llm_tuning.errors import InputError
from llm_tuning.openai_api.keys import LOOK_SECONDS, KeyRecord, KeyRing, Role, digest, may, new_key, parse_record

NOW = datetime(2026, 12, 1, 12, 0, 0, tzinfo=UTC)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Mounted:
    """A Secret as the kubelet mounts it: entries are links by `..data`, which is changed in one go."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._versions = folder, 0
        folder.mkdir(parents=True)

    def hold(self, **entries: str | bytes) -> None:
        self._versions += 1
        made = self.folder / f"..2026_{self._versions}"
        made.mkdir()
        for name, text in entries.items():
            (made / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        (self.folder / "..new").symlink_to(made.name)
        os.replace(self.folder / "..new", self.folder / "..data")
        for name in entries:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        for link in self.folder.iterdir():
            if not link.name.startswith("..") and link.name not in entries:
                link.unlink()


def record(key: str, role: Role = "full") -> str:
    return KeyRecord(sha256=digest(key), role=role).encode()


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path / "keys" / "llm-tuning-api-keys")


def test_keys_of_all_secrets_are_found_by_their_text_alone(mounted: Mounted) -> None:
    keys = [new_key() for _ in range(3)]
    mounted.hold(alice=record(keys[0]), bob=record(keys[1], "read"))
    Mounted(mounted.folder.parent / "more").hold(ci=record(keys[2], "chat"))
    (mounted.folder.parent / "empty").mkdir()
    ring = KeyRing(mounted.folder.parent)
    found = [ring.find(key) for key in keys]
    assert [(key.name, key.record.role) for key in found if key] == [("alice", "full"), ("bob", "read"), ("ci", "chat")]
    for wrong in ("", keys[0][:-1], keys[0] + "x", keys[0].upper(), digest(keys[0]), "alice", "ключ"):
        assert ring.find(wrong) is None


def test_a_folder_that_is_not_there_has_no_keys(tmp_path: Path) -> None:
    assert KeyRing(tmp_path / "none").present() == ()


def test_what_the_kubelet_brings_counts_within_a_second_and_without_a_restart(mounted: Mounted) -> None:
    clock, old, new = Clock(), new_key(), new_key()
    ring = KeyRing(mounted.folder.parent, clock=clock)
    assert ring.find(old) is None
    mounted.hold(alice=record(old))
    assert ring.find(old) is None, "not looked at again before a second is over"
    clock.now += LOOK_SECONDS
    assert ring.find(old) is not None
    mounted.hold(alice=record(old), alice2=record(new))
    clock.now += LOOK_SECONDS
    assert ring.find(old) is not None
    assert ring.find(new) is not None
    mounted.hold(alice2=record(new))
    clock.now += LOOK_SECONDS
    assert ring.find(old) is None
    assert ring.find(new) is not None
    mounted.hold(alice2=record(new, "read"))
    clock.now += LOOK_SECONDS
    assert (found := ring.find(new)) is not None
    assert found.record.role == "read"


def test_a_key_ends_at_its_time() -> None:
    key = parse_record("ci", json.dumps({"sha256": "0" * 64, "role": "full", "expires": "2026-12-01T13:00:00+01:00"}))
    assert not key.has_expired(NOW - timedelta(seconds=1))
    assert key.has_expired(NOW)
    assert not parse_record("ci", json.dumps({"sha256": "0" * 64, "role": "full"})).has_expired(NOW)


GOOD = {"sha256": "0" * 64, "role": "full"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sk-llmtuning-secret", "must be a JSON object of sha256, role"),
        ("[]", "must be a JSON object"),
        ('{"sha256": "sk-llmtuning-secret", "role": "full"}', "sha256 must be the 64 lower-case hexadecimal digits"),
        (json.dumps({**GOOD, "role": "sk-llmtuning-secret"}), "role must be one of full, read, chat"),
        (json.dumps({"sha256": "0" * 64}), "role must be one of"),
        (json.dumps({**GOOD, "expires": "2027-06-30T00:00:00"}), "expires must be a time with its zone"),
        (json.dumps({**GOOD, "expires": 1830000000}), "expires must be a time with its zone"),
        (json.dumps({**GOOD, "key": "sk-llmtuning-secret"}), "and no more"),
    ],
)
def test_a_wrong_record_is_said_without_what_it_holds_and_the_others_count(
    mounted: Mounted, caplog: pytest.LogCaptureFixture, text: str, says: str
) -> None:
    with pytest.raises(InputError, match="key wrong: ") as raised:
        parse_record("wrong", text)
    assert says in str(raised.value)
    key = new_key()
    mounted.hold(wrong=text, binary=b"\xff\xfe", alice=record(key), **{"sk-llmtuning-Secret": record(key)})
    with caplog.at_level(logging.INFO):
        ring = KeyRing(mounted.folder.parent)
        assert [found.name for found in ring.present()] == ["alice"]
    assert says in caplog.text
    assert "an entry with a name of 19 characters" in caplog.text
    for secret in ("sk-llmtuning-secret", "sk-llmtuning-Secret", key, digest(key)):
        assert secret not in caplog.text + str(raised.value)


def test_keys_are_long_random_and_known_to_scanners() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("sk-llmtuning-") and len(key) == 13 + 43 for key in keys)


JOBS, CHAT = "/v1/fine_tuning/jobs", "/v1/chat/completions"


@pytest.mark.parametrize(
    ("method", "path", "roles"),
    [
        ("GET", "/v1/files", {"full", "read"}),
        ("GET", "/v1/files/file-1/content", {"full", "read"}),
        ("POST", "/v1/files", {"full"}),
        ("DELETE", "/v1/files/file-1", {"full"}),
        ("GET", JOBS, {"full", "read"}),
        ("GET", f"{JOBS}/ftjob-1/events", {"full", "read"}),
        ("POST", JOBS, {"full"}),
        ("POST", f"{JOBS}/ftjob-1/cancel", {"full"}),
        ("GET", "/v1/models", {"full", "read", "chat"}),
        ("HEAD", "/v1/models", {"full", "read", "chat"}),
        ("GET", "/v1/models/ft:a:b:c:d", {"full", "read", "chat"}),
        ("DELETE", "/v1/models/ft:a:b:c:d", {"full"}),
        ("POST", CHAT, {"full", "chat"}),
        ("POST", "/v1/completions", {"full", "chat"}),
        ("GET", "/v1/modelsx", {"full", "read"}),
        ("POST", f"{CHAT}/x", {"full"}),
        ("PATCH", "/v1/models", {"full"}),
    ],
)
def test_what_each_role_may(method: str, path: str, roles: set[str]) -> None:
    every: tuple[Role, ...] = ("full", "read", "chat")
    assert {role for role in every if may(role, method, path)} == roles
