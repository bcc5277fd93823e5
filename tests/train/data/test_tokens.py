"""Token ids against those of transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.chat import ChatTemplate
from llm_tuning.data.rows import Conversation, Example
from llm_tuning.data.tokenised import TokenisedRow, TokenisedSequence
from llm_tuning.data.tokens import RowTokenizer
from tests.support.other_rows import assistant, user
from tests.support.random_chats import random_conversation
from tests.support.tokenizers import chat_level


def tokenised(tokenizer: RowTokenizer, example: Example, max_length: int = 100_000) -> TokenisedSequence:
    (row,) = tokenizer.tokenise([example], max_length=max_length)
    assert isinstance(row, TokenisedRow), row
    (sequence,) = row.sequences
    return sequence


def test_ids_are_those_of_apply_chat_template(tokenizer_dir: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer = RowTokenizer.load(tokenizer_dir)
    assert tokenizer is not None
    for seed in range(20):
        messages = random_conversation(seed)
        want = theirs.apply_chat_template(messages, tokenize=True)["input_ids"]
        assert tokenised(tokenizer, of(1, messages=messages)).input_ids.tolist() == want


def of(number: int, **conversation: Any) -> Example:
    """A row of one sequence."""
    return Example(number, (Conversation(**conversation),))


def trl_templates() -> list[str]:
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return sorted(str(path) for path in (Path(spec.origin).parent / "chat_templates").glob("*.jinja"))


NO_TEXT_CHATS = ("smolvlm", "idefics3", "llava_next")
TRAINING = [path for path in trl_templates() if path.endswith("_training.jinja")]


def their_tokenizer(template: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=chat_level(), bos_token="<s>", eos_token="</s>")
    theirs.chat_template = Path(template).read_text()
    return theirs


def ours(theirs: Any, name: str) -> RowTokenizer:
    template = ChatTemplate(theirs.chat_template, name, {"bos_token": "<s>", "eos_token": "</s>"})
    stops = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|return|>", "<|end|>", "<|eot|>", "</s>"]
    stops += ["<|END_OF_TURN_TOKEN|>", "<|user|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"]
    encoder = chat_level()
    return RowTokenizer(encoder, template, stop_ids=[encoder.token_to_id(stop) for stop in stops])


@pytest.mark.parametrize("path", [path for path in trl_templates() if not Path(path).stem.startswith(NO_TEXT_CHATS)])
def test_prompts_are_those_of_apply_chat_template(path: str) -> None:
    """With the generation prompt, as a server asks for them, for every sequence of chats of one to four turns."""
    theirs = their_tokenizer(path)
    tokenizer = ours(theirs, path)
    for seed in range(6):
        messages = [message for message in random_conversation(seed) if message["role"] != "system"]
        (row,) = tokenizer.tokenise([of(1, messages=messages)], max_length=100_000)
        assert isinstance(row, TokenisedRow), row
        assert row.answers == len(messages) // 2
        for sequence in row.sequences:
            assert sequence.messages is not None
            prompt = theirs.apply_chat_template(sequence.messages[:-1], add_generation_prompt=True, tokenize=True)
            assert sequence.input_ids[: sequence.prompt_tokens].tolist() == prompt["input_ids"]


@pytest.mark.parametrize("path", [path for path in TRAINING if not Path(path).stem.startswith(NO_TEXT_CHATS)])
def test_the_loss_mask_is_that_of_trl_but_for_headers_and_what_follows_the_end(path: str) -> None:
    """TRL also learns what some generation prompts hold, and the line end behind the end token: never generated."""
    theirs = their_tokenizer(path)
    tokenizer = ours(theirs, path)
    messages = [user("q one"), assistant("Answer one."), user("q two"), assistant("Answer two.")]
    (row,) = tokenizer.tokenise([of(1, messages=messages)], max_length=100_000)
    assert isinstance(row, TokenisedRow)
    last = row.sequences[-1]
    found = theirs.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    mask, ids = found["assistant_masks"], found["input_ids"]
    prompt = last.prompt_tokens
    their_text = theirs.decode([i for i, learned in zip(ids, mask, strict=True) if learned])
    our_text = "".join(theirs.decode(sequence.input_ids[sequence.learned].tolist()) for sequence in row.sequences)
    words = [word for text in (their_text, our_text) for word in ("Answer one.", "Answer two.") if word in text]
    assert len(words) == 4, (their_text, our_text)
    if ids[:prompt] == last.input_ids[:prompt].tolist():
        learned_by_us = {at for at in range(prompt, len(ids)) if at < len(last.learned) and last.learned[at]}
        learned_by_them = {at for at in range(prompt, len(ids)) if mask[at]}
        assert learned_by_us <= learned_by_them | {len(ids)}
        more = theirs.decode([ids[at] for at in sorted(learned_by_them - learned_by_us)])
        assert not more.replace("</s>", "").strip(), "Phi-3 ends the conversation behind the end of the turn"
