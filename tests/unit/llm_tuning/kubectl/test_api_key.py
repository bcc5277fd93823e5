"""`kubectl tuning api-key`: what it keeps of a key, what it says, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llm_tuning.kubectl import api_key
from llm_tuning.kubectl.main import main
from llm_tuning.openai_api.keys import PREFIX, SECRET_NAME, digest
from tests.support.fake_api_server import FakeApiServer

Call = Callable[..., Awaitable[tuple[int, str, str]]]
NOW = datetime(2026, 12, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setattr(api_key, "utc_now", lambda: NOW)

    async def run(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.wait_for(asyncio.to_thread(main, ("api-key", *arguments)), 20)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def records(server: FakeApiServer, secret: str = SECRET_NAME) -> dict[str, Any]:
    data = server.secrets.kept[secret]["data"]
    return {name: json.loads(base64.b64decode(text)) for name, text in data.items()}


def entry(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def test_a_key_is_printed_alone_and_only_its_hash_is_kept(server: FakeApiServer, call: Call) -> None:
    code, out, err = await call("create", "alice", "--role", "read", "--expires", "90d")
    assert code == 0
    key = out.removesuffix("\n")
    assert key.startswith(PREFIX)
    assert len(key) > len(PREFIX) + 40
    assert (
        "Key alice (read, until 2027-03-01T12:00:00+00:00) is in the Secret llm-tuning-api-keys of namespace team"
        in err
    )
    assert key not in err
    assert records(server) == {
        "alice": {
            "sha256": digest(key),
            "role": "read",
            "expires": "2027-03-01T12:00:00Z",
            "created": "2026-12-01T12:00:00Z",
        }
    }
    assert key not in json.dumps(server.secrets.kept)
    another = (await call("create", "bob"))[1].strip()
    assert another != key
    assert records(server)["bob"]["role"] == "full"
    assert "expires" not in records(server)["bob"]
    assert set(records(server)) == {"alice", "bob"}


async def test_a_name_that_has_a_key_is_refused(server: FakeApiServer, call: Call) -> None:
    await call("create", "alice")
    before = records(server)
    code, out, err = await call("create", "alice")
    assert (code, out) == (64, "")
    assert "has a key alice already; take another name, or revoke it first" in err
    assert records(server) == before


async def test_keys_are_listed_without_a_hash(server: FakeApiServer, call: Call) -> None:
    assert (await call("list"))[2] == "There is no key in the Secret llm-tuning-api-keys of namespace team.\n"
    await call("create", "alice", "--role", "chat", "--expires", "2027-06-30")
    await call("create", "bob")
    past = json.dumps({"sha256": "0" * 64, "role": "full", "expires": (NOW - timedelta(days=1)).isoformat()})
    data = server.secrets.kept[SECRET_NAME]["data"]
    data |= {"old": entry(past), "wrong": entry("sk-a-key-at-the-wrong-place"), "binary": "//8="}
    code, out, _ = await call("list")
    assert code == 0
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()[1:] if line.strip()}
    assert lines["alice"].split() == ["chat", "2026-12-01", "12:00", "2027-06-30", "00:00"]
    assert lines["bob"].split() == ["full", "2026-12-01", "12:00", "never"]
    assert lines["old"].endswith("(expired)")
    assert "not used: must be a JSON object of sha256, role" in lines["wrong"]
    assert "not used: is not UTF-8" in lines["binary"]
    assert "sk-" not in out
    for record in records_of_people(server):
        assert record["sha256"] not in out


def records_of_people(server: FakeApiServer) -> list[dict[str, Any]]:
    data = server.secrets.kept[SECRET_NAME]["data"]
    return [json.loads(base64.b64decode(data[name])) for name in ("alice", "bob", "old")]


async def test_a_revoked_key_is_gone_and_the_others_stay(server: FakeApiServer, call: Call) -> None:
    await call("create", "alice")
    await call("create", "bob")
    code, out, err = await call("revoke", "alice")
    assert (code, out) == (0, "")
    assert "Key alice is revoked. The API's pods know within about a minute." in err
    assert set(records(server)) == {"bob"}
    code, _, err = await call("revoke", "alice")
    assert code == 1
    assert "there is no key alice in the Secret llm-tuning-api-keys of namespace team" in err


async def test_another_secret_and_the_namespace_come_after_the_action(server: FakeApiServer, call: Call) -> None:
    assert (await call("create", "ci", "--secret", "team-keys", "-n", "team"))[0] == 0
    assert set(records(server, "team-keys")) == {"ci"}
    assert "ci" in (await call("list", "--secret", "team-keys"))[1]
    assert SECRET_NAME not in server.secrets.kept


async def test_two_who_create_at_once_both_have_a_key(server: FakeApiServer, call: Call) -> None:
    """The one makes the Secret while the other means to, and then changes it between its read and its write."""
    record = entry(json.dumps({"sha256": "0" * 64, "role": "full"}))
    server.secrets.others.append(lambda: server.secrets.put(SECRET_NAME, {"first": record}))
    server.secrets.others.append(lambda: server.secrets.put(SECRET_NAME, {"first": record, "second": record}))
    code, _, err = await call("create", "alice")
    assert (code, set(records(server))) == (0, {"first", "second", "alice"}), err


async def test_a_name_that_somebody_takes_meanwhile_is_not_overwritten(server: FakeApiServer, call: Call) -> None:
    taken = {"alice": entry(json.dumps({"sha256": "0" * 64, "role": "full"}))}
    server.secrets.others.append(lambda: server.secrets.put(SECRET_NAME, taken))
    code, out, err = await call("create", "alice")
    assert (code, out) == (64, "")
    assert "has a key alice already" in err
    assert server.secrets.kept[SECRET_NAME]["data"] == taken


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("create", "Alice"), "NAME: must be of lower-case letters, digits and -, 63 at most, got 'Alice'"),
        (("create", "a" * 64), "63 at most"),
        (("create", "a_b"), "lower-case letters"),
        (("create", "alice", "--expires", "soon"), "--expires: is no time: 'soon'; write a time from now, such as 12h"),
        (("create", "alice", "--expires", "0d"), "--expires: is no time"),
        (("create", "alice", "--expires", "2026-11-30"), "--expires: is over already: 2026-11-30"),
        (("revoke", "a/b"), "NAME"),
    ],
)
async def test_what_is_wrong_is_refused_before_a_write(
    server: FakeApiServer, call: Call, arguments: tuple[str, ...], says: str
) -> None:
    code, out, err = await call(*arguments)
    assert (code, out) == (64, "")
    assert says in err
    assert server.secrets.kept == {}


@pytest.mark.parametrize(
    ("text", "expires"),
    [
        ("12h", NOW + timedelta(hours=12)),
        ("4w", NOW + timedelta(weeks=4)),
        ("2027-06-30T08:00:00+02:00", datetime(2027, 6, 30, 6, tzinfo=UTC)),
        ("2027-06-30T08:00", datetime(2027, 6, 30, 8, tzinfo=UTC)),
    ],
)
async def test_times_to_expire_at(server: FakeApiServer, call: Call, text: str, expires: datetime) -> None:
    assert (await call("create", "alice", "--expires", text))[0] == 0
    assert datetime.fromisoformat(records(server)["alice"]["expires"]) == expires
