"""Chat templates without transformers: read from a base's folder and rendered exactly as transformers does it.

Follows `transformers.utils.chat_template_utils` and `PreTrainedTokenizerBase.from_pretrained` of transformers 5.24
(which template wins, which variables and functions it sees); a test renders real templates with both. Templates come
from strangers, so they run in jinja's immutable sandbox.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llm_tuning.core.files import OddFile, read_json, read_text
from llm_tuning.data.calls import Tools, for_template
from llm_tuning.data.messages import Message
from llm_tuning.errors import InputError, Problem

PLAIN_TEMPLATE_PATH = Path(__file__).with_name("plain_chat.jinja")
"""The project's one template for bases without one: the same file in training and in serving."""


_HARMONY = "<|channel|>analysis<|message|>"
"""In gpt-oss's template alone."""


class TemplateRefused(ValueError):  # noqa: N818 - the template says no; nothing is broken
    """The template does not render these messages. Its message may quote them: never log it."""


class TemplateForbidden(InputError):  # noqa: N818 - the base is at fault
    """The template does what the sandbox stops: no rows are at fault."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template's text, where it is from, and the special tokens it may use."""

    text: str
    source: str
    """`chat_template.jinja`, `tokenizer_config.json` or `plain_chat.jinja` (the base has none)."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """bos_token, eos_token and so on, as the template sees them."""
    now: datetime = field(default_factory=datetime.now, compare=False)
    """The moment that the template writes: one for all rows, so that a turn is the same in each of its renderings."""

    @property
    def hash(self) -> str:
        """sha256 (hex) of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def is_plain(self) -> bool:
        return self.source == PLAIN_TEMPLATE_PATH.name

    @property
    def writes_the_date(self) -> bool:
        """Whether rendering may differ from day to day."""
        return "strftime_now" in self.text

    @property
    def is_harmony(self) -> bool:
        """Whether it is gpt-oss's: vLLM writes such chats by OpenAI's Harmony library, and not by the template."""
        return _HARMONY in self.text

    def _thinking_from(self, messages: Sequence[Message]) -> int | None:
        """Return from which message on reasoning is called `thinking`, for a template that has it by this name alone.

        No server gives it to a template: only the answer itself is written with it. For gpt-oss vLLM writes the prompt
        without the template, and with the reasoning of earlier turns.
        """
        if "message.thinking" not in self.text or "reasoning_content" in self.text:
            return None
        return 0 if self.is_harmony else len(messages) - 1

    def render(
        self, messages: Sequence[Message], *, tools: Tools | None = None, add_generation_prompt: bool = False
    ) -> str:
        """Return the conversation as the model sees it; raises TemplateRefused or TemplateForbidden."""
        try:
            return _compile(self.text).render(
                messages=for_template(messages, thinking_from=self._thinking_from(messages)),
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                strftime_now=self.now.strftime,
                **self.special_tokens,
            )
        except (SecurityError, OverflowError) as error:
            # Of the template and not of these messages: the rows are not at fault, and one problem says it for all.
            rule = f"does what a template may not do: {error}"
            fix = "take the template that the base was published with"
            raise TemplateForbidden(Problem(f"{self.source} of the base", rule, fix, field="model.path")) from None
        except Exception as error:  # a template is a program: any error in it means that it does not take the messages
            raise TemplateRefused(str(error)) from None


def plain_template(special_tokens: Mapping[str, str] | None = None) -> ChatTemplate:
    """Read the project's template for bases without one."""
    text = PLAIN_TEMPLATE_PATH.read_text(encoding="utf-8")
    return ChatTemplate(text, PLAIN_TEMPLATE_PATH.name, special_tokens or {})


def load_chat_template(folder: Path) -> ChatTemplate:
    """Read the template of the base in `folder`, or the plain one; raises InputError if it has one that is unusable."""
    config = read_object(folder / "tokenizer_config.json")
    special_tokens = read_special_tokens(folder, config)
    path = folder / "chat_template.jinja"
    if path.exists():
        template = ChatTemplate(_read_text(path), path.name, special_tokens)
    elif (text := _template_in_config(folder, config)) is not None:
        template = ChatTemplate(text, "tokenizer_config.json", special_tokens)
    else:
        return plain_template(special_tokens)
    try:
        _compile(template.text)
    except jinja2.TemplateSyntaxError as error:
        where = f"{folder / template.source}, line {error.lineno} of the chat template"
        fix = "fix the template, or copy it again from the base model"
        raise InputError(Problem(where, f"is not valid Jinja: {error.message}", fix)) from None
    return template


def template_hash(folder: Path) -> str:
    """Hash the template that a run on the base in `folder` uses: sha256 (hex); raises InputError."""
    return load_chat_template(folder).hash


def read_special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Read a tokenizer's bos_token, eos_token, ...; special_tokens_map.json counts only for older tokenizer configs."""
    tokens = _special_tokens(config)
    if "added_tokens_decoder" not in config:
        tokens |= _special_tokens(read_object(folder / "special_tokens_map.json"))
    return tokens


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file of the base, {} if there is no such file; raises InputError."""
    try:
        value = read_json(path)
    except OddFile as odd:
        raise InputError(Problem(str(path), str(odd), "copy the base model again")) from None
    except (OSError, ValueError):
        value = ()
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(Problem(str(path), "must hold a JSON object", "copy the base model again"))
    return value


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _template_in_config(folder: Path, config: Mapping[str, Any]) -> str | None:
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
        if named and value is None:
            raise InputError(
                Problem(
                    str(folder / "tokenizer_config.json"),
                    "has several chat templates and none is named default",
                    "save the one to use as chat_template.jinja",
                )
            )
    return value if isinstance(value, str) else None


def _read_text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(path), f"cannot be read ({error})", "copy the base model again")) from None


class _GenerationTag(Extension):
    """`{% generation %}`: marks the assistant's text in training templates; rendering keeps its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own way to declare tags

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [jinja2.nodes.Scope(body)]


class _Namespace(jinja2.utils.Namespace):
    """jinja's namespace() without underscore names, as in transformers: they lead into CPython's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template cannot store {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def _compile(text: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["namespace"] = _Namespace
    return environment.from_string(text)
