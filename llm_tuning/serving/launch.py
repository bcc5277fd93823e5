"""`launch_llm.sh`: start vLLM in the background, wait until it answers, prove the adapter, say how to call and stop it.

A LoRA that does nothing must not look like success: after the verdicts *no effect* and *different* the server is
stopped and the exit code is 1 (KEEP_UNPROVEN=1 leaves it running, still with 1). *Too small to tell* and
*cannot be proven* are warnings: the server stays, exit 0. In a cluster the same verdicts block and admit.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from llm_tuning.core.console import set_up_logging
from llm_tuning.core.files import expand_home
from llm_tuning.core.stopping import stop_on_signals, stop_requested
from llm_tuning.engines.vllm.environment import API_KEY_VARIABLE
from llm_tuning.engines.vllm.install import Vllm, find_vllm, gpu_count
from llm_tuning.engines.vllm.probe import VllmProbe
from llm_tuning.errors import EXIT_INPUT, EXIT_OK, EXIT_TRY_AGAIN, InputError, PlainWords, Problem, TryAgain
from llm_tuning.proof.judge import Proof, Verdict
from llm_tuning.proof.prove import LORA_NAME, prove
from llm_tuning.serving.plan import USAGE, ServePlan, plan_serving
from llm_tuning.serving.server_process import ServerDied, ServerProcess

EXIT_FAILED = 1
LAUNCH_TIMEOUT_SECONDS = 600.0
REJECTED = (Verdict.NO_EFFECT, Verdict.DIFFERENT)
"""Verdicts with which an adapter is not left served."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 served, 1 failed or proven wrong, 64 bad input, 75 not ready in time or stopped."""
    set_up_logging()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with stop_on_signals():
            return serve(arguments, os.environ)
    except InputError as error:
        _warn("\n".join(f"error: {problem.in_words(_Words())}" for problem in error.problems))
        return EXIT_INPUT
    except TryAgain as error:
        _warn(f"try again ({error.reason}): {error}")
        return EXIT_TRY_AGAIN
    except ServerDied as error:
        _warn(f"error: {error}")
        return EXIT_FAILED


class _Words(PlainWords):
    """What the launcher's settings are called: arguments and variables."""

    def field(self, path: str) -> str:
        names = {"model.path": "<model_path>", "model.uri": "<model_path>", "sources_dir": "SOURCES_DIR"}
        return names.get(path) or super().field(path)

    def setting(self, path: str, value: str) -> str:
        return f"give {value} as {self.field(path)}"


def serve(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Plan, start, wait, prove; the server is left running only if all of it went well."""
    if not 3 <= len(arguments) <= 4 or any(argument.startswith("-") for argument in arguments):
        got = shlex.join(arguments)
        raise InputError(Problem("arguments", f"must be 3 or 4, none a flag, got {got!r}", f"usage: {USAGE}"))
    timeout = _timeout(environment)
    port, gpu_id, model_path = *arguments[:2], _base(expand_home(arguments[2]), environment)
    lora_path = expand_home(arguments[3]) if len(arguments) == 4 else None
    plan = plan_serving(
        port, gpu_id, model_path, lora_path, environment=environment, vllm=_vllm(environment), gpus=gpu_count()
    )
    for note in plan.notes:
        _warn(f"note: {note}")
    server = ServerProcess(Path(expand_home(environment.get("LAUNCH_LOG_DIR") or "logs")), port=plan.port)
    if server.left_behind:
        _warn(f"note: {server.pid_file} was left behind by a server that has ended; this one takes its place")
    _say(f"starting vLLM (log {server.log}), up to {timeout:.0f} s")
    started = time.monotonic()
    server.start(plan.command, dict(environment) | plan.environment)
    keep = False
    try:
        server.wait_until_it_answers(plan.url, timeout_seconds=timeout)
        _say(f"ready after {time.monotonic() - started:.0f} s at {plan.url}: {', '.join(plan.names)}")
        try:
            proof = _prove(plan, environment)
        except TryAgain as failure:
            raise server.explain(failure) from None
        if stop_requested():
            raise TryAgain("Stopped", "stopped on request while the adapter was being proven; vLLM was ended too")
        keep = proof is None or proof.verdict not in REJECTED or environment.get("KEEP_UNPROVEN") == "1"
    finally:
        if not keep:
            server.stop()
    _report_proof(proof, stopped=not keep)
    if keep:
        _say(_how_to(plan, server.pid_file, environment))
    return EXIT_OK if proof is None or proof.verdict not in REJECTED else EXIT_FAILED


def _base(given: str, environment: Mapping[str, str]) -> str:
    """Return the folder of the base; one that is given by a hub's name or a URI is fetched where it is not here."""
    if Path(given).exists():
        return given
    from llm_tuning.progress.fetching import fetch_shown
    from llm_tuning.sources.given import is_offline, local_path
    from llm_tuning.sources.uri import Kind

    root = Path(expand_home(environment.get("SOURCES_DIR") or "sources"))
    with fetch_shown() as watch:
        return local_path(given, Kind.MODEL, root, watch=watch, offline=is_offline(environment))


def _vllm(environment: Mapping[str, str]) -> Vllm | InputError:
    try:
        return find_vllm(Path(__file__).resolve().parents[2], environment)
    except InputError as error:
        return error


def _timeout(environment: Mapping[str, str]) -> float:
    text = environment.get("LAUNCH_TIMEOUT_SECONDS")
    try:
        value = float(text) if text else LAUNCH_TIMEOUT_SECONDS
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise InputError(Problem("LAUNCH_TIMEOUT_SECONDS", f"must be a number of seconds above 0, got {text!r}"))
    return value


def _prove(plan: ServePlan, environment: Mapping[str, str]) -> Proof | None:
    if plan.adapter is None:
        return None
    with closing(VllmProbe(plan.url, api_key=environment.get(API_KEY_VARIABLE))) as server:
        return prove(server, plan.adapter.path, name=LORA_NAME, base_name=plan.base_name)


def _report_proof(proof: Proof | None, *, stopped: bool) -> None:
    if proof is None:
        return
    line = f"proof: {proof.verdict.value.replace('_', ' ')}: {proof.message}"
    if proof.verdict is Verdict.EFFECTIVE:
        _say(line)
        return
    _warn(f"WARNING: {line}")
    if stopped:
        _warn("WARNING: the server was stopped; KEEP_UNPROVEN=1 leaves it running for a look")


def _how_to(plan: ServePlan, pid_file: Path, environment: Mapping[str, str]) -> str:
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if environment.get(API_KEY_VARIABLE) else ""
    body = f'{{"model": "{plan.names[0]}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return (
        f"call it: curl {plan.url}/v1/chat/completions{key} "
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}\n"
        f'stop it: kill "$(cat {shlex.quote(str(pid_file))})"'
    )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _warn(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
