"""YAML as people mean it: `5e-5` is a number, a key given twice is an error, a fault names line and column."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

from llm_tuning.errors import InputError, Problem


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats (PyYAML follows 1.1 and reads `5e-5` as text) and no duplicate keys."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def load_yaml_mapping(path: Path) -> dict[str, Any]:
    """Read one YAML mapping from a file; raises InputError naming file, line and column."""
    values = _documents(_text_of(path), str(path))
    if len(values) != 1 or not isinstance(values[0], dict):
        raise InputError(Problem(str(path), "must hold one YAML mapping", "start with `model:` and `dataset:`"))
    return values[0]


def load_yaml_objects(path: Path | None) -> list[dict[str, Any]]:
    """Read the Kubernetes objects of a file with one or more YAML documents, of standard input where it is None.

    Raises InputError naming file, line and column, also where there is no object.
    """
    where = "standard input" if path is None else str(path)
    text = sys.stdin.read() if path is None else _text_of(path)
    values = [value for value in _documents(text, where) if value is not None]
    if not values or not all(isinstance(value, dict) for value in values):
        raise InputError(Problem(where, "must hold objects with apiVersion, kind, metadata and spec"))
    return values


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read: {error.strerror}")) from None
    except UnicodeDecodeError:
        raise InputError(Problem(str(path), "is not UTF-8", "save it as UTF-8")) from None


def _documents(text: str, where: str) -> list[Any]:
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise InputError(Problem(at, f"is not valid YAML: {error.problem}")) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise InputError(Problem(where, f"is not valid YAML: {error}")) from None
