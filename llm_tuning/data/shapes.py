"""The row shapes that modes choose from, and what makes conversations of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.messages import Turns, convert_messages
from llm_tuning.data.rows import Conversation, Row, Shape
from llm_tuning.data.values import check_text, is_missing

Convert = Callable[[Row], tuple[Conversation, ...]]


def build_conversation(turns: Turns, *, learn_from: int = 0) -> Conversation:
    """Build a conversation of which the turns from `learn_from` on are learned, but for those marked otherwise.

    A turn that is a prefix becomes the beginning of the next one. Raises RowFault where flags make no sense.
    """
    if not turns.flags and not turns.prefixes:
        return Conversation(turns.messages, learn_from=learn_from)
    if any(learned and index < learn_from for index, learned in turns.flags.items()):
        rule = "a turn of the prompt is marked as learned, and only the answer is"
        raise RowFault(Reason.UNSUPPORTED_FIELD, rule, "write the whole conversation as `messages`")
    prefixes: dict[int, int] = {}
    if turns.prefixes:
        turns, learn_from, prefixes = _with_prefixes_joined(turns, learn_from)
    not_learned = frozenset(index for index, learned in turns.flags.items() if not learned)
    return Conversation(turns.messages, learn_from=learn_from, not_learned=not_learned, prefixes=prefixes)


def _with_prefixes_joined(turns: Turns, learn_from: int) -> tuple[Turns, int, dict[int, int]]:
    """Return the turns with each prefix in the turn that it begins, where learning begins, and their lengths."""
    joined, prefixes, begun, start = Turns(), {}, "", len(turns.messages)
    for index, message in enumerate(turns.messages):
        if begun and message["role"] != "assistant":
            raise _prefix_alone(index)
        if (begun or index in turns.prefixes) and len(message) > 2:
            rule = "an answer that goes on from a given beginning (`prefix`) has calls or reasoning"
            fix = "write the turn whole, without the flag"
            raise RowFault(Reason.UNSUPPORTED_FIELD, rule, fix, at=f"message {index + 1}")
        if index in turns.prefixes:
            begun += message["content"]
            continue
        at = len(joined.messages)
        if index >= learn_from:
            start = min(start, at)
        if index in turns.flags:
            joined.flags[at] = turns.flags[index]
        if begun:
            prefixes[at] = len(begun)
        joined.messages.append(message | {"content": begun + message["content"]})
        begun = ""
    if begun:
        raise _prefix_alone(len(turns.messages))
    return joined, start, prefixes


def _prefix_alone(number: int) -> RowFault:
    rule = "a turn marked `prefix` has no turn of the assistant after it: nothing is left to learn"
    fix = "write the answer as the next turn, or remove the flag to learn this one"
    return RowFault(Reason.NO_ASSISTANT_TURN, rule, fix, at=f"message {number}")


def text_or_messages(row: Row, field: str, role: str) -> Turns:
    """Return `row[field]` as turns: a text is one message of `role`. Raises RowFault."""
    if isinstance(row[field], list):
        return convert_messages(row, field)
    if isinstance(row[field], Mapping) and {"role", "from"} & row[field].keys():
        rule = f"`{field}` must be text or a list of messages, got a single message"
        raise RowFault(Reason.NOT_MESSAGES, rule, "put it into a list: [{...}]")
    return Turns([{"role": role, "content": check_text(row, field)}])


def prompt_and(answer: str) -> Convert:
    """Return what makes a row of `prompt` and the field `answer` a conversation with the loss on the answer alone."""

    def convert(row: Row) -> tuple[Conversation, ...]:
        if isinstance(row["prompt"], str) and isinstance(row[answer], str):
            asked = {"role": "user", "content": check_text(row, "prompt")}
            answered = {"role": "assistant", "content": check_text(row, answer)}
            return (Conversation([asked, answered], learn_from=1),)
        prompt, answers = text_or_messages(row, "prompt", "user"), text_or_messages(row, answer, "assistant")
        if not any(message["role"] == "assistant" for message in answers.messages):
            raise RowFault(Reason.NO_ASSISTANT_TURN, f"`{answer}` has no assistant turn", "add the answer to learn")
        check_joint(prompt, answers, answer)
        return (build_conversation(prompt + answers, learn_from=len(prompt.messages)),)

    return convert


def check_joint(prompt: Turns, answers: Turns, answer: str) -> None:
    """Raise RowFault where the turns of the field `answer` cannot be what follows `prompt`."""
    if answers.messages[0]["role"] == "user":
        rule = f"`{answer}` begins with a turn of the user, and so does `prompt`: the question would be there twice"
        raise RowFault(Reason.AMBIGUOUS, rule, "give the answer alone, or write the whole conversation as `messages`")
    last = len(prompt.messages) - 1
    if prompt.messages[last]["role"] == "assistant" and last not in prompt.prefixes:
        rule = f"`prompt` ends with a turn of the assistant, and `{answer}` could go on with it or be another one"
        fix = f'mark that turn `"prefix": true` where `{answer}` goes on with it, else write `messages`'
        raise RowFault(Reason.AMBIGUOUS, rule, fix)


def _messages_of(field: str) -> Convert:
    return lambda row: (build_conversation(convert_messages(row, field)),)


def _last_answer_of(field: str) -> Convert:
    """Return what makes the messages in `field` a conversation with the loss on its last answer."""

    def convert(row: Row) -> tuple[Conversation, ...]:
        turns = convert_messages(row, field)
        answers = [index for index, message in enumerate(turns.messages) if message["role"] == "assistant"]
        return (build_conversation(turns, learn_from=answers[-1] if answers else 0),)

    return convert


def _from_instruction(row: Row) -> tuple[Conversation, ...]:
    asked, answer = read_instruction(row), check_text(row, "output")
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return (Conversation(turns, learn_from=1),)


def read_instruction(row: Row) -> str:
    """Return what an Alpaca row asks: its instruction and its input, where they are not empty. Raises RowFault."""
    asked = [check_text(row, name) for name in ("instruction", "input") if not is_missing(row.get(name))]
    if not asked:
        rule = "`instruction` and `input` are empty"
        raise RowFault(Reason.EMPTY_FIELD, rule, "give a text or remove the row")
    return "\n\n".join(asked)


MESSAGES = Shape("messages", ("messages",), _messages_of("messages"))
CONVERSATIONS = Shape("conversations", ("conversations",), _messages_of("conversations"))
"""ShareGPT."""
LAST_OF_MESSAGES = Shape("messages", ("messages",), _last_answer_of("messages"))
LAST_OF_CONVERSATIONS = Shape("conversations", ("conversations",), _last_answer_of("conversations"))
"""The same conversations in a mode whose rows carry a number, which is that of the last answer."""
PROMPT_OUTPUT = Shape("prompt/output", ("prompt", "output"), prompt_and("output"), history=True)
PROMPT_COMPLETION = Shape("prompt/completion", ("prompt", "completion"), prompt_and("completion"), history=True)
INSTRUCTION = Shape(
    "instruction/output",
    ("instruction", "output"),
    _from_instruction,
    optional=("input",),
    may_be_null=("instruction",),
    history=True,
)
"""Alpaca."""
TEXT = Shape("text", ("text",), lambda row: (Conversation(text=check_text(row, "text")),), is_text=True)
