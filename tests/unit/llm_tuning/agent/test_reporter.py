"""The operator is told at once, tells what is wanted in its answer, and may be away: serving continues."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from llm_tuning.agent import reporter as reporter_module
from llm_tuning.agent.contract import DesiredRoutes, Report, parse_report
from llm_tuning.agent.reporter import Reporter
from tests.support.authorities import intermediate_authority
from tests.support.vllm_server import free_port
from tests.unit.llm_tuning.agent.conftest import Pod, desire, eventually
from tuning_operator.inference_service.agents import Agents
from tuning_operator.reports.certificates import KeyPair, make_ca, make_serving_cert
from tuning_operator.reports.tls import serving_context

KEY = ("team", "faq")


@dataclass
class Operator:
    """The operator's end: HTTPS with its authority, and what it makes of the reports (the operator's own `Agents`)."""

    context: ssl.SSLContext
    agents: Agents = field(default_factory=lambda: Agents(hold_seconds=30))
    port: int = field(default_factory=free_port)
    token: str = "one"
    override: Callable[[Report], Awaitable[web.Response]] | None = None
    reports: list[Report] = field(default_factory=list)
    refused: int = 0
    waiting: int = 0
    followed: int = 0
    """Requests that went where a redirect sent them, the token with them."""
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/agents/team/faq"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/agents/team/faq", self._take)
        app.router.add_route("*", "/elsewhere", self._elsewhere)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.context).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _elsewhere(self, request: web.Request) -> web.Response:
        self.followed += 1
        return web.Response(text=DesiredRoutes().encode())

    async def _take(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            self.refused += 1
            return web.Response(status=401, text="no such token")
        report = parse_report(await request.read())
        self.reports.append(report)
        if self.override is not None:
            return await self.override(report)
        self.waiting += 1
        try:
            desired = await self.agents.exchange(KEY, "uid-1", report)
        finally:
            self.waiting -= 1
        return web.Response(status=204) if desired is None else web.Response(text=desired.encode())


@dataclass
class World:
    pod: Pod
    operator: Operator
    reporter: Reporter
    folder: Path

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.reporter.run())
        try:
            yield task
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @property
    def reports(self) -> list[Report]:
        return self.operator.reports


@pytest.fixture(scope="module")
def authority() -> tuple[KeyPair, KeyPair]:
    ca = intermediate_authority()
    return ca, make_serving_cert(ca, ["localhost"], datetime.now(UTC))


@pytest.fixture
async def world(
    pod: Pod,
    session: aiohttp.ClientSession,
    tmp_path: Path,
    authority: tuple[KeyPair, KeyPair],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[World]:
    """The operator answers; GATHER_SECONDS and the first pause are short."""
    monkeypatch.setattr(reporter_module, "GATHER_SECONDS", 0.02)
    monkeypatch.setattr(reporter_module, "FIRST_RETRY_SECONDS", 0.02)
    ca, serving = authority
    (tmp_path / "ca.crt").write_bytes(ca.certificate_pem)
    (tmp_path / "token").write_text("one\n")
    operator = Operator(serving_context(serving))
    await operator.start()
    url = operator.url.replace("127.0.0.1", "localhost")
    reporter = Reporter(pod.keeper, session, url, token_file=tmp_path / "token", ca_file=tmp_path / "ca.crt")
    reporter._retry_seconds = reporter_module.FIRST_RETRY_SECONDS
    try:
        yield World(pod, operator, reporter, tmp_path)
    finally:
        await operator.stop()


async def test_what_the_operator_wants_is_taken_over_and_told_back(world: World) -> None:
    wanted = desire({"support": "ft_a"})
    world.pod.write("ft_a")
    world.operator.agents.publish(KEY, wanted)
    async with world.running():
        await eventually(lambda: world.pod.keeper.desired == wanted)
        await eventually(lambda: world.reports[-1].revision == wanted.revision)
        assert world.reports[0].revision == ""
        await eventually(lambda: world.operator.waiting == 1)
        assert [adapter.reason for adapter in world.reports[-1].adapters] == ["Loading"]


@pytest.mark.parametrize("locked", [True, False])
async def test_an_empty_key_is_reported(world: World, locked: bool) -> None:
    world.reporter.locked = locked
    async with world.running():
        await eventually(lambda: world.reports)
    assert world.reports[0].locked is locked


async def test_a_long_poll_is_left_waiting_while_nothing_changes_and_answered_on_a_new_wish(world: World) -> None:
    first, second = desire({"support": "ft_a"}), desire({"support": "ft_b"})
    world.pod.keeper.want(first)
    world.operator.agents.publish(KEY, first)
    async with world.running():
        await eventually(lambda: world.operator.waiting == 1)
        await asyncio.sleep(0.2)
        assert len(world.reports) == 1
        began = time.monotonic()
        world.operator.agents.publish(KEY, second)
        await eventually(lambda: world.pod.keeper.desired == second)
        assert time.monotonic() - began < 5, "the operator holds a report for 15 s"
        await eventually(lambda: world.reports[-1].revision == second.revision)


async def test_no_change_is_204_and_the_next_report_follows(world: World) -> None:
    world.operator.agents.hold_seconds = 0.05
    wanted = desire({})
    world.pod.keeper.want(wanted)
    world.operator.agents.publish(KEY, wanted)
    async with world.running():
        await eventually(lambda: len(world.reports) >= 4)
    assert {report.revision for report in world.reports} == {wanted.revision}
    assert world.pod.keeper.desired == wanted


async def test_a_changed_state_is_reported_at_once_while_an_answer_is_awaited(world: World) -> None:
    wanted = desire({"support": "ft_a"})
    world.pod.write("ft_a")
    world.pod.keeper.want(wanted)
    world.operator.agents.publish(KEY, wanted)
    async with world.running():
        await eventually(lambda: world.operator.waiting == 1)
        await world.pod.turn()
        began = time.monotonic()
        await eventually(lambda: world.reports[-1].ready)
        assert time.monotonic() - began < 5, "the operator holds a report for 15 s"
        assert world.reports[-1].adapters[0].reason == "Effective"
        await eventually(lambda: world.operator.waiting == 1)
        assert len(world.reports) <= 3, "changes that come together are told together"
        await world.pod.engine.kill()
        await world.pod.keeper.look()
        await eventually(lambda: not world.reports[-1].engine_up)
        await eventually(lambda: world.operator.waiting == 1)


async def test_a_wish_that_comes_with_a_changed_state_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer arrives while changes are gathered."""
    wanted = desire({"support": "ft_b"})
    world.pod.keeper.want(desire({}))
    world.operator.agents.publish(KEY, desire({}))
    monkeypatch.setattr(reporter_module, "GATHER_SECONDS", 0.2)
    async with world.running():
        await eventually(lambda: world.operator.waiting == 1)
        world.pod.keeper.changed.set()
        await asyncio.sleep(0.05)
        world.operator.agents.publish(KEY, wanted)
        await eventually(lambda: world.pod.keeper.desired == wanted)
        await eventually(lambda: world.reports[-1].revision == wanted.revision)


