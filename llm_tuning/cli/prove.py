"""`tune-llm prove`: prove that a server's adapter takes effect."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import closing
from pathlib import Path

from llm_tuning.errors import EXIT_OK, InputError, Problem

EXIT_NOT_EFFECTIVE = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--url", required=True, help="address of the vLLM server, for example http://127.0.0.1:8000")
    parser.add_argument("--adapter", required=True, metavar="DIR", help="folder of the adapter: models/<model_id>")
    parser.add_argument("--name", help="name the server gives the adapter (default: its model_id, else lora)")
    parser.add_argument("--base_name", help="name the server gives the base (default: as the server says)")
    parser.add_argument(
        "--api_key_env", metavar="VARIABLE", help="environment variable that holds the server's API key"
    )
    parser.add_argument(
        "--timeout_seconds", type=float, default=300.0, help="longest wait for one answer (default 300)"
    )
    parser.add_argument("--json", action="store_true", help="print the verdict and its numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Prove and print; 0 when effective, 1 for every other verdict."""
    from llm_tuning.engines.vllm.probe import VllmProbe
    from llm_tuning.proof.judge import Verdict
    from llm_tuning.proof.prove import prove

    key = _api_key(args.api_key_env)
    with closing(VllmProbe(args.url, api_key=key, timeout_seconds=args.timeout_seconds)) as server:
        proof = prove(server, Path(args.adapter), name=args.name, base_name=args.base_name)
    if args.json:
        print(json.dumps(proof.as_json(), indent=1))
    else:
        print(f"{proof.name} at {args.url}: {proof.verdict.value.replace('_', ' ')}: {proof.message}")
    return EXIT_OK if proof.verdict is Verdict.EFFECTIVE else EXIT_NOT_EFFECTIVE


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise InputError(Problem(f"--api_key_env {variable}", "is not set", "export it, or leave the flag out"))
    return key
