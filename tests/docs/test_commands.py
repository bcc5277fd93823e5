"""What README and docs tell people to type, in blocks and in the text, is what the programs understand.

The blocks are typed for real as well: tests/full/test_pages_run.py.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from itertools import pairwise

import pytest
import yaml

from devcluster.__main__ import _parser as devcluster_parser
from devcluster.images.building import RECIPES
from llm_tuning.api.flags import config_flags, option_flags
from llm_tuning.cli.parser import Parser
from llm_tuning.codes.tune_llm import SUBCOMMANDS, _run_parser, build, module_of
from tests.support.pages import PAGES, READMES, ROOT, blocks, command_lines, lines_starting_with, shown_name

HELM_VERBS = {
    "install",
    "upgrade",
    "rollback",
    "uninstall",
    "test",
    "status",
    "history",
    "get",
    "template",
    "show",
    "lint",
}
OF_RESOURCES = {"get", "describe", "delete", "wait", "explain", "patch", "scale", "edit", "label", "annotate"}
KUBECTL_VERBS = OF_RESOURCES | {
    "apply",
    "create",
    "logs",
    "cp",
    "exec",
    "port-forward",
    "rollout",
    "config",
    "auth",
    "tuning",
}
RESOURCES = {
    *("tj", "tuningjob", "tuningjobs", "tuningjobs.tuning.llmtuning.dev", "tuning"),
    *("tisvc", "inferenceservices.tuning.llmtuning.dev", "inferenceservice", "isvc"),
    *("deployment", "deployments", "pod", "pods", "job", "jobs", "service", "events", "nodes", "pvc", "workload"),
    *("secret", "lease", "endpointslices", "crd", "namespace", "generic", "configmap", "runtimeclass"),
}
BEFORE_THE_VERB = {"-n", "--namespace", "--context", "--kubeconfig"}
THE_READERS_OWN = {"faq.yaml", "job.yaml"}
"""Files that a page tells to write."""


@pytest.mark.parametrize("line", lines_starting_with("tune-llm ", "python codes/tune_llm.py "))
def test_every_tune_llm_line_parses(line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[2:] if words[0] == "python" else words[1:]
    if words and words[0] in SUBCOMMANDS:
        parser: argparse.ArgumentParser = Parser(prog="tune-llm")
        importlib.import_module(module_of(words[0])).add_arguments(parser)
        parser.add_argument("--debug", action="store_true")
        parser.parse_args(words[1:])
        return
    if words == ["--help"]:
        return
    given = vars(_run_parser().parse_args(words))
    given.pop("debug")
    if given.pop("config", None) is not None:  # its file is the reader's
        given = {"llm_path": "base", "dataset_path": "data.json"} | given
    build(given, config=None)


@pytest.mark.parametrize("line", lines_starting_with("bash "))
def test_every_launcher_line_names_the_script_and_three_or_four_arguments(line: str) -> None:
    _, script, *arguments = shlex.split(line, comments=True)
    assert any((folder / script).is_file() for folder in (ROOT, ROOT / "llm_tuning"))
    assert len(arguments) in (3, 4)


@pytest.mark.parametrize("line", lines_starting_with("make "))
def test_every_make_target_exists(line: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {word for word in shlex.split(line, comments=True)[1:] if "=" not in word} <= set(targets)


@pytest.mark.parametrize("line", lines_starting_with("python -m devcluster "))
def test_every_devcluster_line_parses(line: str) -> None:
    words = shlex.split(line, comments=True)[3:]
    if words[:2] == ["image", "build"]:
        assert set(words[2:]) <= {*RECIPES, "all"}
    else:
        devcluster_parser().parse_args(words)


@pytest.mark.parametrize("line", lines_starting_with("python examples/"))
def test_every_script_exists(line: str) -> None:
    assert (ROOT / shlex.split(line)[1]).is_file()


@pytest.mark.parametrize("line", lines_starting_with("kubectl "))
def test_every_kubectl_line_has_known_words_and_files(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    while words[0] in BEFORE_THE_VERB:
        words = words[2:]
    verb, *rest = words
    assert verb in KUBECTL_VERBS
    what = next((word for word in rest if not word.startswith("-")), "")
    if verb in OF_RESOURCES and what:
        kinds = what.split(".spec")[0].split("/")[0].split(",")
        assert set(kinds) <= RESOURCES
    files = [word for flag, word in pairwise(rest) if flag in ("-f", "-k")]
    assert [name for name in files if name not in THE_READERS_OWN and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("line", lines_starting_with("helm "))
def test_every_helm_line_has_a_known_verb_and_values_of_the_chart(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    assert words[0] in HELM_VERBS
    assert [word for word in words if word.startswith("charts/") and not (ROOT / word).is_dir()] == []
    chart = next((word for word in words if word.startswith("charts/")), "charts/llm-tuning")
    values = yaml.safe_load((ROOT / chart / "values.yaml").read_text())
    for flag, setting in pairwise(words):
        if flag != "--set":
            continue
        found = values
        for name in re.split(r"(?<!\\)\.", setting.split("=")[0]):
            assert name in found, f"{setting}: there is no such value"
            if not found[name]:  # a map of the user's
                break
            found = found[name]


@pytest.mark.parametrize("readme", READMES, ids=shown_name)
def test_a_readme_has_lines_to_test(readme: object) -> None:
    lines = command_lines(ROOT / str(readme))
    for start in ("tune-llm --", "tune-llm validate", "tune-llm report", "tune-llm registry", "tune-llm prove"):
        assert [line for line in lines if line.startswith(start)], start
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in lines}


def test_keywords_of_run_tuning_are_flags() -> None:
    calls = [
        call for page in PAGES for block in blocks(page, "python") for call in re.findall(r"run_tuning\((.*)\)", block)
    ]
    names = {flag.name for flag in config_flags() + option_flags()} | {"config"}
    assert len(calls) >= 2
    assert {name for call in calls for name in re.findall(r"(\w+)=", call)} <= names


@pytest.mark.parametrize("page", PAGES, ids=shown_name)
def test_python_compiles(page: object) -> None:
    for block in blocks(ROOT / str(page), "python"):
        compile(block, str(page), "exec")