async def test_without_an_operator_serving_goes_on_and_it_is_found_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = desire({"support": "ft_a"})
    world.pod.want({"support": "ft_a"})
    await world.pod.turn()
    await world.operator.stop()
    async with world.running():
        await asyncio.sleep(0.3)
        assert world.pod.keeper.ready
        assert world.pod.keeper.desired == wanted
        warnings = [record for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == 1, "said once, not at each try"
        later = desire({"support": "ft_b"})
        world.operator.agents.publish(KEY, later)
        await world.operator.start()
        await eventually(lambda: world.pod.keeper.desired == later)
        world.operator.agents.hold_seconds = 30
        await eventually(lambda: world.operator.waiting == 1)
        # Away in the middle of a long poll, as when it is restarted.
        await world.operator.stop()
        await asyncio.sleep(0.1)
        await world.operator.start()
        count = len(world.reports)
        await eventually(lambda: len(world.reports) > count)
    assert world.pod.keeper.desired == later


async def test_pauses_between_failures_grow_and_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            raise asyncio.CancelledError

    await world.operator.stop()
    monkeypatch.setattr(reporter_module, "FIRST_RETRY_SECONDS", 0.5)
    reporter = Reporter(world.pod.keeper, world.reporter.session, world.reporter.url, world.folder / "token")
    monkeypatch.setattr(reporter_module.asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await reporter.run()
    assert pauses[0] == 0.5
    assert all(b == min(a * 2, 15.0) for a, b in pairwise(pauses))
    assert pauses[-1] == 15.0


async def test_the_token_is_read_each_time(world: World) -> None:
    world.operator.token = "two"
    world.operator.agents.publish(KEY, desire({}))
    async with world.running():
        await eventually(lambda: world.operator.refused >= 2)
        assert world.pod.keeper.desired is None
        (world.folder / "token").write_text("two")
        await eventually(lambda: world.pod.keeper.desired == desire({}))


async def test_a_token_or_an_authority_that_comes_late(world: World) -> None:
    world.operator.agents.publish(KEY, desire({}))
    ca = (world.folder / "ca.crt").read_bytes()
    (world.folder / "ca.crt").unlink()
    (world.folder / "token").unlink()
    async with world.running():
        await asyncio.sleep(0.05)
        (world.folder / "token").write_text("one")
        await asyncio.sleep(0.05)
        (world.folder / "ca.crt").write_text("half")
        await asyncio.sleep(0.05)
        assert world.reports == []
        (world.folder / "ca.crt").write_bytes(ca)
        os.utime(world.folder / "ca.crt", (1, 1))
        await eventually(lambda: world.pod.keeper.desired == desire({}))


async def test_another_authority_is_not_told_a_word(world: World) -> None:
    (world.folder / "ca.crt").write_bytes(make_ca(datetime.now(UTC)).certificate_pem)
    async with world.running():
        await asyncio.sleep(0.2)
    assert world.reports == []
    assert world.operator.refused == 0


@pytest.mark.parametrize(
    ("status", "text"),
    [(500, "no"), (429, "slowly"), (200, ""), (200, "<html>"), (200, '{"routes":1}'), (302, ""), (404, "\ud800")],
)
async def test_an_answer_that_is_none_changes_nothing(world: World, status: int, text: str) -> None:
    wanted = desire({"support": "ft_a"})
    world.pod.keeper.want(wanted)

    async def answer(report: Report) -> web.Response:
        headers = {"Location": f"https://localhost:{world.operator.port}/elsewhere"} if status == 302 else {}
        return web.Response(status=status, body=text.encode(errors="surrogatepass"), headers=headers)

    world.operator.override = answer
    async with world.running():
        await eventually(lambda: len(world.reports) >= 3)
        assert world.pod.keeper.desired == wanted
        assert world.operator.followed == 0
        world.operator.override = None
        world.operator.agents.publish(KEY, desire({}))
        await eventually(lambda: world.pod.keeper.desired == desire({}))


async def test_an_operator_that_never_answers_is_asked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter_module, "ANSWER_SECONDS", 0.1)
    world.pod.keeper.want(desire({}))
    world.operator.agents.publish(KEY, desire({}))
    async with world.running():
        await eventually(lambda: len(world.reports) >= 3)


async def test_an_operator_that_counts_revisions_otherwise_is_not_asked_without_pause(world: World) -> None:
    """Of another version: what it wants looks other to it than what the agent says that it has."""
    wanted: DesiredRoutes = desire({"support": "ft_a"})

    async def answer(report: Report) -> web.Response:
        return web.Response(text=wanted.encode().replace('"weight"', '"new":1,"weight"'))

    world.operator.override = answer
    async with world.running():
        await eventually(lambda: world.pod.keeper.desired == wanted)
        await asyncio.sleep(0.5)
        assert len(world.reports) <= 4
        world.pod.keeper.changed.set()
        count = len(world.reports)
        await eventually(lambda: len(world.reports) > count, 1)


async def test_a_fault_of_our_own_ends_the_agent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def report() -> Report:
        raise KeyError("a fault")

    monkeypatch.setattr(world.pod.keeper, "report", report)
    with pytest.raises(KeyError):
        async with asyncio.timeout(2):
            await world.reporter.run()
