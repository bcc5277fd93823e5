"""Which tokens are learned: exactly the assistant's words and the end token, for every kind of tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import WhitespaceSplit

from llm_tuning.data.chat import ChatTemplate, load_chat_template, plain_template
from llm_tuning.data.check import check_dataset
from llm_tuning.data.faults import Fact, Reason, RowFault
from llm_tuning.data.rows import Conversation, Example
from llm_tuning.data.tokenised import TokenisedRow, TokenisedSequence
from llm_tuning.data.tokens import RowTokenizer
from llm_tuning.errors import InputError, in_words
from llm_tuning.modes import MODES
from tests.support.other_rows import assistant, user
from tests.support.random_chats import random_conversation
from tests.support.tiny_base import CHAT_TEMPLATE
from tests.support.tokenizers import byte_level, metaspace

WriteLines = Callable[[Sequence[Any]], Path]
TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{{ m.content }}</s>\n"
    "{% else %}<|user|>{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Special tokens around every turn, white space after the end token."""
DROPS_OLD_ANSWERS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
    "{{ m.content if loop.last else m.content.split('|')[-1] }}</s>"
    "{% else %}<|user|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def of(number: int, **conversation: Any) -> Example:
    """A row of one sequence."""
    return Example(number, (Conversation(**conversation),))


def row_of(tokenizer: RowTokenizer, example: Example, max_length: int = 100_000) -> TokenisedRow | RowFault:
    (row,) = tokenizer.tokenise([example], max_length=max_length)
    return row


def tokenised(tokenizer: RowTokenizer, example: Example, max_length: int = 100_000) -> TokenisedSequence:
    row = row_of(tokenizer, example, max_length)
    assert isinstance(row, TokenisedRow), row
    (sequence,) = row.sequences
    return sequence


def learned_runs(row: TokenisedSequence, encoder: Tokenizer) -> list[str]:
    """The text of each unbroken run of learned tokens."""
    pairs = zip(row.input_ids.tolist(), row.learned.tolist(), strict=True)
    runs = groupby(pairs, key=lambda pair: pair[1])
    return [encoder.decode([i for i, _ in run], skip_special_tokens=False) for learned, run in runs if learned]


@pytest.mark.parametrize("seed", range(30))
def test_learned_tokens_decode_to_the_answers_and_their_end_token(seed: int) -> None:
    encoder = byte_level()
    tokenizer = RowTokenizer(encoder, ChatTemplate(TURNS, "turns", TOKENS), stop_ids=[])
    messages = random_conversation(seed)
    row = tokenised(tokenizer, of(1, messages=messages))
    answers = [f"{m['content']}</s>" for m in messages if m["role"] == "assistant"]
    assert learned_runs(row, encoder) == answers
    assert row.learns_end
    assert not row.learned[0]


@pytest.mark.parametrize("template", [TURNS, CHAT_TEMPLATE, plain_template().text], ids=["turns", "chatml", "plain"])
@pytest.mark.parametrize("kind", [byte_level, metaspace])
@pytest.mark.parametrize("seed", range(12))
def test_prompts_have_the_tokens_that_they_have_alone_and_answers_are_learned_whole(
    template: str, kind: Any, seed: int
) -> None:
    encoder: Tokenizer = kind()
    chat = ChatTemplate(template, "a template", TOKENS)
    tokenizer = RowTokenizer(encoder, chat, stop_ids=[])
    messages = random_conversation(seed)
    row = row_of(tokenizer, of(1, messages=messages))
    assert isinstance(row, TokenisedRow)
    assert Fact.BOUNDARY_MERGES not in row.facts
    for sequence in row.sequences:
        assert sequence.messages is not None
        prompt = chat.render(sequence.messages[:-1], add_generation_prompt=True)
        ids = sequence.input_ids.tolist()
        assert ids[: sequence.prompt_tokens] == encoder.encode(prompt, add_special_tokens=False).ids
        assert sequence.learned[sequence.prompt_tokens]
        assert not sequence.learned[sequence.prompt_tokens - 1]
    texts = [
        "".join(text[at] for at in sorted({at for span in spans for at in range(*span)}))
        for text, spans in ((shown.text, shown.spans) for shown in tokenizer.shown(Conversation(messages)))
    ]
    ends = "<|im_end|>\n" if template == CHAT_TEMPLATE else "</s>"
    answers = [f"{m['content']}{ends}" for m in messages if m["role"] == "assistant"]
    assert sorted("".join(texts)) == sorted("".join(answers))


