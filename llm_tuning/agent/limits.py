"""What one request may ask of an engine that all clients share, and what this server does not do; pure."""

from __future__ import annotations

from typing import Any

from llm_tuning.agent.refusal import Refused, shown

MAX_CHOICES = 16
"""Answers to one prompt, unless spec.vllm.maxChoices says otherwise."""
PROMPTS_PER_CHOICE = 16
"""All answers of a request, prompts times choices, are at most so many times the choices: 256."""


OLD_FORMS = {"functions": "tools", "function_call": "tool_choice"}


def check_limits(asked: dict[str, Any], max_choices: int) -> None:
    """Raise Refused for a request that would keep the engine from all other clients."""
    choices = max(_choices(asked, name, max_choices) for name in ("n", "best_of"))
    prompts, most = _prompts(asked.get("prompt")), PROMPTS_PER_CHOICE * max_choices
    if prompts * choices > most:
        times = f" times {choices} answers to each" if choices > 1 else ""
        rule = f"prompt must have at most {most // choices} prompts{times and ' at that n'}, got {prompts:,}{times}"
        raise Refused(400, f"{rule}: send several requests", "too_many_choices", "prompt")


def check_tools(asked: dict[str, Any], *, reads_calls: bool, chat: bool) -> None:
    """Raise Refused for a request that asks for calls of tools where none would come, or in a form that none reads.

    `reads_calls`: the engine parses answers for calls. `chat`: the request is one for a chat.
    """
    for name, instead in OLD_FORMS.items():
        if asked.get(name) is not None:
            message = f"{name} is OpenAI's older form, which the engine does not read: send {instead}"
            raise Refused(400, message, "unsupported_parameter", name)
    if not asked.get("tools") or asked.get("tool_choice") == "none":
        return
    if not chat:
        message = "tools are for /v1/chat/completions: a plain prompt has no place for them"
        raise Refused(400, message, "unsupported_parameter", "tools")
    if not reads_calls:
        raise Refused(
            400,
            "tools are not served: this engine has no parser of tool calls, so they would stay words of the answer; "
            "have spec.vllm.toolCallParser of the InferenceService set, leave tools out, or send tool_choice none",
            "unsupported_parameter",
            "tools",
        )


def _choices(asked: dict[str, Any], name: str, most: int) -> int:
    value = asked.get(name)
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise Refused(400, f"{name} must be a whole number, got {shown(str(value))}", param=name)
    if value > most:
        fix = "ask several times, or have spec.vllm.maxChoices of the InferenceService raised"
        raise Refused(400, f"{name} must be at most {most}, got {value}: {fix}", "too_many_choices", name)
    return max(1, int(value))


def _prompts(prompt: object) -> int:
    """Count the prompts: a list of texts or of lists of tokens is as many; a list of tokens is one."""
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
