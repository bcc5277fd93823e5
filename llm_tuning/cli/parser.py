"""The parser of both command lines: bad arguments are bad input, and a mistyped name gets the one it is nearest to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from llm_tuning.core.files import expand_home
from llm_tuning.core.suggestions import did_you_mean
from llm_tuning.errors import InputError, Problem


class Parser(argparse.ArgumentParser):
    """Raises InputError, which becomes exit 64: a Job would retry argparse's own 2."""

    def error(self, message: str) -> NoReturn:
        """Refuse what argparse found."""
        raise InputError(Problem("", message, f"see {self.prog} --help"))

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse unknown arguments here, where the flags of the subcommand are known: the main parser has others."""
        given = sys.argv[1:] if args is None else args
        found, unknown = super().parse_known_args([_at_home(argument) for argument in given], namespace)
        flags = [word.partition("=")[0] for word in unknown if word.lstrip("-")[:1].isalpha() and word[0] == "-"]
        see = f"see {self.prog} --help"
        if flags:
            names = self._option_string_actions
            raise InputError([Problem(f, "is not a known flag", did_you_mean(f, names, otherwise=see)) for f in flags])
        if unknown:
            raise InputError(Problem(" ".join(unknown), "is too much", see))
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            where = "/".join(action.option_strings) or self.prog
            rule = f"must be one of {', '.join(choices)}, got {str(value)!r}"
            raise InputError(Problem(where, rule, did_you_mean(str(value), choices)))


def _at_home(argument: str) -> str:
    """Expand `~/x` and `--flag=~/x`: a shell does neither in quotes, and the second nowhere."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{flag}{equals}{expand_home(value)}" if value.startswith("~/") else argument