def test_a_batch_gives_the_same_rows_as_one_by_one(tokenizer_dir: Path) -> None:
    tokenizer = RowTokenizer.load(tokenizer_dir)
    assert tokenizer is not None
    examples = [of(i, messages=random_conversation(i)) for i in range(10)]
    for example, row in zip(examples, tokenizer.tokenise(examples, max_length=1000), strict=True):
        alone = row_of(tokenizer, example, 1000)
        assert isinstance(row, TokenisedRow)
        assert isinstance(alone, TokenisedRow)
        for found, want in zip(row.sequences, alone.sequences, strict=True):
            assert found.input_ids.tolist() == want.input_ids.tolist()
            assert found.learned.tolist() == want.learned.tolist()


def test_a_prompt_with_answers_in_it_is_context_only() -> None:
    encoder = byte_level()
    tokenizer = RowTokenizer(encoder, ChatTemplate(TURNS, "turns", TOKENS), stop_ids=[])
    messages = [user("q"), assistant("shown"), user("r"), assistant("learned")]
    row = tokenised(tokenizer, of(1, messages=messages, learn_from=3))
    assert learned_runs(row, encoder) == ["learned</s>"]


def test_a_template_that_rewrites_history_gives_each_answer_a_sequence() -> None:
    encoder = byte_level()
    tokenizer = RowTokenizer(encoder, ChatTemplate(DROPS_OLD_ANSWERS, "drops", TOKENS), stop_ids=[])
    messages = [user("q"), assistant("why|yes"), user("r"), assistant("how|no")]
    row = row_of(tokenizer, of(1, messages=messages))
    assert isinstance(row, TokenisedRow)
    assert [learned_runs(sequence, encoder) for sequence in row.sequences] == [["why|yes</s>"], ["how|no</s>"]]
    assert [sequence.messages for sequence in row.sequences] == [messages[:2], messages]
    assert Fact.SEVERAL_SEQUENCES in row.facts


def test_an_answer_is_learned_behind_the_generation_prompt_though_the_template_begins_it_otherwise() -> None:
    encoder = byte_level()
    text = TURNS.replace("{% if add_generation_prompt %}<|assistant|>", "{% if add_generation_prompt %}<|assistant|>>>")
    chat = ChatTemplate(text, "t", TOKENS)
    row = row_of(RowTokenizer(encoder, chat, stop_ids=[]), of(1, messages=[user("q"), assistant("a")]))
    assert isinstance(row, TokenisedRow)
    assert row.facts == {Fact.PROMPT_DIFFERS}
    (sequence,) = row.sequences
    assert encoder.decode(sequence.input_ids.tolist(), skip_special_tokens=False).endswith("<|assistant|>>>a</s>\n")
    assert learned_runs(sequence, encoder) == ["a</s>"]


def test_of_two_end_tokens_the_first_ends_the_turn() -> None:
    encoder = byte_level()
    text = (
        "<|user|>{{ messages[0].content }}<|assistant|>"
        "{% if messages|length > 1 %}{{ messages[1].content }}<|end|>\n</s>{% endif %}"
    )
    stop = encoder.token_to_id("<|end|>")
    row = tokenised(
        RowTokenizer(encoder, ChatTemplate(text, "t", TOKENS), stop_ids=[stop]),
        of(1, messages=[user("q"), assistant("a")]),
    )
    assert learned_runs(row, encoder) == ["a<|end|>"]
    assert row.learns_end


def test_an_end_token_inside_an_answer_does_not_end_it() -> None:
    encoder = byte_level()
    row = tokenised(
        RowTokenizer(encoder, ChatTemplate(TURNS, "turns", TOKENS), stop_ids=[]),
        of(1, messages=[user("q"), assistant("a</s>b")]),
    )
    assert learned_runs(row, encoder) == ["a</s>b</s>"]


def test_without_an_end_token_the_whole_turn_is_learned_and_said() -> None:
    encoder = byte_level()
    template = plain_template({})
    row = tokenised(RowTokenizer(encoder, template, stop_ids=[]), of(1, messages=[user("q"), assistant("a")]))
    assert learned_runs(row, encoder) == ["a\n\n"]
    assert not row.learns_end


def test_text_is_learned_whole_between_bos_and_eos() -> None:
    encoder = metaspace()
    tokenizer = RowTokenizer(encoder, plain_template(TOKENS), stop_ids=[])
    row = tokenised(tokenizer, of(1, text="some text"))
    assert row.input_ids.tolist() == [0, *encoder.encode("some text", add_special_tokens=False).ids, 1]
    assert row.learned.tolist() == [False] + [True] * (len(row.input_ids) - 1)
    assert row.learns_end


