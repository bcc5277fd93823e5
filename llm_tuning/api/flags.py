"""The command line's flags, read off the models: names, defaults, bounds and help texts have one source.

A flag is named after its field; `lora` and the settings of a mode prefix theirs, and the documented names of the
one-machine command (`--llm_path`, ...) stand for their fields. Values stay text where they do not parse: the model then
refuses them in its own words, with the same message as in a file.
"""

from __future__ import annotations

import argparse
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from llm_tuning.api.tuning import RunOptions, TuningConfig
from llm_tuning.core.model import ApiModel
from llm_tuning.errors import InputError, Problem
from llm_tuning.modes import MODES

DOCUMENTED_NAMES = {
    ("mode",): "tuning_mode",
    ("model", "path"): "llm_path",
    ("model", "adapter", "model_id"): "init_adapter",
    ("dataset", "path"): "dataset_path",
    ("dataset", "evaluation"): "eval_dataset_path",
    ("tracking", "uri"): "tracking_uri",
}
PREFIXES = {group: f"{group}_" for group in ("lora", *MODES)}
_MAPPING = re.compile(r"\{([^{}]+)\}")
CLI_DEFAULTS = {"tracking_uri": "./mlruns"}
"""Where the command line differs from a TuningJob, whose run keeps a private store in its own folder."""


@dataclass(frozen=True)
class Flag:
    """One flag and the field it stands for; `path` leads from the model to the field."""

    name: str
    path: tuple[str, ...]
    kind: type
    choices: tuple[str, ...]
    default: Any
    help: str
    takes_number: bool = False
    """A switch that may be given a number, too."""


def config_flags() -> list[Flag]:
    """List the flags of TuningConfig, group by group."""
    return list(_walk(TuningConfig, ()))


def option_flags() -> list[Flag]:
    """List the flags of RunOptions."""
    return list(_walk(RunOptions, ()))


def add_flags(parser: argparse._ActionsContainer, flags: list[Flag]) -> None:
    """Add `flags`; what is not given is absent from the namespace, so that a file's value is not overridden."""
    for flag in flags:
        default = f" (default {flag.default})" if flag.default not in (None, False) else ""
        text = (flag.help + default).replace("%", "%%")
        if flag.takes_number:
            add_switch_with_number(parser, flag.name, text, default=argparse.SUPPRESS)
        elif flag.kind is bool:
            parser.add_argument(
                f"--{flag.name}", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            metavar = "|".join(flag.choices) or {int: "N", float: "X", dict: "FIELD=COLUMN,..."}.get(flag.kind, "TEXT")
            parser.add_argument(
                f"--{flag.name}", type=_parser(flag.kind), metavar=metavar, default=argparse.SUPPRESS, help=text
            )


def add_switch_with_number(parser: argparse._ActionsContainer, name: str, text: str, *, default: Any) -> None:
    """Add `--name`, `--name 425` and `--no-name`: True, 425 and False."""
    parser.add_argument(
        f"--{name}", nargs="?", const=True, type=_parser(int), metavar="ROW", default=default, help=text
    )
    parser.add_argument(f"--no-{name}", dest=name, action="store_false", default=default, help=argparse.SUPPRESS)


def merge(values: dict[str, Any], given: dict[str, Any], flags: list[Flag]) -> dict[str, Any]:
    """Lay the `given` flags over `values` (a file's mapping, camelCase or snake_case); returns a new mapping."""
    merged = _copied(values)
    for flag in flags:
        if flag.name in given:
            value = given[flag.name]
            pairs = flag.kind is dict and isinstance(value, str)
            _put(merged, flag.path, read_pairs(value, flag.name) if pairs else value)
    return merged


def read_pairs(text: str, flag: str) -> dict[str, str]:
    """Read `prompt=question,output=answer`, the form of a mapping on the command line; raises InputError."""
    pairs = [part.partition("=") for part in text.split(",")]
    names = [name.strip() for name, _, _ in pairs]
    if not all(name and value.strip() for name, (_, _, value) in zip(names, pairs, strict=True)):
        fix = (
            "write --columns prompt=question,output=answer; a column with a comma in its name stands in a --config file"
        )
        raise InputError(Problem(f"--{flag}", f"must be FIELD=COLUMN with commas between, got {text!r}", fix))
    for name in names:
        if names.count(name) > 1:
            raise InputError(Problem(f"--{flag}", f"names the field {name} twice", "give it one column"))
    return {name: value.strip() for name, (_, _, value) in zip(names, pairs, strict=True)}


def _walk(model: type[ApiModel], at: tuple[str, ...]) -> Iterator[Flag]:
    for name, field in model.model_fields.items():
        path = (*at, name)
        kind, choices = _kind(field.annotation)
        if isinstance(kind, type) and issubclass(kind, ApiModel):
            yield from _walk(kind, path)
            continue
        flag = DOCUMENTED_NAMES.get(path, PREFIXES.get(path[0], "") + name if at else name)
        default = CLI_DEFAULTS.get(flag, _default(field))
        number = {bool, int} <= set(get_args(field.annotation))
        text = field.description or ""
        yield Flag(flag, path, kind, choices, default, _in_pairs(text) if kind is dict else text, number)


def _in_pairs(text: str) -> str:
    """Write an example of a mapping, `{prompt: question}` in a file, as the flag takes it: `prompt=question`."""
    return _MAPPING.sub(lambda found: found[1].replace(": ", "=").replace(", ", ","), text)


def _kind(annotation: Any) -> tuple[type, tuple[str, ...]]:
    """Return the plain type under Annotated, Optional and Literal, and a Literal's choices."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind(get_args(annotation)[0])
    if origin is Literal:
        return str, tuple(get_args(annotation))
    if origin is dict:
        return dict, ()
    if origin in (types.UnionType,) or (origin is not None and type(None) in get_args(annotation)):
        return _kind(next(arg for arg in get_args(annotation) if arg is not type(None)))
    return annotation, ()


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default()


def _parser(kind: type) -> Any:
    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text

    return str if kind is dict else parse


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in values.items()}


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    from pydantic.alias_generators import to_camel

    for name in path[:-1]:
        inner = values.get(name)
        if not isinstance(inner, dict):
            inner = values[name] = {}
        values = inner
    values.pop(to_camel(path[-1]), None)
    values[path[-1]] = value


def flag_of(path: str) -> Flag | None:
    """Return the flag of the setting at `path`, written as in the API or as in Python; None where it has none."""
    from pydantic.alias_generators import to_camel

    written = {
        spelled: flag
        for flag in (*option_flags(), *config_flags())
        for spelled in (".".join(flag.path), ".".join(map(to_camel, flag.path)))
    }
    return written.get(path)


class FlagWords:
    """The words of the command line, for `errors.in_words`."""

    def field(self, path: str) -> str:
        """Return the setting's flag, which takes a URI where it takes a path; its own path where it has none."""
        names = {".".join(flag.path): f"--{flag.name}" for flag in (*config_flags(), *option_flags())}
        return names.get(path) or names.get(re.sub(r"\.uri$", ".path", path), path)

    def setting(self, path: str, value: str) -> str:
        """Return how a setting is given: `use --devices cpu`."""
        return f"use {self.field(path)}" if value == "true" else f"use {self.field(path)} {value}"

    def command(self, name: str) -> str:
        """Return the command as one types it."""
        return f"`tune-llm {name}`"


FLAG_WORDS = FlagWords()
