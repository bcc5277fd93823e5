"""Real tokenizers with their templates: what is trained as the prompt of an answer is what transformers makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_tuning.data.faults import Fact, RowFault
from llm_tuning.data.rows import Conversation, Example
from llm_tuning.data.tokenised import TokenisedRow
from llm_tuning.data.tokens import RowTokenizer
from tests.support.zoo_tokenizers import layouts, write_tokenizer

ANSWERS = (
    "Answer {0}.",
    "\n\nAnswer {0}\n",
    "  Answer {0}",
    "\u7b54\u6848 {0}",
    "123 + {0} = ...",
    "def f():\n\treturn {0}",
)


@pytest.mark.parametrize("name", list(layouts()))
def test_prompts_are_those_of_transformers_and_every_answer_ends(name: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    write_tokenizer(name, tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)  # tokenizer.json as it is, whatever class is named
    ours = RowTokenizer.load(tmp_path)
    assert ours is not None
    if theirs.chat_template is None:
        pytest.skip("its bases have no chat template: the plain one is ours")
    for answer in ANSWERS:
        messages = [
            {"role": role, "content": text.format(turn)}
            for turn in range(3)
            for role, text in (("user", "Question {0}?"), ("assistant", answer))
        ]
        (row,) = ours.tokenise([Example(1, (Conversation(messages),))], max_length=10_000)
        assert not isinstance(row, RowFault), row
        assert isinstance(row, TokenisedRow)
        assert row.answers == 3
        assert Fact.BOUNDARY_MERGES not in row.facts
        learned = ""
        for sequence in row.sequences:
            assert sequence.messages is not None
            prompt = theirs.apply_chat_template(sequence.messages[:-1], add_generation_prompt=True, tokenize=True)
            assert sequence.input_ids[: sequence.prompt_tokens].tolist() == prompt["input_ids"]
            assert sequence.learns_end or not ours.stop_tokens
            learned += theirs.decode(sequence.input_ids[sequence.learned].tolist())
        words = [answer.format(turn).strip() for turn in range(3)]
        at = [learned.index(word) for word in words]
        assert at == sorted(at)
