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

from llm_tuning.data.calls import Tools, calls_of
from llm_tuning.data.chat import ChatTemplate, TemplateRefused
from llm_tuning.data.faults import Fact, Reason, RowFault
from llm_tuning.data.messages import THINK, THINK_END, Message
from llm_tuning.data.written import ONE_BY_ONE, WITH_BOTH, WITH_REASONING, WITH_TOOLS, check_calls_written

_END_OF_BLOCK = _EMPTY_REST = f"\n{THINK_END}\n\n"
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
    learn_reasoning: bool = True,
) -> Asked:
    """Render the answer `messages[index]`; the first `given` characters of its content are shown and not asked for.

    `stops` are the texts of the tokens at which generation stops. Without `learn_reasoning` the answer's reasoning is
    shown, too. Raises RowFault.
    """
    try:
        prompt = template.render(messages[:index], tools=tools, add_generation_prompt=True)
        through = template.render(messages[: index + 1], tools=tools)
        asked = Asked(prompt, "")
        message = messages[index]
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
        words = str(refusal)
        said = f": {words}" if words and words in template.text else ""
        rule = f"the chat template of the base does not take these messages{said}"
        raise _refused(rule, _fix_of(messages[: index + 1], tools)) from None
    _check_whole(message, asked, knows_think=THINK_END in template.text or THINK in template.text)
    if given:
        _move_given(asked, message["content"], given)
    if not learn_reasoning:
        _move_reasoning(asked, message)
    return asked


def _fix_of(messages: Sequence[Message], tools: Tools | None) -> str:
    """Return what to do about messages that a template does not take."""
    if any(tool["function"]["description"] is None for tool in tools or ()):
        return f"give each tool a `description`, {WITH_TOOLS}, or leave such rows out"
    if any(len(calls_of(message)) > 1 for message in messages):
        return f"{ONE_BY_ONE}, or leave such rows out"
    if any(calls_of(message) or message["role"] == "tool" for message in messages):
        return f"{WITH_TOOLS}, or leave such rows out"
    return "order the roles as the template wants, or remove the row"


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
    before = template.render(messages[:-1], tools=tools)
    at = _before_a_tag(
        prompt, _common_length(prompt, through), len(before) if prompt.startswith(before) else len(prompt)
    )
    head, rest = prompt[at:], through[at:]
    content, reasoning = messages[-1]["content"], messages[-1].get("reasoning_content")
    if not head.strip():  # white space that the template trims where an answer follows
        return rest
    if head.strip() == THINK:
        if reasoning and THINK_END not in rest:
            return f"{reasoning.strip()}{_END_OF_BLOCK}{rest}"
        return _in_open_think_block(content, rest)
    begins = reasoning.strip() if reasoning else content.strip()
    if through.startswith(before) and rest.lstrip().startswith(begins) and not (reasoning and THINK_END in head):
        return rest  # only the start of the turn differs, and the answer is all that follows
    added = prompt[len(before) :] if prompt.startswith(before) else ""
    found = through.rfind(added) if added.strip() else -1
    if found >= 0:
        answer = through[found + len(added) :]
        if not reasoning and _without_stops(_plain(answer), stops) == _plain(content):
            return answer
        if answer == _alone(template, messages[-1], tools):  # only earlier turns are written otherwise
            return answer
    raise _refused(
        "the chat template of the base begins this answer otherwise than its own generation prompt",
        "remove the reasoning that the generation prompt leaves no room for, join answers that follow each other, "
        "or remove the row",
    )


def _alone(template: ChatTemplate, message: Message, tools: Tools | None) -> str | None:
    """Return what the template writes of an answer to a question of one letter; None where that is not certain."""
    question: list[Message] = [{"role": "user", "content": "a"}]
    prompt = template.render(question, tools=tools, add_generation_prompt=True)
    through = template.render([*question, message], tools=tools)
    return through[len(prompt) :] if through.startswith(prompt) else None


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


def _check_whole(message: Message, asked: Asked, *, knows_think: bool) -> None:
    """Raise RowFault where the template loses text, reasoning or calls of the answer, or makes something else of it."""
    reasoning, content = message.get("reasoning_content"), message["content"]
    if reasoning and _plain(reasoning) not in _plain(asked.answer):
        rule = "the chat template of the base leaves reasoning of the answer out (`reasoning_content`)"
        fix = f"{WITH_REASONING}, remove the field, or give the reasoning in the text, where it is learned as text"
        raise _refused(rule, fix)
    check_calls_written(message, asked.answer)
    if calls_of(message) and _plain(content) not in _plain(asked.answer):
        rule = "the chat template of the base leaves the text beside a call out, or writes it otherwise"
        raise _refused(rule, f"remove that text, or {WITH_BOTH}")
    if content.strip():
        _check_text(content, asked, knows_think=knows_think)


def _check_text(content: str, asked: Asked, *, knows_think: bool) -> None:
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


def _move_reasoning(asked: Asked, message: Message) -> None:
    """Move the answer's reasoning to the prompt: seen and not learned; raises RowFault where its end is unsure."""
    content, answer = message["content"], asked.answer
    if "reasoning_content" not in message and THINK_END not in content:
        return  # what the template writes where there is none is part of the answer
    if THINK_END not in answer and asked.continued:
        return  # the given beginning holds it
    if answer.count(THINK_END) != 1:
        rule = f"reasoning is not to be learned, and the chat template of the base ends none with {THINK_END}"
        raise _refused(rule, "set {field:training.learn_reasoning} to true, or remove it from the rows")
    end = answer.index(THINK_END) + len(THINK_END)
    end += len(answer[end:]) - len(answer[end:].lstrip())
    asked.prompt, asked.answer = asked.prompt + answer[:end], answer[end:]
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


def _before_a_tag(prompt: str, at: int, least: int) -> int:
    """Return `at`, or where the tag begins that lies around it: two tags may have their first letters in common."""
    start = prompt.rfind("<", least, at)
    return start if start >= 0 and ">" not in prompt[start:at] else at


def _refused(rule: str, fix: str) -> RowFault:
    return RowFault(Reason.TEMPLATE_REFUSES, rule, fix)
