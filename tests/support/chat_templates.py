"""Real chat templates, those that TRL has, with a tokenizer that knows their markers; and what is learned of a row."""

from __future__ import annotations

import importlib.util
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llm_tuning.data.chat import ChatTemplate
from llm_tuning.data.faults import RowFault
from llm_tuning.data.rows import Conversation, Example, Learn
from llm_tuning.data.tokenised import TokenisedRow, TokenisedSequence
from llm_tuning.data.tokens import RowTokenizer
from tests.support.tokenizers import chat_level

SPEC = importlib.util.find_spec("trl")
assert SPEC is not None
assert SPEC.origin is not None
FOLDER = Path(SPEC.origin).parent / "chat_templates"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
NO_TEXT_CHATS = ("smolvlm", "idefics3", "llava_next")
"""Their templates take contents in parts alone, or write no text at all."""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
STOPS = {"glm4moe": "<|user|> <|observation|> <|endoftext|>", "phi3": "<|end|> </s> <|assistant|>"}
STOPS |= {"phi3_5": STOPS["phi3"]}
OTHER_STOPS = "<|im_end|> <|eot_id|> <end_of_turn> <turn|> <|return|> <|call|> <|eot|> <|END_OF_TURN_TOKEN|> </s>"
OTHER_STOPS += " <|tool_response> <\uff5cend\u2581of\u2581sentence\uff5c>"


@cache
def tokenizer_of(name: str, learn: Learn = "all", learn_reasoning: bool = True) -> tuple[RowTokenizer, Tokenizer]:
    encoder = chat_level()
    template = ChatTemplate((FOLDER / f"{name}.jinja").read_text(), name, TOKENS)
    stops = STOPS.get(name.removesuffix("_training"), OTHER_STOPS).split()
    stop_ids = [number for token in stops if (number := encoder.token_to_id(token)) is not None]
    return RowTokenizer(encoder, template, stop_ids=stop_ids, learn=learn, learn_reasoning=learn_reasoning), encoder


def row_of(tokenizer: RowTokenizer, messages: list[dict[str, Any]], **more: Any) -> TokenisedRow | RowFault:
    max_length = more.pop("max_length", 100_000)
    (row,) = tokenizer.tokenise([Example(1, (Conversation(messages, **more),))], max_length=max_length)
    return row


def learned_runs(sequence: TokenisedSequence) -> list[tuple[int, list[int]]]:
    """Each unbroken run of learned tokens: where it begins, and its ids."""
    pairs = zip(sequence.input_ids.tolist(), sequence.learned.tolist(), strict=True)
    runs = groupby(enumerate(pairs), key=lambda item: item[1][1])
    listed = [(learned, list(run)) for learned, run in runs]
    return [(run[0][0], [number for _, (number, _) in run]) for learned, run in listed if learned]


def texts_learned(row: TokenisedRow, encoder: Tokenizer) -> list[str]:
    runs = [ids for sequence in row.sequences for _, ids in learned_runs(sequence)]
    return [encoder.decode(ids, skip_special_tokens=False) for ids in runs]
