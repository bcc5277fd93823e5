"""YAML as people mean it: `5e-5` is a number, a key given twice is an error, a fault names line and column."""

from __future__ import annotations

import re
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
    try:
        with path.open(encoding="utf-8-sig") as stream:
            value = yaml.load(stream, Loader=_Loader)
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read: {error.strerror}")) from None
    except UnicodeDecodeError:
        raise InputError(Problem(str(path), "is not UTF-8", "save it as UTF-8")) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise InputError(Problem(where, f"is not valid YAML: {error.problem}")) from None
    if not isinstance(value, dict):
        raise InputError(Problem(str(path), "must hold one YAML mapping", "start with `model:` and `dataset:`"))
    return value
