"""vLLM's parsers without its engine: answers as a model would generate them, read whole and streamed.

A process of vLLM's own environment reads them as its server does: the request is adjusted by the parser, the text is
that of the tokens without the last one, which ended it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.engines.vllm.environment import OFFLINE
from tests.support.vllm_server import VLLM_PYTHON

SCRIPT = """
import functools, json, logging, sys
logging.disable(logging.CRITICAL)
from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager

@functools.cache
def load(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = dict(vocab=tokenizer.get_vocab(), tokens=tokenizer.all_special_tokens, ids=tokenizer.all_special_ids)
    kept = dict(  # each parser asks for them, which takes half a second
        get_vocab=lambda self: known["vocab"],
        all_special_tokens=property(lambda self: known["tokens"]),
        all_special_ids=property(lambda self: known["ids"]),
    )
    tokenizer.__class__ = type(type(tokenizer).__name__, (type(tokenizer),), kept)
    return tokenizer

def pieces(tokenizer, ids, request):
    skip = request.skip_special_tokens
    done, waiting, found = "", [], []
    for end in range(1, len(ids) + 1):
        waiting.append(ids[end - 1])
        text = tokenizer.decode(ids[:end], skip_special_tokens=skip, spaces_between_special_tokens=False)
        if text.endswith("\\ufffd"):
            continue
        found.append((text[len(done):], waiting))
        done, waiting = text, []
    return done, found

def message(reasoning, content, calls):
    calls = [{"name": name, "arguments": json.loads(arguments or "null")} for name, arguments in calls]
    return {"reasoning": reasoning or "", "content": content or "", "calls": calls}

def read(tokenizer, answer, names):
    tools, harmony = answer["tools"], names["harmony"]
    kind = ParserManager.get_parser(
        names["tool_calls"], names["reasoning"], enable_auto_tools=bool(names["tool_calls"]), is_harmony=harmony,
        tokenizer=tokenizer,
    )
    def begin():
        body = {"model": "m", "messages": json.loads(json.dumps(answer["messages"]))}
        if tools:
            body["tools"] = tools
        request = ChatCompletionRequest(**body)
        parser = kind(tokenizer, request.tools, chat_template_kwargs={}, model_config=None)
        request = parser.adjust_request(request)
        parser.set_prompt_token_ids(prompt)
        return parser, request
    prompt = tokenizer(answer["prompt"], add_special_tokens=False)["input_ids"]
    ids = tokenizer(answer["answer"], add_special_tokens=False)["input_ids"]
    stops = [tokenizer.get_vocab()[token] for token in names["stops"]]
    end = next((at for at, token in enumerate(ids) if token in stops), len(ids))
    ids, stop = ids[:end], (ids[end:] or stops)[0]
    parser, request = begin()
    text, given = pieces(tokenizer, ids, request)
    reasoning, content, calls = parser.parse(
        text, request, enable_auto_tools=True, model_output_token_ids=[*ids, stop]
    )
    yield message(reasoning, content, [(call.name, call.arguments) for call in calls or []])
    for width in (1, 4, len(given) or 1):
        parser, request = begin()
        groups = [given[at : at + width] for at in range(0, len(given), width)]
        deltas = [("".join(text for text, _ in group), sum((ids for _, ids in group), [])) for group in groups]
        reasoning, content, calls = "", "", {}
        for delta, tokens in [*deltas, ("", [stop])]:
            came = parser.parse_delta(
                delta, tokens, request, prompt_token_ids=prompt, finished=tokens == [stop]
            )
            if came is None:
                continue
            reasoning += came.reasoning or ""
            content += came.content or ""
            for call in came.tool_calls or []:
                known = calls.setdefault(call.index, ["", ""])
                known[0] += call.function.name or ""
                known[1] += call.function.arguments or ""
        yield message(reasoning, content, [calls[index] for index in sorted(calls)])

def reads(case):
    tokenizer = load(case["folder"])
    print(len(case["answers"]), case["parsers"], file=sys.stderr)
    for names in case["parsers"]:
        for answer in case["answers"]:
            try:
                yield list(read(tokenizer, answer, names | {"stops": case["stops"], "harmony": case["harmony"]}))
            except Exception as error:
                yield f"{type(error).__name__}: {error}"

given = json.load(sys.stdin)
from vllm.reasoning import _REASONING_PARSERS_TO_REGISTER as reasoning_parsers
from vllm.tool_parsers import _TOOL_PARSERS_TO_REGISTER as tool_parsers
print(json.dumps({
    "tool_calls": sorted(tool_parsers), "reasoning": sorted(reasoning_parsers),
    "reads": [list(reads(case)) for case in given],
}))
"""


@dataclass(frozen=True)
class Answer:
    """One answer of a conversation, as a model generates it."""

    name: str
    prompt: str
    answer: str
    messages: list[dict[str, Any]]
    """Those before it, as a request has them."""
    tools: list[dict[str, Any]] | None


@dataclass(frozen=True)
class Case:
    """Answers of one base, to be read by each of several (tool calls, reasoning) pairs of parsers."""

    folder: Path
    stops: Sequence[str]
    answers: Sequence[Answer]
    parsers: Sequence[tuple[str | None, str | None]]
    harmony: bool = False


@dataclass(frozen=True)
class Parsed:
    """What vLLM's parsers say."""

    tool_calls: list[str]
    """The names in its registry."""
    reasoning: list[str]
    reads: list[list[Any]]
    """Of each case, pair by pair and answer by answer: the message read whole, then streamed one token at a time, in
    fours and at once; or the error."""


def parse(cases: Sequence[Case], home: Path) -> Parsed:
    """Have vLLM read all answers, in one process."""
    given = [
        {
            "folder": str(case.folder),
            "stops": list(case.stops),
            "answers": [vars(answer) for answer in case.answers],
            "parsers": [{"tool_calls": calls, "reasoning": reasoning} for calls, reasoning in case.parsers],
            "harmony": case.harmony,
        }
        for case in cases
    ]
    done = subprocess.run(
        [VLLM_PYTHON, "-c", SCRIPT],
        input=json.dumps(given),
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1"} | OFFLINE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Parsed(**json.loads(done.stdout.splitlines()[-1]))
