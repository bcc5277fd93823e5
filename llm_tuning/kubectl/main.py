"""The plugin's command line. kubectl finds it as `kubectl-tuning` on the PATH and hands all arguments on."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from llm_tuning.cli.parser import Parser
from llm_tuning.core.text import printable
from llm_tuning.errors import EXIT_INPUT, EXIT_TRY_AGAIN, InputError, TuningError

COMMANDS = {
    "submit": "create the TuningJobs and InferenceServices of a file",
    "watch": "show how far one is, until it has finished or is ready",
    "logs": "print the log of the stage that a TuningJob is at",
    "plan": "estimate memory, steps and time of a TuningJob before it is submitted",
    "explain": "say in a paragraph why one is where it is, and what to do",
    "report": "print what a finished TuningJob has reached, and where its adapter is",
    "api-key": "make, list and revoke keys of the fine-tuning API",
}
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands and their arguments."""
    parser = Parser(prog="kubectl tuning", description="Tune models on this cluster.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        _module(name).add_arguments(added)
        for leaf in _leaves(added):
            leaf.add_argument("-n", "--namespace", help="the namespace (default: that of the context)")
            leaf.add_argument("--context", help="the context of the kubeconfig (default: the current one)")
            leaf.add_argument("--kubeconfig", metavar="FILE", help="the kubeconfig (default: as kubectl finds it)")
    return parser


def _module(command: str) -> Any:
    return importlib.import_module(f"llm_tuning.kubectl.{command.replace('-', '_')}")


def _leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return the parsers of a command's actions, or the command's own."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [leaf for action in inner for leaf in action.choices.values()] or [parser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 64 (bad input), 75 (not in time), 1 (failed, or refused)."""
    try:
        args = build_parser().parse_args(arguments)
        return int(_module(args.command).run(args))
    except InputError as error:
        _say("\n".join(f"error: {problem}" for problem in error.problems))
        return EXIT_INPUT
    except TimeoutError as error:
        _say(f"error: {error}")
        return EXIT_TRY_AGAIN
    except TuningError as error:
        _say(f"error: {error}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head` has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
