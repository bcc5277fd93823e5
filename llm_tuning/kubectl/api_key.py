"""`kubectl tuning api-key create | list | revoke`: who may use the fine-tuning API of a namespace.

The keys' hashes are entries of one Secret, which the API's pods have mounted. `create` prints the key alone on standard
output, once: nobody has it afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from llm_tuning.cli.tables import print_table
from llm_tuning.client import Conflict, Connection, NotFound
from llm_tuning.client.api import MERGE_PATCH, Api
from llm_tuning.core.text import printable
from llm_tuning.errors import EXIT_OK, InputError, Problem
from llm_tuning.openai_api.keys import (
    ROLES,
    SECRET_NAME,
    Key,
    KeyRecord,
    checked_name,
    digest,
    new_key,
    parse_record,
    utc_now,
)

ACTIONS = {
    "create": "make a key and print it, once",
    "list": "list the keys by name: roles and times, never a key",
    "revoke": "take a key back",
}
SYNC = "The API's pods know within about a minute."
UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
TRIES = 5
"""Of a write that another one came before."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their flags."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for action, text in ACTIONS.items():
        added = actions.add_parser(action, help=text, description=text, allow_abbrev=False)
        if action != "list":
            added.add_argument("name", metavar="NAME", help="who or what uses the key, such as alice or ci")
        if action == "create":
            roles = "; ".join(f"{role}: {text}" for role, text in ROLES.items())
            added.add_argument("--role", choices=list(ROLES), default="full", help=f"what it may do ({roles})")
            added.add_argument(
                "--expires",
                metavar="WHEN",
                help="after 12h, 90d or 4w, or at a date such as 2027-06-30 (default: never)",
            )
        added.add_argument("--secret", metavar="SECRET", default=SECRET_NAME, help="the Secret that has the keys")


def run(args: argparse.Namespace) -> int:
    """Do the action; raises InputError or a ClusterError."""
    actions: dict[str, Callable[[argparse.Namespace, _Secret], Awaitable[None]]] = {
        "create": _create,
        "list": _list,
        "revoke": _revoke,
    }
    connection = Connection.load(namespace=args.namespace, context=args.context, kubeconfig=args.kubeconfig)

    async def act() -> None:
        api = Api(connection)
        try:
            await actions[args.action](args, _Secret(api, args.secret))
        finally:
            await api.close()

    asyncio.run(act())
    return EXIT_OK


class _Secret:
    """The Secret of the keys; what is written is refused by the cluster where it has changed since it was read."""

    def __init__(self, api: Api, name: str) -> None:
        self._api, self._name = api, name
        self._secrets = f"/api/v1/namespaces/{api.connection.namespace}/secrets"
        self.title = f"Secret {name} of namespace {api.connection.namespace}"

    async def read(self) -> dict[str, Any] | None:
        """Return it, or None."""
        try:
            return await self._api.call("GET", f"{self._secrets}/{self._name}")
        except NotFound:
            return None

    async def write(self, before: dict[str, Any] | None, name: str, record: KeyRecord | None) -> None:
        """Write or remove an entry; raises Conflict where it is no longer as `before`."""
        data = {name: base64.b64encode(record.encode().encode()).decode() if record is not None else None}
        if before is None:
            labels = {"app.kubernetes.io/part-of": "llm-tuning"}
            body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": self._name, "labels": labels}}
            await self._api.call("POST", self._secrets, body={**body, "type": "Opaque", "data": data})
        else:
            version = {"resourceVersion": before["metadata"]["resourceVersion"]}
            body = {"metadata": version, "data": data}
            await self._api.call("PATCH", f"{self._secrets}/{self._name}", body=body, content_type=MERGE_PATCH)

    async def change(self, change: Callable[[dict[str, Any] | None], tuple[str, KeyRecord | None]]) -> None:
        """Write what `change` makes of the Secret, again where somebody else was quicker."""
        for left in reversed(range(TRIES)):
            before = await self.read()
            try:
                await self.write(before, *change(before))
            except Conflict:
                if not left:
                    raise
            else:
                return


async def _create(args: argparse.Namespace, secret: _Secret) -> None:
    name, now, text = checked_name(args.name), utc_now().replace(microsecond=0), new_key()
    expires = _time(args.expires, now) if args.expires else None
    record = KeyRecord(sha256=digest(text), role=args.role, expires=expires, created=now)

    def add(before: dict[str, Any] | None) -> tuple[str, KeyRecord]:
        if name in ((before or {}).get("data") or {}):
            fix = f"take another name, or revoke it first: kubectl tuning api-key revoke {name}"
            raise InputError(Problem("NAME", f"the {secret.title} has a key {name} already", fix))
        return name, record

    await secret.change(add)
    until = f", until {expires.isoformat()}" if expires else ""
    _say(f"Key {name} ({args.role}{until}) is in the {secret.title}. {SYNC} It is shown this once:")
    print(text)


async def _list(args: argparse.Namespace, secret: _Secret) -> None:
    found = await secret.read()
    data = (found or {}).get("data") or {}
    if not data:
        _say(f"There is no key in the {secret.title}.")
        return
    rows = [_row(name, text, utc_now()) for name, text in sorted(data.items())]
    print_table(["name", "role", "created", "expires"], rows)


async def _revoke(args: argparse.Namespace, secret: _Secret) -> None:
    name = checked_name(args.name)

    def remove(before: dict[str, Any] | None) -> tuple[str, None]:
        if name not in ((before or {}).get("data") or {}):
            raise NotFound(f"there is no key {name} in the {secret.title}")
        return name, None

    await secret.change(remove)
    _say(f"Key {name} is revoked. {SYNC}")


def _row(name: str, text: str, now: datetime) -> list[str]:
    try:
        key: Key = parse_record(name, base64.b64decode(text).decode())
    except (InputError, binascii.Error, UnicodeDecodeError) as error:
        rule = error.problems[0].rule if isinstance(error, InputError) else "is not UTF-8"
        return [printable(name), f"not used: {rule}", "", ""]
    record = key.record
    expires = _shown(record.expires) or "never"
    over = " (expired)" if key.has_expired(now) else ""
    return [name, record.role, _shown(record.created), expires + over]


def _shown(time: datetime | None) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}" if time else ""


def _time(text: str, now: datetime) -> datetime:
    """Read --expires; raises InputError."""
    if found := re.fullmatch(r"([1-9]\d{0,4})([hdw])", text):
        return now + int(found[1]) * UNITS[found[2]]
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            day = date.fromisoformat(text)
            time = datetime(day.year, day.month, day.day, tzinfo=UTC)
        else:
            time = datetime.fromisoformat(text)
    except ValueError:
        fix = "write a time from now, such as 12h, 90d or 4w, or a date such as 2027-06-30"
        raise InputError(Problem("--expires", f"is no time: {text!r}", fix)) from None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    if time <= now:
        raise InputError(Problem("--expires", f"is over already: {text}", "give a time to come"))
    return time.astimezone(UTC)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
