"""The command line, and `run_tuning()`: parse, build a TuningConfig, run it.

    python codes/tune_llm.py --llm_path P --dataset_path D [...]      train, register and track an adapter
    tune-llm validate | registry | report | sources | prove | api ...           the links of the chain, alone

It stays torch-free until a run really starts, so that help, refusals and small commands answer at once.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: its own folder is on sys.path, the package's parent is not
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from llm_tuning.api import RunOptions, TuningConfig
from llm_tuning.api.flags import CLI_DEFAULTS, FLAG_WORDS, add_flags, config_flags, flag_of, merge, option_flags
from llm_tuning.cli.parser import Parser
from llm_tuning.core.stopping import stop_on_signals
from llm_tuning.core.suggestions import did_you_mean
from llm_tuning.core.text import printable
from llm_tuning.errors import EXIT_INPUT, EXIT_TRY_AGAIN, InputError, Problem, TryAgain, in_words
from llm_tuning.modes import DEFAULT_MODE

SUBCOMMANDS = {
    "validate": "check a data set without training",
    "registry": "list, show, verify or rebuild the registered models",
    "report": "print the result of a finished run",
    "sources": "list, fetch, verify or remove what comes from a hub, S3 or the web",
    "prove": "prove that a server's adapter takes effect",
    "api": "serve OpenAI's fine-tuning API on this machine",
}
EXIT_UNEXPECTED = 1
EXIT_INTERRUPTED = 130


def run_tuning(  # noqa: PLR0917 - the documented names, in the documented order
    llm_path: str | Path | None = None,
    dataset_path: str | Path | None = None,
    tuning_mode: str = DEFAULT_MODE,
    experiment_name: str = "llm_tuning",
    tracking_uri: str = "./mlruns",
    devices: str | int = "0",
    *,
    config: str | Path | None = None,
    **flags: Any,
) -> str:
    """Run one tuning and return its model_id. Further keywords are the command line's flags: `epochs=2`, `lora_rank=8`.

    `config` is a YAML file as for `--config`; arguments that differ from their defaults win over it.
    Raises InputError or TryAgain and never exits; with several devices it starts processes of its own.
    """
    from llm_tuning.run.tune import tune

    documented = {
        "llm_path": (llm_path, None),
        "dataset_path": (dataset_path, None),
        "tuning_mode": (tuning_mode, DEFAULT_MODE),
        "experiment_name": (experiment_name, "llm_tuning"),
        "tracking_uri": (tracking_uri, CLI_DEFAULTS["tracking_uri"]),
        "devices": (str(devices), "0"),
    }
    known = {flag.name for flag in config_flags() + option_flags()}
    unknown = [name for name in flags if name not in known]
    if unknown:
        rule, see = "is not a known argument", "see tune-llm --help"
        raise InputError([Problem(name, rule, did_you_mean(name, known, otherwise=see)) for name in unknown])
    given = {name: value for name, (value, default) in documented.items() if value != default} | flags
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    from llm_tuning.run.given import with_local_paths

    configuration, options = build(given, config=config)
    return tune(with_local_paths(configuration, options), options)


def build(given: dict[str, Any], *, config: str | Path | None) -> tuple[TuningConfig, RunOptions]:
    """Build configuration and options from a config file and the `given` flags (which win); raises InputError."""
    from llm_tuning.api.yaml import load_yaml_mapping

    values = load_yaml_mapping(Path(config).expanduser()) if config is not None else {}
    if {"kind", "spec"} <= values.keys():
        rule = f"is an object for a cluster ({values['kind']}), and a run takes the fields of a configuration"
        fields = ", ".join(TuningConfig.model_fields)
        fix = f"submit it with kubectl, or write what its spec has of {fields} at the top, with paths of this machine"
        raise InputError(Problem(str(config), rule, fix))
    flags, options = config_flags(), option_flags()
    tracking = values.get("tracking")
    if not (isinstance(tracking, dict) and tracking.get("uri")):
        given = {"tracking_uri": CLI_DEFAULTS["tracking_uri"]} | given
    problems: list[Problem] = []
    parsed: list[Any] = []
    for model, of, start in ((TuningConfig, flags, values), (RunOptions, options, {})):
        try:
            parsed.append(model.parse(merge(start, given, of)))
        except InputError as error:
            problems.extend(_named_by_flag(problem) for problem in error.problems)
    if problems:
        raise InputError(problems)
    return parsed[0], parsed[1]


def _named_by_flag(problem: Problem) -> Problem:
    """Add the flag to a problem's place, where that is a setting: its path is what a file has.

    A file or a folder, a flag or a row is left as it is.
    """
    flag = flag_of(problem.where)
    if flag is not None:
        return replace(problem, where=f"{problem.where} (--{flag.name})")
    missing = {"model": "--llm_path", "dataset": "--dataset_path"}.get(problem.where)
    if missing is None or problem.rule != "is required":
        return problem
    return replace(problem, where=f"{problem.where}.path ({missing})")


def _run_parser() -> Parser:
    parser = Parser(
        prog="tune-llm",
        description="Train a LoRA adapter from a base model and a data set; register, evaluate and track it.",
        epilog="subcommands: " + "; ".join(f"{name}: {text}" for name, text in SUBCOMMANDS.items()),
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the whole configuration; flags win over it")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and the libraries' own messages")
    add_flags(parser.add_argument_group("configuration"), config_flags())
    add_flags(parser.add_argument_group("run"), option_flags())
    parser.add_argument("--version", action="version", version=_version())
    return parser


def _version() -> str:
    from llm_tuning import __version__

    return f"tune-llm {__version__}"


def _run(arguments: Sequence[str]) -> int:
    given = vars(_run_parser().parse_args([_underscored(argument) for argument in arguments]))
    config, debug = given.pop("config"), given.pop("debug")
    from llm_tuning.core.console import quiet_libraries, set_up_logging

    set_up_logging(debug=debug)
    if not debug:
        quiet_libraries()
    configuration, options = build(given, config=config)
    from llm_tuning.cli import report
    from llm_tuning.run.devices import gpu_defaults
    from llm_tuning.run.given import with_local_paths
    from llm_tuning.run.tune import tune

    os.environ.update(gpu_defaults(os.environ))  # this process is the run's own; run_tuning's caller keeps its own

    model_id = tune(with_local_paths(configuration, options), options)
    report.print_result(Path(options.output_dir), model_id)
    return 0


def _underscored(argument: str) -> str:
    """Read `--llm-path` as `--llm_path`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if not name.startswith("--no-") else argument


