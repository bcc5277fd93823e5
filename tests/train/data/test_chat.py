"""Templates render here exactly as in transformers: compared on every template that TRL ships, and on ours."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.chat import (
    PLAIN_TEMPLATE_PATH,
    ChatTemplate,
    TemplateForbidden,
    TemplateRefused,
    load_chat_template,
)
from tests.support.other_rows import assistant, user
from tests.support.tiny_base import CHAT_TEMPLATE

_TRL = importlib.util.find_spec("trl")


assert _TRL is not None
TEMPLATES = sorted(Path((_TRL.submodule_search_locations or [""])[0], "chat_templates").glob("*.jinja"))


LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


TEXTS = {
    "chatml": CHAT_TEMPLATE,
    "llama-3": LLAMA_3,
    "plain": PLAIN_TEMPLATE_PATH.read_text(),
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m }}{% endfor %}",
    "tojson": "{{ messages | tojson(indent=2) }}{{ messages[0] | tojson(sort_keys=true, separators=(',', ':')) }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "blocks": "  {% if true %}\n  a\n  {% endif %}\n{% generation %}{{ messages[0].content }}{% endgeneration %}\n\n",
    "refusing": "{{ raise_exception('Only silence is allowed') }}",
    "undefined": "{{ messages[0].content.nothing.more }}",
    "date": "{{ strftime_now('%Y') }} {{ tools is none }} {{ documents is none }} {{ unk_token is defined }}",
    "private namespace": "{% set ns = namespace(_x=1) %}",
    "escape attempt": "{{ messages.__class__.__mro__ }}",
} | {path.stem: path.read_text(encoding="utf-8") for path in TEMPLATES}


CONVERSATIONS = [
    [user("Hi <b>&\"' é 🙂"), assistant(" ok\n")],
    [{"role": "system", "content": "Be brief."}, user("q1"), assistant("a1"), user("q2"), assistant("a2 end")],
    [user("a"), assistant("b"), assistant("c")],
    [user("q"), assistant("<think>\nhm\n</think>\n\nans"), user("w"), assistant("<think>\nx\n</think>\n\nlast")],
    [user("q"), {"role": "tool", "content": "{}"}, assistant("a")],
]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.mark.parametrize("name", TEXTS)
def test_renders_as_transformers_does(tokenizer: Any, name: str) -> None:
    template = ChatTemplate(TEXTS[name], name, tokenizer.special_tokens_map)
    for messages in CONVERSATIONS:
        for add_generation_prompt in (False, True):
            try:
                want = tokenizer.apply_chat_template(
                    messages,
                    chat_template=TEXTS[name],
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            except Exception:
                with pytest.raises((TemplateRefused, TemplateForbidden)):
                    template.render(messages, add_generation_prompt=add_generation_prompt)
            else:
                assert template.render(messages, add_generation_prompt=add_generation_prompt) == want


def test_the_comparison_covers_real_templates() -> None:
    assert len(TEMPLATES) > 20
    assert {"llama3", "qwen3", "gemma3"} <= set(TEXTS)


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _in_file(folder: Path) -> None:
    _config(folder, chat_template="of the config: {{ bos_token }}")
    (folder / "chat_template.jinja").write_text("of the file: {{ eos_token }}\n")


def _in_config(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    _config(folder, chat_template="of the config: {{ bos_token }}{{ pad_token }}")


def _named(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "the default"}]
    _config(folder, chat_template=named)


def _token_objects(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ bos_token }} {{ eos_token }} {{ unk_token is defined }}")
    _config(folder, bos_token={"content": "<|im_start|>", "__type": "AddedToken"}, eos_token=None, add_bos_token=True)


def _special_tokens_map(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ bos_token }} {{ eos_token }}")
    _config(folder, bos_token="<|pad|>")
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<|im_start|>"}}))


@pytest.mark.parametrize("change", [_in_file, _in_config, _named, _token_objects, _special_tokens_map])
def test_reads_the_template_and_tokens_that_transformers_reads(
    tokenizer_dir: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    from transformers import AutoTokenizer

    folder = shutil.copytree(tokenizer_dir, tmp_path / "base")
    change(folder)
    messages = [user("q")]
    want = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    assert load_chat_template(folder).render(messages) == want
