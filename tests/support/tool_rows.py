"""Requests with the tool that does each: rows of calls in Qwen3's own template, and a small base for them.

A request names a verb and a thing. Which tool does what the verb says is in the rows alone, and the thing is the call's
argument; requests that are held out join a verb and a thing that the training rows have with others only.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.data.rows import Conversation, Example
from llm_tuning.data.token_rows import TokenRows, TokenRowsWriter
from llm_tuning.data.tokenised import TokenisedRow
from llm_tuning.data.tokens import RowTokenizer

TOOL_OF = {
    "open": "alpha",
    "find": "beta",
    "count": "gamma",
    "close": "gamma",
    "sort": "alpha",
    "print": "beta",
}
THINGS = ("file", "list", "string", "module", "class", "table", "number", "folder")
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {
                "type": "object",
                "properties": {"thing": {"type": "string"}, "times": {"type": "integer"}},
                "required": ["thing", "times"],
            },
        },
    }
    for name in ("alpha", "beta", "gamma")
]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>")


@dataclass(frozen=True)
class Request:
    verb: str
    thing: str
    tool: str

    @property
    def messages(self) -> list[dict[str, Any]]:
        function = {"name": self.tool, "arguments": {"thing": self.thing, "times": 1}}
        return [
            {"role": "user", "content": f"Please {self.verb} the {self.thing}."},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        ]


def requests(*, held_out: bool | None = None) -> list[Request]:
    """All requests with the tool that is right, or the quarter of them that is held out, or the others."""
    return [
        Request(verb, thing, tool)
        for v, (verb, tool) in enumerate(TOOL_OF.items())
        for t, thing in enumerate(THINGS)
        if held_out is None or ((v + t) % 4 == 3) == held_out
    ]


def with_other_tools(chosen: Sequence[Request]) -> list[Request]:
    """The same requests, each with the tool that follows the right one in the list."""
    names = [tool["function"]["name"] for tool in TOOLS]
    return [Request(each.verb, each.thing, names[(names.index(each.tool) + 1) % len(names)]) for each in chosen]


def qwen3_template() -> str:
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / "qwen3.jinja").read_text()


def make_tool_tokenizer(path: Path) -> Path:
    """Write a tokenizer that was trained on the rows, and Qwen3's template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [json.dumps([each.messages, TOOLS]) + qwen3_template() for each in requests()]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "chat_template.jinja").write_text(qwen3_template())
    return path


def make_tool_base(path: Path, *, seed: int = 0, hidden_size: int = 64, layers: int = 2) -> Path:
    """Write a random Llama with that tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tool_tokenizer(path)
    torch.manual_seed(seed)
    size = LlamaConfig(
        vocab_size=640,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
        head_dim=32,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(size).to(torch.float32).save_pretrained(path)
    return path


def write_tool_rows(path: Path, base: Path, *parts: Sequence[Request], tools: bool = True) -> TokenRows:
    """Tokenise requests as the data check does; a second part is what to evaluate on."""
    shown = TOOLS if tools else None
    return write_conversations(path, base, *([Conversation(each.messages, tools=shown) for each in p] for p in parts))


def write_conversations(
    path: Path,
    base: Path,
    *parts: Sequence[Conversation],
    numbers: Sequence[float] = (),
    learn_reasoning: bool = True,
) -> TokenRows:
    """Tokenise conversations as the data check does, a row each; a second part is what to evaluate on."""
    tokenizer = RowTokenizer.load(base, learn_reasoning=learn_reasoning)
    assert tokenizer is not None
    number = 0
    with TokenRowsWriter(path) as writer:
        for part, conversations in enumerate(parts):
            if part == 1:
                writer.begin_evaluation()
            examples = [Example(at, (conversation,)) for at, conversation in enumerate(conversations)]
            for row in tokenizer.tokenise(examples, max_length=2048):
                assert isinstance(row, TokenisedRow), row
                for place, found in enumerate(row.sequences):
                    source: dict[str, Any] = {"messages": found.messages, "tools": found.tools}
                    source |= {"prompt_tokens": found.prompt_tokens}
                    if place == 0:
                        value = numbers[number] if numbers else math.nan
                        writer.append(found.input_ids, found.learned, row_number=number, number=value, **source)
                    else:
                        writer.append_sequence(found.input_ids, found.learned, **source)
                number += 1
    return TokenRows.open(path)


def teach_format(base: Path, target: Path, *, steps: tuple[int, int], seed: int = 0) -> Path:
    """A copy of `base` that calls tools in the right form, and always the wrong one; every weight trained.

    First without the tools in the prompt, which are six times as many tokens as the request and the call.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from llm_tuning.trainers.micro_batches import pad

    shutil.copytree(base, target)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for name, count in zip(("plain", "tools"), steps, strict=True):
        rows = write_tool_rows(target / name, base, with_other_tools(requests()), tools=name == "tools")
        for _ in range(count):
            batch = pad([rows[int(i)] for i in torch.randint(len(rows), (32 if name == "plain" else 16,))])
            states = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state[:, :-1]
            at = batch.labels[:, 1:] != -100
            loss = torch.nn.functional.cross_entropy(model.lm_head(states[at]), batch.labels[:, 1:][at])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        shutil.rmtree(target / name)
    model.save_pretrained(target)
    return target
