"""Folders of bases as they are published, with small tokenizers: what transformers 5 makes of each is the question.

`ALIKE` are read as they are; `OTHERWISE` are built from their class, and then give other ids than their tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.tokenizers import byte_level, metaspace

CHATML = (
    "{% for message in messages %}<|user|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
INSTRUCT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token }}[INST] {{ message['content'] }} "
    "[/INST]{% elif message['role'] == 'assistant' %} {{ message['content'] }} {{ eos_token }}"
    "{% else %}{{ raise_exception('no system message') }}{% endif %}{% endfor %}"
)
ZEPHYR = "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
Serialised = dict[str, Any]


def _prepend(tokenizer: Serialised) -> None:
    """SentencePiece's blank before every piece of text, also right behind a special token, as Llama 2 has it."""
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    tokenizer["pre_tokenizer"] = None
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, blanks]}


def _begins(tokenizer: Serialised) -> None:
    """Set <s> before a text, as Llama 3 does."""
    first = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    of = {"id": "<s>", "ids": [tokenizer["model"]["vocab"]["<s>"]], "tokens": ["<s>"]}
    text = [first, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": text,
        "pair": [*text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": of},
    }


def _digits(tokenizer: Serialised) -> None:
    """Every digit a token of its own, as SmolLM2 has it, with a vocabulary that knows longer numbers."""
    model = tokenizer["model"]
    model["vocab"]["12"] = len(model["vocab"])
    model["merges"].append(["1", "2"])
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, tokenizer["pre_tokenizer"]],
    }


def _layout(
    tokenizer: Callable[[], Any],
    model_type: str,
    template: str,
    edit: Callable[[Serialised], None] | None = None,
    **config: Any,
) -> dict[str, Any]:
    return {"tokenizer": tokenizer, "type": model_type, "template": template, "edit": edit, "config": config}


ALIKE = {
    "llama 3": _layout(byte_level, "llama", CHATML, tokenizer_class="PreTrainedTokenizerFast"),
    "a text begins with <s>": _layout(byte_level, "llama", CHATML, _begins, tokenizer_class="PreTrainedTokenizerFast"),
    "gpt 2": _layout(byte_level, "gpt2", CHATML, tokenizer_class="GPT2Tokenizer"),
    "no class": _layout(byte_level, "llama", CHATML),
}
OTHERWISE = {
    "llama 2, not legacy": _layout(
        metaspace, "llama", INSTRUCT, _prepend, tokenizer_class="LlamaTokenizer", legacy=False
    ),
    "zephyr, not legacy": _layout(metaspace, "llama", ZEPHYR, _prepend, tokenizer_class="LlamaTokenizer", legacy=False),
    "smollm 2": _layout(byte_level, "llama", CHATML, _digits, tokenizer_class="GPT2Tokenizer"),
}


def make_layout(folder: Path, layout: dict[str, Any], **config: Any) -> Path:
    """Write the folder, with further keys of tokenizer_config.json (None: without that key), and return it."""
    folder.mkdir(parents=True)
    tokenizer = json.loads(layout["tokenizer"]().to_str())
    if layout["edit"] is not None:
        layout["edit"](tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    own = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **layout["config"], **config}
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in own.items() if v is not None}))
    (folder / "config.json").write_text(json.dumps({"model_type": layout["type"], "vocab_size": 1024}))
    (folder / "chat_template.jinja").write_text(layout["template"])
    return folder