def module_of(subcommand: str) -> str:
    """Return the module of a subcommand: it has `add_arguments(parser)` and `run(args)`."""
    return "llm_tuning.openai_api.command" if subcommand == "api" else f"llm_tuning.cli.{subcommand}"


def _subcommand(name: str, arguments: Sequence[str]) -> int:
    command = importlib.import_module(module_of(name))
    parser = Parser(prog=f"tune-llm {name}", description=SUBCOMMANDS[name])
    command.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args([_underscored(argument) for argument in arguments])
    from llm_tuning.core.console import set_up_logging

    set_up_logging(debug=args.debug)
    return int(command.run(args))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 64 (bad input), 75 (try again), 1 (unexpected)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    with stop_on_signals():
        try:
            if arguments and arguments[0] in SUBCOMMANDS:
                return _subcommand(arguments[0], arguments[1:])
            if arguments and not arguments[0].startswith("-"):
                fix = f"a run takes flags only, and the commands are {', '.join(SUBCOMMANDS)}"
                fix = did_you_mean(arguments[0], SUBCOMMANDS, otherwise=fix)
                raise InputError(Problem(arguments[0], "is not a command", fix))
            return _run(arguments)
        except InputError as error:
            _say(traceback.format_exc() if debug else "")
            takes_settings = not (arguments and arguments[0] in SUBCOMMANDS) or arguments[0] == "validate"
            problems = [_named_by_flag(problem) if takes_settings else problem for problem in error.problems]
            _say("\n".join(f"error: {problem.in_words(FLAG_WORDS)}" for problem in problems))
            return EXIT_INPUT
        except TryAgain as error:
            _say(traceback.format_exc() if debug else "")
            _say(f"try again ({error.reason}): {in_words(error.message, FLAG_WORDS)}")
            return EXIT_TRY_AGAIN
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            return EXIT_UNEXPECTED
        except Exception as error:
            _say(traceback.format_exc() if debug else "")
            hint = "" if debug else "\nrun it again with --debug for the traceback"
            _say(f"unexpected {type(error).__name__}: {error}{hint}")
            return EXIT_UNEXPECTED


def _say(text: str) -> None:
    if text:
        print(printable(text), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
