"""`plan` and `serve`: the containers of an InferenceService's pod beside vLLM.

plan    write vLLM's command to the folder that the containers share; exit 64 with the reason for an unfit base
serve   keep, prove, answer and report until SIGTERM; then finish what is being answered
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web

from llm_tuning.agent.contract import (
    AGENT_PORT,
    API_KEY_VARIABLE,
    CONFIG_DIR,
    DESIRED_FILE,
    ENGINE_PORT,
    INPUT_VARIABLE,
    LOADS_FILE,
    PLAN_FILE,
    REPORT_URL_VARIABLE,
    DesiredRoutes,
    ServeInput,
    parse_desired,
)
from llm_tuning.agent.engine_life import Loads
from llm_tuning.agent.keeper import Keeper
from llm_tuning.agent.limits import MAX_CHOICES
from llm_tuning.agent.metrics import Metrics
from llm_tuning.agent.plan import make_plan
from llm_tuning.agent.reporter import Reporter
from llm_tuning.agent.server import AgentServer
from llm_tuning.agent.starting import DRAINED_FILE, RUN_DIR
from llm_tuning.engines.plan import EnginePlan
from llm_tuning.engines.vllm.engine import VllmEngine
from llm_tuning.errors import EXIT_INPUT, EXIT_OK, EXIT_TRY_AGAIN, InputError, TryAgain
from llm_tuning.pod.contract import MODELS, ROOT, TERMINATION_LOG, CheckResult, PodReason, encode_result

log = logging.getLogger("llm_tuning.agent")

LEAVE_SECONDS = 5.0
"""After SIGTERM requests still come until every node knows that this pod is no endpoint any more."""
DRAIN_SECONDS = 150.0
"""For what is being answered; the pod's grace period is longer."""


def run(arguments: list[str]) -> int:
    """Run the subcommand; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if arguments == ["plan"]:
        return plan()
    if arguments == ["serve"]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(serve())
            # Now, for the loop would wait for its threads, and one that reads from a volume that hangs never ends.
            logging.shutdown()
            os._exit(code)
    sys.stderr.write("usage: python -m llm_tuning.agent plan | serve\n")
    return EXIT_INPUT


def plan() -> int:
    """Write the plan for vLLM."""
    try:
        given = ServeInput.decode(os.environ.get(INPUT_VARIABLE, ""))
        made = make_plan(given, _mounted() or DesiredRoutes(), ROOT, scratch=RUN_DIR)
    except InputError as error:
        message = "; ".join(str(problem) for problem in error.problems)
        log.error("%s", message)
        result = CheckResult(ok=False, reason=PodReason.BASE_MODEL_INVALID, message=message)
        TERMINATION_LOG.write_text(encode_result(result))
        return EXIT_INPUT
    except TryAgain as error:
        log.error("%s", error)
        return EXIT_TRY_AGAIN
    (RUN_DIR / PLAN_FILE).write_text(made.encode())
    log.info("vLLM: %s", " ".join(made.command))
    for note in made.notes:
        log.warning("%s", note)
    return EXIT_OK


async def serve() -> int:
    """Run the agent until a signal ends it."""
    made = EnginePlan.decode((RUN_DIR / PLAN_FILE).read_text())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    (RUN_DIR / DRAINED_FILE).unlink(missing_ok=True)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=False) as session:
        engine = VllmEngine(f"http://127.0.0.1:{ENGINE_PORT}", session)
        keeper = Keeper(engine, made, ROOT / MODELS, loads=Loads(RUN_DIR / LOADS_FILE))
        if (desired := _mounted()) is not None:
            keeper.want(desired)
        server = AgentServer(
            keeper,
            engine,
            Metrics(keeper),
            made.base_name,
            api_key=os.environ.get(API_KEY_VARIABLE),
            max_choices=_max_choices(),
            reads_tool_calls=bool(made.tool_call_parser),
        )
        runner = server.runner(keepalive_timeout=75)
        await runner.setup()
        await web.TCPSite(runner, None, AGENT_PORT).start()
        tasks = [asyncio.create_task(keeper.run())]
        if url := os.environ.get(REPORT_URL_VARIABLE):
            tasks.append(asyncio.create_task(Reporter(keeper, session, url, locked=server.locked).run()))
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for ended in done - {stopped}:
            ended.result()  # a fault: raised, and the kubelet restarts the agent
        await _drain(server)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        (RUN_DIR / DRAINED_FILE).touch()  # vLLM waits for it
        await runner.cleanup()
    return EXIT_OK


async def _drain(server: AgentServer) -> None:
    """Turn not ready, then wait for the answers under way."""
    server.draining = True
    log.info("ending: %d requests under way", server.active)
    await asyncio.sleep(LEAVE_SECONDS)
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while server.active:
                await asyncio.sleep(0.1)
    except TimeoutError:
        log.warning("%d requests are cut off", server.active)


def _max_choices() -> int:
    given = os.environ.get(INPUT_VARIABLE)
    return (ServeInput.decode(given).vllm.max_choices if given else None) or MAX_CHOICES


def _mounted() -> DesiredRoutes | None:
    """Read the routes that were wanted when the pod was made; None where they are not readable."""
    path = Path(CONFIG_DIR) / DESIRED_FILE
    try:
        return parse_desired(path.read_text())
    except (OSError, InputError) as error:
        log.warning("%s: %s", path, error)
        return None
