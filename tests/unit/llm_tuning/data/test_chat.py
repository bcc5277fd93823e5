"""Which chat template a base has, the plain one in the place of none, and templates that cannot be used."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.chat import PLAIN_TEMPLATE_PATH, ChatTemplate, TemplateRefused, load_chat_template, template_hash
from llm_tuning.errors import InputError
from tests.support.other_rows import assistant, user


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_base_without_a_template_gets_the_plain_one(tokenizer_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tokenizer_dir, tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    template = load_chat_template(folder)
    assert template.is_plain
    assert template.render([{"role": "system", "content": "s"}, user("q"), assistant("a"), user("r")]) == (
        "<|endoftext|>### System:\ns\n\n### User:\nq\n\n### Assistant:\na<|im_end|>\n\n### User:\nr\n\n"
    )
    assert template.render([user("q")], add_generation_prompt=True).endswith("### User:\nq\n\n### Assistant:\n")
    assert template_hash(folder) == hashlib.sha256(PLAIN_TEMPLATE_PATH.read_bytes()).hexdigest()


def test_the_plain_template_needs_no_special_tokens() -> None:
    template = ChatTemplate(PLAIN_TEMPLATE_PATH.read_text(), "plain_chat.jinja")
    assert template.render([user("q"), assistant("a")]) == "### User:\nq\n\n### Assistant:\na\n\n"


def test_unusable_templates_are_refused_with_their_file(tokenizer_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tokenizer_dir, tmp_path / "base")
    (folder / "chat_template.jinja").write_text("{{ ok }}\n{% if %}")
    with pytest.raises(InputError, match=r"chat_template\.jinja, line 2 of the chat template: is not valid Jinja"):
        load_chat_template(folder)
    (folder / "chat_template.jinja").unlink()
    _config(folder, chat_template=[{"name": "rag", "template": "x"}])
    with pytest.raises(InputError, match="none is named default"):
        load_chat_template(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: must hold a JSON object"):
        load_chat_template(folder)


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% for i in range(99999999) %}x{% endfor %}",
        "{% set n = namespace(_x=1) %}",
        "{{ messages.append(1) }}",
        "{{ (messages | map(attribute='__class__') | list)[0].mro() }}",
    ],
)
def test_what_the_sandbox_stops_is_a_fault_of_the_base_and_not_of_the_rows(text: str) -> None:
    """Said once, not for each of the rows."""
    with pytest.raises(InputError, match="does what a template may not do") as refused:
        ChatTemplate(text, "chat_template.jinja").render([user("secret words")])
    [problem] = refused.value.problems
    assert (problem.field, problem.where) == ("model.path", "chat_template.jinja of the base")
    assert "secret words" not in str(problem)


def test_a_template_that_does_not_take_some_messages_refuses_those() -> None:
    with pytest.raises(TemplateRefused):
        ChatTemplate("{{ raise_exception('no system role') }}", "chat_template.jinja").render([user("q")])
