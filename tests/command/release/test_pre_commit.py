"""The hooks are ours, and what they call is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from devcluster.release.running import ROOT, git

CONFIG = ROOT / ".pre-commit-config.yaml"
REPOS = yaml.safe_load(CONFIG.read_text())["repos"]
HOOKS = [hook for repo in REPOS for hook in repo["hooks"]]


def test_the_configuration_is_valid() -> None:
    done = subprocess.run([sys.executable, "-m", "pre_commit", "validate-config", CONFIG], check=False)
    assert done.returncode == 0


def test_nothing_is_fetched() -> None:
    assert {repo["repo"] for repo in REPOS} == {"local"}
    assert {hook["language"] for hook in HOOKS} == {"system"}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_is_a_tool_of_the_environment_and_some_file_calls_it(hook: dict[str, str]) -> None:
    [program] = re.findall(r"\.venv/bin/([\w-]+)", hook["entry"])
    assert (Path(sys.executable).parent / program).exists()
    if "files" in hook:
        assert [name for name in git(ROOT, "ls-files").splitlines() if re.search(hook["files"], name)]
