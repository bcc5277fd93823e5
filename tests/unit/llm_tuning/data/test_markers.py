"""Texts that bring a template's own markers along: refused, stripped of a second end, or counted, never in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from llm_tuning.data.chat import ChatTemplate
from llm_tuning.data.check import DatasetRefused, examine_dataset
from llm_tuning.data.faults import Fact, Reason, RowFault
from llm_tuning.data.rows import Conversation, Example
from llm_tuning.data.tokenised import TokenisedRow
from llm_tuning.data.tokens import RowTokenizer
from llm_tuning.modes import MODES
from tests.support.tiny_base import CHAT_TEMPLATE
from tests.support.tokenizers import chat_level

WriteLines = Callable[[Sequence[Any]], Path]
TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}


def encoder_with_bos() -> Tokenizer:
    """Its post-processor begins texts with BOS, as those of Llama 3, Gemma and Mistral."""
    encoder = chat_level()
    bos = "<|begin_of_text|>"
    encoder.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{bos} $A", special_tokens=[(bos, encoder.token_to_id(bos))]
    )
    return encoder


def row_of(conversation: Conversation, *stops: str) -> tuple[TokenisedRow | RowFault, Tokenizer]:
    encoder = encoder_with_bos()
    stop_ids = [encoder.token_to_id(stop) for stop in stops]
    tokenizer = RowTokenizer(encoder, ChatTemplate(CHAT_TEMPLATE, "t", TOKENS), stop_ids=stop_ids)
    (row,) = tokenizer.tokenise([Example(1, (conversation,))], max_length=1000)
    return row, encoder


def chat(prompt: str, answer: str, *, system: str = "") -> Conversation:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Conversation(([{"role": "system", "content": system}] if system else []) + messages)


TEXTS = {
    "plain words": "<|begin_of_text|>plain words<|im_end|>",
    "<|begin_of_text|>with its own": "<|begin_of_text|>with its own<|im_end|>",
    "ended<|im_end|>": "<|begin_of_text|>ended<|im_end|>",
    "ended, then a line<|im_end|>\n": "<|begin_of_text|>ended, then a line<|im_end|>\n",
    "ended otherwise<|endoftext|>": "<|begin_of_text|>ended otherwise<|endoftext|>",
    "a line\n": "<|begin_of_text|>a line\n<|im_end|>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n": "<|begin_of_text|><|im_start|>user\nHi"
    "<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n",
}


@pytest.mark.parametrize(("text", "want"), TEXTS.items())
def test_a_text_has_one_begin_and_one_end(text: str, want: str) -> None:
    row, encoder = row_of(Conversation(text=text), "<|endoftext|>")
    assert isinstance(row, TokenisedRow)
    (sequence,) = row.sequences
    assert encoder.decode(sequence.input_ids.tolist(), skip_special_tokens=False) == want
    ids, learned = sequence.input_ids.tolist(), sequence.learned.tolist()
    last = max(at for at, is_learned in enumerate(learned) if is_learned)
    assert encoder.id_to_token(ids[last]) in ("<|im_end|>", "<|endoftext|>"), "nothing behind the end is learned"
    assert learned[1 : last + 1] == [True] * last
    assert not learned[0]
    assert sequence.learns_end
    assert (Fact.MARKED_TEXTS in row.facts) == ("<|" in text)


RENDERED = [
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "\n<|im_start|>system\nBe brief<|im_end|>\n",
    "<s>[INST] Hi [/INST]",
    "[INST] Hi [/INST]",
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "<|begin_of_text|>Hi",
    "<bos><start_of_turn>user\nHi",
    "<start_of_turn>user\nHi",
    "<|user|>\nHi<|end|>",
    "<\uff5cUser\uff5c>Hi",
]


@pytest.mark.parametrize("text", RENDERED)
@pytest.mark.parametrize("where", ["prompt", "answer", "system"])
def test_a_text_that_is_rendered_already_gets_no_template_around_it(text: str, where: str) -> None:
    texts = {"prompt": "Hi", "answer": "Ho", "system": ""} | {where: text}
    fault, _ = row_of(chat(texts["prompt"], texts["answer"], system=texts["system"]))
    assert isinstance(fault, RowFault)
    assert fault.reason is Reason.ALREADY_RENDERED
    assert "give the plain texts" in fault.fix
    assert "Hi" not in f"{fault}{fault.fix}"


@pytest.mark.parametrize("answer", ["Business<|im_end|>", "Business<|im_end|>\n", "Business<|endoftext|><|im_end|>"])
def test_the_base_s_own_end_is_taken_from_an_answer_and_said(answer: str) -> None:
    row, encoder = row_of(chat("Which section?", answer), "<|endoftext|>")
    assert isinstance(row, TokenisedRow)
    assert row.facts == {Fact.ENDS_REMOVED}
    (sequence,) = row.sequences
    assert encoder.decode(sequence.input_ids.tolist(), skip_special_tokens=False).endswith("\nBusiness<|im_end|>\n")
    assert sequence.messages == chat("Which section?", "Business").messages


@pytest.mark.parametrize(
    "end", ["</s>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"]
)
def test_the_end_of_another_model_is_refused(end: str) -> None:
    fault, _ = row_of(chat("Which section?", f"Business{end}"))
    assert isinstance(fault, RowFault)
    assert fault.rule.startswith(f"the answer ends with {end}")
    empty, _ = row_of(chat("Which section?", "<|im_end|>"))
    assert isinstance(empty, RowFault)
    assert empty.reason is Reason.EMPTY_FIELD
    html, _ = row_of(chat("Which section?", "It is <s>Sport</s>"))
    assert isinstance(html, TokenisedRow)


def test_special_tokens_inside_of_messages_are_said() -> None:
    row, _ = row_of(chat("What does <|im_start|>assistant do?", "It begins a turn."))
    assert isinstance(row, TokenisedRow)
    assert row.facts == {Fact.SPECIAL_TOKENS}
    plain, _ = row_of(chat("What does <think> do? a < b [INST", "</b>"))
    assert isinstance(plain, TokenisedRow)
    assert not plain.facts


def test_the_report_says_it_with_row_numbers(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    def report(rows: list[Any]) -> str:
        return examine_dataset(
            write_lines(rows), form=MODES["sft"].rows, tokenizer_dir=tokenizer_dir, max_length=200
        ).summary()

    plain = {"prompt": "Hi", "output": "Ho"}
    said = report([plain, plain | {"output": "Ho<|im_end|>"}, plain | {"prompt": "What is <|im_end|> for?"}])
    assert "Note: an answer of row 2 ended with an end token of the base: it is removed" in said
    assert "Warning: messages of row 3 hold special tokens of the base" in said
    said = report([{"text": "plain"}, {"text": "<|im_start|>user\nHi<|im_end|>"}, {"text": "[INST] Hi [/INST]"}])
    assert "Note: texts of row 2 hold special tokens of the base" in said
    assert "Warning: texts of row 3 begin with a chat marker that is no token of the base" in said
    refused = examine_dataset(
        write_lines([plain, plain | {"prompt": "<|im_start|>user\nHi<|im_end|>\n"}, plain]),
        form=MODES["sft"].rows,
        tokenizer_dir=tokenizer_dir,
        max_length=200,
    )
    assert "row 2, message 1: the text of the user is rendered already" in str(DatasetRefused(refused))
