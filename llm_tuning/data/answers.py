"""What the model has to generate after the prompt that the server shows it, for one answer of a conversation.

The prompt is the template's rendering of the messages before the answer, with its generation prompt. What it writes of
the answer is read off its rendering of the messages with the answer as the last one. Most templates begin the second
with the first. Some do not: the generation prompt opens a think block that is never written into an answer
(DeepSeek-R1), or the template trims white space, or writes earlier turns otherwise once one follows. The rules here
say what is generated then, and refuse an answer where none is certain.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from llm_tuning.data.calls import Tools
from llm_tuning.data.chat import ChatTemplate, TemplateRefused
from llm_tuning.data.faults import Fact, Reason, RowFault
from llm_tuning.data.messages import Message

THINK, THINK_END = "<think>", "</think>"
"""The tags of reasoning in an answer's own text; what else a template calls reasoning has a field of its own."""
_EMPTY_REST = f"\n{THINK_END}\n\n"
"""Behind an opened think block: it stays empty, and the answer begins. Qwen and DeepSeek write it so."""


@dataclass(slots=True)
class Asked:
    """One answer as the server asks for it."""

    prompt: str
    """What the model is shown: it ends with the generation prompt, or with the given beginning of the answer."""
    answer: str
    """What the template writes behind it."""
    facts: set[Fact] = field(default_factory=set)
    continued: bool = False
    """The prompt ends with the given beginning of the answer: no server renders it from messages alone."""


def ask(
    template: ChatTemplate,
    messages: Sequence[Message],
    index: int,
    *,
    tools: Tools | None = None,
    given: int = 0,
    stops: Sequence[str] = (),
) -> Asked:
    """Render the answer `messages[index]`; the first `given` characters of its content are shown and not asked for.

    `stops` are the texts of the tokens at which generation stops. Raises RowFault.
    """
    try:
        prompt = template.render(messages[:index], tools=tools, add_generation_prompt=True)
        through = template.render(messages[: index + 1], tools=tools)
        asked = Asked(prompt, "")
        content = messages[index]["content"]
        if through.startswith(prompt):
            asked.answer = through[len(prompt) :]
        else:
            asked.facts.add(Fact.PROMPT_DIFFERS)
            upto = messages[: index + 1]
            asked.answer = _behind_another_start(
                template, upto, tools=tools, prompt=prompt, through=through, stops=stops
            )
    except TemplateRefused as refusal:
        # A template's own sentence is part of the template; anything else could quote the row.
        message = str(refusal)
        said = f": {message}" if message and message in template.text else ""
        rule = f"the chat template of the base does not take these messages{said}"
        raise _refused(rule, "order the roles as the template wants, or remove the row") from None
    _check_whole(content, asked, knows_think=THINK_END in template.text or THINK in template.text)
    if given:
        _move_given(asked, content, given)
    return asked


def _behind_another_start(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Tools | None,
    prompt: str,
    through: str,
    stops: Sequence[str],
) -> str:
    """Return the answer, the last of `messages`, behind a prompt that the rendering `through` does not begin with."""
    at = _common_length(prompt, through)
    head, rest = prompt[at:], through[at:]
    content = messages[-1]["content"]
    if not head.strip():  # white space that the template trims where an answer follows
        return rest
    if head.strip() == THINK:
        return _in_open_think_block(content, rest)
    before = template.render(messages[:-1], tools=tools)
    if through.startswith(before) and rest.lstrip().startswith(content.strip()):
        return rest  # only the start of the turn differs, and the answer is all that follows
    added = prompt[len(before) :] if prompt.startswith(before) else ""
    found = through.rfind(added) if added.strip() else -1
    if found >= 0:
        answer = through[found + len(added) :]
        if _without_stops(_plain(answer), stops) == _plain(content):
            return answer
    raise _refused(
        "the chat template of the base begins this answer otherwise than its own generation prompt",
        "remove the reasoning that the generation prompt leaves no room for, join answers that follow each other, "
        "or remove the row",
    )


def _in_open_think_block(content: str, rest: str) -> str:
    """Return the answer behind a generation prompt that opens a think block, which `rest` has no trace of.

    Reasoning in the content goes on in the block; without any the block is closed first, as the model has to.
    """
    if THINK_END in rest:
        return rest
    if THINK_END not in content:
        return _EMPTY_REST + rest
    last = content.rsplit(THINK_END, 1)[1].strip()
    found = rest.rfind(last) if last else -1
    if found < 0:
        return rest  # and `_check_whole` says what is wrong
    return content.strip().removeprefix(THINK).lstrip("\n").rstrip() + rest[found + len(last) :]


def _check_whole(content: str, asked: Asked, *, knows_think: bool) -> None:
    """Raise RowFault where the template loses text of the answer, or makes something else of it."""
    answer, thinks = asked.answer, THINK_END in content or THINK in content
    if knows_think and thinks:
        _check_think_tags(content, asked)
    elif content.strip() in answer:
        return
    if _plain(content) not in _plain(answer):
        if thinks:
            rule = "the chat template of the base leaves reasoning of the answer out"
            fix = f"give one think block before the answer, or remove the text before {THINK_END}"
            raise _refused(rule, fix)
        if content.rsplit(maxsplit=1)[-1] in answer:
            rule = "the chat template of the base leaves text of the answer out, or writes it otherwise"
            raise _refused(rule, "give the answer as the base writes answers, or remove the row")
        raise _refused("the chat template of the base leaves the answer out", "use a base made for text chats")


def _check_think_tags(content: str, asked: Asked) -> None:
    before, closed, visible = content.rpartition(THINK_END)
    if closed and not visible.strip():
        rule = f"the answer is empty: nothing follows {THINK_END}"
        raise RowFault(Reason.EMPTY_FIELD, rule, "give the answer behind its think block, or remove the row")
    if not closed and content.lstrip().startswith(THINK):
        rule = f"the answer opens a think block and does not close it ({THINK} without {THINK_END})"
        raise _refused(rule, "close the block and give the answer behind it, or remove the row")
    if closed and THINK not in before:
        asked.facts.add(Fact.UNPAIRED_THINK)
    if closed and asked.answer.count(THINK_END) > content.count(THINK_END):
        rule = "the chat template of the base writes a think block of its own before that of the answer"
        raise _refused(rule, f"remove the text up to {THINK_END} from the answer, or remove the row")


def _move_given(asked: Asked, content: str, given: int) -> None:
    """Move the first `given` characters of the content from the answer to the prompt."""
    text = content.strip()
    at = asked.answer.find(text)
    if at < 0:
        rule = "the chat template of the base rewrites an answer that goes on from a given beginning (`prefix`)"
        raise _refused(rule, "remove the think block from the answer, or remove the row")
    trimmed = len(content) - len(content.lstrip())
    cut = at + min(len(text), max(0, given - trimmed))
    asked.prompt, asked.answer = asked.prompt + asked.answer[:cut], asked.answer[cut:]
    asked.continued = True


def _plain(text: str) -> str:
    """Return `text` without white space and think tags: what a template may set otherwise."""
    return "".join(text.replace(THINK, "").replace(THINK_END, "").split())


def _without_stops(text: str, stops: Sequence[str]) -> str:
    return re.sub(f"(?:{'|'.join(map(re.escape, stops))})+$", "", text) if stops else text


def _common_length(one: str, other: str) -> int:
    """Count the characters that two texts have in common at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _refused(rule: str, fix: str) -> RowFault:
    return RowFault(Reason.TEMPLATE_REFUSES, rule, fix)