def test_rows_are_cut_at_the_end_and_what_is_lost_is_known() -> None:
    encoder = byte_level()
    tokenizer = RowTokenizer(encoder, ChatTemplate(TURNS, "turns", TOKENS), stop_ids=[])
    example = of(1, messages=[user("question"), assistant("a rather long answer")])
    whole = tokenised(tokenizer, example)
    assert whole.full_length == len(whole.input_ids)
    cut = tokenised(tokenizer, example, max_length=whole.full_length - 2)
    assert cut.input_ids.tolist() == whole.input_ids[:-2].tolist()
    assert cut.learned.tolist() == whole.learned[:-2].tolist()
    assert cut.full_length == whole.full_length
    assert not cut.learns_end

    prompt_length = int((~whole.learned).sum()) - 1
    (fault,) = tokenizer.tokenise([example], max_length=prompt_length)
    assert isinstance(fault, RowFault)
    assert fault.reason is Reason.NOTHING_TO_LEARN
    assert f"max_length ({prompt_length} tokens)" in in_words(fault.rule)


@pytest.mark.parametrize(
    ("conversation", "cause"),
    [
        ({"text": "ask"}, "it has 1 of the 2 tokens needed (the first is only context)"),
        ({"messages": [user("ask"), assistant("me")]}, "the answer has no token of its own"),
    ],
)
def test_a_row_without_a_token_to_train_on_is_refused_with_the_cause(conversation: dict[str, Any], cause: str) -> None:
    encoder = Tokenizer(WordLevel({"x": 0, "ask": 1, "?": 2}, unk_token="?"))
    encoder.normalizer = Replace("me", "")  # type: ignore[assignment]
    encoder.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    together = ChatTemplate("x {% for m in messages %}{{ m.content }}{% endfor %}", "together", {})
    (fault,) = RowTokenizer(encoder, together, stop_ids=[]).tokenise([of(1, **conversation)], max_length=100)
    assert isinstance(fault, RowFault), fault
    assert (fault.reason, fault.rule) == (Reason.NOTHING_TO_LEARN, f"no token would be trained on: {cause}")


def test_a_text_row_that_fills_max_length_exactly_keeps_its_end() -> None:
    tokenizer = RowTokenizer(metaspace(), plain_template(TOKENS), stop_ids=[])
    length = tokenised(tokenizer, of(1, text="some text")).full_length
    assert tokenised(tokenizer, of(1, text="some text"), max_length=length).learns_end
    assert not tokenised(tokenizer, of(1, text="some text"), max_length=length - 1).learns_end


def test_what_a_template_refuses_is_a_fault_with_the_templates_own_sentence_only() -> None:
    text = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('Tools are not supported') }}"
        "{% elif m.role == 'system' %}{{ raise_exception('No: ' + m.content) }}{% endif %}{{ m.content }}{% endfor %}"
    )
    tokenizer = RowTokenizer(byte_level(), ChatTemplate(text, "t", TOKENS), stop_ids=[])
    tool = of(1, messages=[user("q"), {"role": "tool", "content": "r"}, assistant("a")])
    system = of(2, messages=[{"role": "system", "content": "sECRET"}, user("q"), assistant("a")])
    good = of(3, messages=[user("q"), assistant("a")])
    first, second, third = tokenizer.tokenise([tool, system, good], max_length=100)
    assert isinstance(first, RowFault)
    assert first.reason is Reason.TEMPLATE_REFUSES
    assert "Tools are not supported" in first.rule
    assert isinstance(second, RowFault)
    assert "sECRET" not in f"{second}{second.fix}"
    assert isinstance(third, TokenisedRow)


def test_a_template_that_leaves_the_answer_out_is_refused() -> None:
    text = "{% for m in messages %}<|user|>{{ m.content.text }}{% endfor %}"
    tokenizer = RowTokenizer(byte_level(), ChatTemplate(text, "t", TOKENS), stop_ids=[])
    (fault,) = tokenizer.tokenise([of(1, messages=[user("q"), assistant("a")])], max_length=100)
    assert isinstance(fault, RowFault)
    assert "leaves the answer out" in fault.rule


def test_truncation_and_padding_saved_in_a_tokenizer_do_not_apply(tokenizer_dir: Path, tmp_path: Path) -> None:
    encoder = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    encoder.enable_truncation(4)
    encoder.enable_padding(length=50)
    tokenizer = RowTokenizer(encoder, load_chat_template(tokenizer_dir), stop_ids=[])
    fresh = RowTokenizer.load(tokenizer_dir)
    assert fresh is not None
    example = of(1, messages=[user("a question"), assistant("an answer")])
    assert tokenised(tokenizer, example).input_ids.tolist() == tokenised(fresh, example).input_ids.tolist()


