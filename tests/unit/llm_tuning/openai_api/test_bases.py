"""The settings of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_tuning.errors import InputError
from llm_tuning.openai_api.bases import Settings
from tests.support.openai_world import SETTINGS


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bases": {}}, "bases"),
        ({"bases": {"a b": {"path": "base/x"}}}, "a name of letters, digits, -, . and _"),
        ({"bases": {"x": {}}}, "exactly one of path and uri"),
        ({"bases": {"x": {"path": "base/x", "uri": "hf://a/b"}}}, "exactly one of path and uri"),
        ({"bases": {"x": {"path": "../x"}}}, "a path on the claim"),
        ({"bases": {"x": {"uri": "http://a/b"}}}, "hf://"),
        ({"bases": {"x": {"path": "base/x", "gpus": 1}}}, "gpus"),
        ({"bases": {"b" * 46: {"path": "base/x"}}, "organization": "acme-2"}, "at most 50 characters together, got 52"),
        ({"organization": "Acme Inc"}, "lower-case letters, digits and -"),
        ({"limits": {"fileSize": "4"}}, "a number with its unit"),
    ],
)
def test_what_is_wrong_is_said_before_the_server_starts(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Settings.parse(SETTINGS | given)
    assert words in str(caught.value)


def test_a_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("bases:\n  gpt-4.1-mini: {uri: 'hf://Qwen/Qwen3-8B'}\nlimits: {fileSize: 1Gi}\n")
    settings = Settings.load(file)
    assert settings.limits.file_bytes == 2**30
    assert settings.bases["gpt-4.1-mini"].source == "hf://Qwen/Qwen3-8B"
    assert settings.bases["gpt-4.1-mini"].own_name == "Qwen3-8B"
    assert settings.wait_seconds == 30


def test_the_key_of_services_is_the_secrets_value_without_its_line_break() -> None:
    assert Settings.parse(SETTINGS).service_key("key-1") is None, "no service of ours asks for one"
    settings = Settings.parse(SETTINGS | {"apiKeySecret": {"name": "llm-tuning-services", "key": "token"}})
    assert settings.service_key("key-1\n") == "key-1"
    for wrong in (None, "", " \n", "a\nb", "schlüssel"):
        with pytest.raises(InputError, match="Secret llm-tuning-services, key token: must have an API key"):
            settings.service_key(wrong)