def test_end_tokens_come_from_the_generation_config_then_the_config(tokenizer_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tokenizer_dir, tmp_path / "base")
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 0}))

    def stop_tokens() -> list[str]:
        tokenizer = RowTokenizer.load(folder)
        assert tokenizer is not None
        return tokenizer.stop_tokens

    assert stop_tokens() == ["<|endoftext|>", "<|im_end|>"]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert stop_tokens() == ["<|im_start|>", "<|im_end|>"]


def test_a_broken_tokenizer_is_refused_and_a_missing_one_is_none(tokenizer_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tokenizer_dir, tmp_path / "base")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: is not a tokenizer"):
        RowTokenizer.load(folder)
    (folder / "tokenizer.json").unlink()
    assert RowTokenizer.load(folder) is None
    assert RowTokenizer.load(folder, byte_level()) is not None


def _base_with(folder: Path, tokenizer_dir: Path, *, added: str | None = None, **config: object) -> Path:
    """A base of 512 embeddings, or as `config` says, whose tokenizer has `added` as its token 512."""
    shutil.copytree(tokenizer_dir, folder)
    encoder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if added is not None:
        encoder.add_tokens([AddedToken(added, special=added.startswith("<|"))])
        encoder.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 512} | config))
    return folder


CHAT = {"messages": [{"role": "user", "content": "Use <|new_tool|> now"}, {"role": "assistant", "content": "Yes."}]}
ANSWER = {"messages": [{"role": "user", "content": "Now?"}, {"role": "assistant", "content": "<|new_tool|>"}]}
PLAIN = {"messages": [{"role": "user", "content": "Now?"}, {"role": "assistant", "content": "Yes."}]}
NO_EMBEDDING = r"has token <\|new_tool\|> \(512\), and the base has 512 embeddings: 0 to 511 \(TokenWithoutEmbedding\)"


@pytest.mark.parametrize(
    ("rows", "mode"),
    [
        ([PLAIN, CHAT, PLAIN], "sft"),
        ([PLAIN, ANSWER, PLAIN], "sft"),
        ([{"text": "plain text"}, {"text": "a <|new_tool|> in it"}, {"text": "more"}], "sft"),
        ([{"prompt": "a", "output": f"{x}", "reward": i} for i, x in enumerate(["b", "<|new_tool|>", "c"])], "ppo"),
    ],
)
def test_a_token_without_an_embedding_is_refused_with_its_row(
    tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines, rows: list[Any], mode: Any
) -> None:
    nested: Any = {"vocab_size": None, "text_config": {"vocab_size": 512}} if mode == "ppo" else {}
    base = _base_with(tmp_path / "base", tokenizer_dir, added="<|new_tool|>", **nested)
    with pytest.raises(InputError, match=rf"row 2: {NO_EMBEDDING}; resize_token_embeddings\(\)"):
        check_dataset(write_lines(rows), form=MODES[mode].rows, tokenizer_dir=base, max_length=128)


def test_a_template_whose_token_has_no_embedding_refuses_every_row(
    tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines
) -> None:
    base = _base_with(tmp_path / "base", tokenizer_dir, added="<|new_tool|>")
    template = base / "chat_template.jinja"
    template.write_text("<|new_tool|>" + template.read_text())
    with pytest.raises(InputError, match=rf"rows 1, 2 and 3: {NO_EMBEDDING}"):
        check_dataset(write_lines([PLAIN] * 3), form=MODES["sft"].rows, tokenizer_dir=base, max_length=128)


def test_a_vocabulary_larger_than_the_embeddings_is_refused_without_a_word_of_the_row(
    tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines
) -> None:
    base = _base_with(tmp_path / "base", tokenizer_dir, vocab_size=300)
    with pytest.raises(InputError, match=r"rows 1, 2 and 3: has token \d+, and the base has 300 embeddings: 0 to 299"):
        check_dataset(write_lines([PLAIN] * 3), form=MODES["sft"].rows, tokenizer_dir=base, max_length=128)


@pytest.mark.parametrize("config", [{}, {"vocab_size": 600}, {"vocab_size": None}])
def test_tokens_that_no_row_has_are_no_fault(
    tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines, config: dict[str, object]
) -> None:
    base = _base_with(tmp_path / "base", tokenizer_dir, added="<|new_tool|>", **config)
    assert check_dataset(write_lines([PLAIN] * 3), form=MODES["sft"].rows, tokenizer_dir=base, max_length=128).ok


def test_a_token_behind_the_cut_is_no_fault(tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines) -> None:
    base = _base_with(tmp_path / "base", tokenizer_dir, added="<|new_tool|>")
    rows = [{"text": "a word and " * 40 + "<|new_tool|>"}] * 2
    assert check_dataset(write_lines(rows), form=MODES["sft"].rows, tokenizer_dir=base, max_length=64).ok
