"""Every answer is learned once, behind the prompt that the server shows for it: all of TRL's templates, many chats."""

from __future__ import annotations

import pytest

from llm_tuning.data.chat import ChatTemplate, TemplateRefused
from llm_tuning.data.faults import Fact, Reason, RowFault
from llm_tuning.data.rows import Conversation, Example
from llm_tuning.data.tokenised import TokenisedRow
from llm_tuning.data.tokens import RowTokenizer
from tests.support.chat_templates import (
    FOLDER,
    NO_TEXT_CHATS,
    STOPS,
    TEMPLATES,
    TOKENS,
    learned_runs,
    row_of,
    texts_learned,
    tokenizer_of,
)
from tests.support.other_rows import assistant, user
from tests.support.tokenizers import byte_level, chat_level, metaspace


def chat(turns: int, *, system: bool = False, answer: str = "Answer {0}, it is.") -> list[dict[str, str]]:
    messages = [{"role": "system", "content": "Be brief, 42."}] if system else []
    for turn in range(turns):
        messages += [user(f"Question {turn}?"), assistant(answer.format(turn))]
    return messages


CHATS = {
    f"{turns} turns{', system' * system}": chat(turns, system=system) for turns in range(1, 6) for system in (0, 1)
}
CHATS |= {
    "line ends": chat(3, answer="\n\nAnswer {0}\n\nand more\n"),
    "blanks": chat(3, answer="  Answer {0}  "),
    "equal answers": chat(3, answer="Yes."),
    "an answer inside the next": [user("q"), assistant("a"), user("r"), assistant("a b a")],
    "no words": chat(2, answer="..."),
    "the user is quoted": [user("q"), assistant("q"), user("q"), assistant("q")],
    "characters": chat(2, answer="\U0001f642 {0} \u4e2d\u6587 \u00e9"),
}
REASONING = chat(3, answer="<think>\nReason {0}\n</think>\n\nAnswer {0}")


def check_as_served(name: str, messages: list[dict[str, str]]) -> TokenisedRow:
    """Hold a row to the server's way: prompt rendered and tokenised alone, ids made behind it. Returns the row."""
    tokenizer, encoder = tokenizer_of(name)
    template = tokenizer.template
    row = row_of(tokenizer, messages)
    assert isinstance(row, TokenisedRow), row
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    served = {}
    for index in answers:
        prompt = template.render(messages[:index], add_generation_prompt=True)
        served[index] = encoder.encode(prompt, add_special_tokens=False).ids
    found = []
    for sequence in row.sequences:
        ids = sequence.input_ids.tolist()
        assert sequence.messages is not None
        assert sequence.messages == messages[: len(sequence.messages)]
        last = len(sequence.messages) - 1
        assert ids[: sequence.prompt_tokens] == served[last], "the prompt is what the server sees"
        assert learned_runs(sequence)[-1][0] == sequence.prompt_tokens
        for start, _ in learned_runs(sequence):
            (index,) = (index for index in answers if len(served[index]) == start and served[index] == ids[:start])
            found.append(index)
    assert sorted(found) == answers, "every answer once"
    for index, text in zip(found, texts_learned(row, encoder), strict=True):
        assert messages[index]["content"].strip() in text
        through = template.render(messages[: index + 1])
        prompt = template.render(messages[:index], add_generation_prompt=True)
        if through.startswith(prompt) and name.removesuffix("_training") != "glm4moe":
            rest = through[len(prompt) :]
            assert rest.startswith(text)
            assert not rest.removeprefix(text).replace("</s>", "").strip(), "only what follows the end token is left"
    return row


@pytest.mark.parametrize("name", [name for name in TEMPLATES if not name.startswith(NO_TEXT_CHATS)])
def test_every_answer_is_learned_once_as_it_is_served(name: str) -> None:
    refused = []
    for title, messages in CHATS.items():
        try:
            tokenizer_of(name)[0].template.render(messages)
        except TemplateRefused:
            refused.append(title)
            continue
        row = check_as_served(name, messages)
        assert row.answers == sum(message["role"] == "assistant" for message in messages)
    assert all("system" in title for title in refused)


SEQUENCES_OF_THREE = {
    **dict.fromkeys(("llama3", "llama3_1", "llama3_2", "qwen2_5", "qwen3_instruct_2507", "gemma", "gemma3", "phi3"), 1),
    **dict.fromkeys(("phi3_5", "glm4moe", "cohere", "cohere2", "lfm2", "gemma4"), 1),
    **dict.fromkeys(("qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8", "gptoss"), 3),
    **dict.fromkeys(("deepseek_r1_distill", "deepseekv3", "nemotron_3_nano"), 3),
}


@pytest.mark.parametrize(("name", "count"), SEQUENCES_OF_THREE.items())
def test_a_conversation_becomes_as_few_sequences_as_can_be(name: str, count: int) -> None:
    row = row_of(tokenizer_of(name)[0], chat(3))
    assert isinstance(row, TokenisedRow)
    assert len(row.sequences) == count
    assert (Fact.SEVERAL_SEQUENCES in row.facts) == (count > 1)
    assert all(sequence.learns_end for sequence in row.sequences)


@pytest.mark.parametrize("name", ["llama3", "qwen3", "glm4moe", "deepseek_r1_distill"])
def test_the_last_answer_alone_where_that_is_asked_for(name: str) -> None:
    tokenizer, encoder = tokenizer_of(name, "last")
    row = row_of(tokenizer, chat(3))
    assert isinstance(row, TokenisedRow)
    (text,) = texts_learned(row, encoder)
    assert "Answer 2" in text


@pytest.mark.parametrize("name", ["llama3", "qwen3", "phi3"])
def test_turns_that_are_not_learned_are_context(name: str) -> None:
    tokenizer, encoder = tokenizer_of(name)
    row = row_of(tokenizer, chat(4), learn_from=2, not_learned=frozenset([5]))
    assert isinstance(row, TokenisedRow)
    assert [text.count("Answer 1") + text.count("Answer 3") for text in texts_learned(row, encoder)] == [1, 1]
    assert row.answers == 2
    without_the_last = row_of(tokenizer, chat(2), not_learned=frozenset([3]))
    assert isinstance(without_the_last, TokenisedRow)
    (text,) = texts_learned(without_the_last, encoder)
    assert "Answer 0" in text
    none = row_of(tokenizer, chat(1), not_learned=frozenset([1]))
    assert isinstance(none, RowFault)
    assert none.reason is Reason.NOTHING_TO_LEARN


@pytest.mark.parametrize("name", ["llama3", "qwen3", "gemma3"])
def test_a_given_beginning_of_an_answer_is_context(name: str) -> None:
    tokenizer, encoder = tokenizer_of(name)
    row = row_of(tokenizer, [user("q"), assistant(" Answer: forty two")], prefixes={1: len(" Answer:")})
    assert isinstance(row, TokenisedRow)
    (text,) = texts_learned(row, encoder)
    assert text.startswith(" forty two")
    (sequence,) = row.sequences
    assert sequence.prompt_tokens == 0, "no server renders it from messages alone"
    shown = encoder.decode(sequence.input_ids[: learned_runs(sequence)[0][0]].tolist(), skip_special_tokens=False)
    assert shown.endswith("Answer:")
    thinks = row_of(tokenizer, [user("q"), assistant("<think>a</think>b c")], prefixes={1: 1})
    assert isinstance(thinks, RowFault) == (name == "qwen3"), "its template writes another text"


PROMPTS = {
    "qwen3_5_think": ("<think>\n", "\n</think>\n\nAnswer 0<|im_end|>"),
    "qwen3_5_nothink": ("<think>\n\n</think>\n\n", "Answer 0<|im_end|>"),
    "qwen3_8": ("<think>\n", "\n</think>\n\nAnswer 0<|im_end|>"),
    "qwen3": ("assistant\n", "<think>\n\n</think>\n\nAnswer 0<|im_end|>"),
    "deepseek_r1_distill": ("<think>\n", "\n</think>\n\nAnswer 0<\uff5cend\u2581of\u2581sentence\uff5c>"),
    "nemotron_3_nano": ("<think>\n", "</think>Answer 0<|im_end|>"),
    "glm4moe": ("<|assistant|>", "\n<think></think>\nAnswer 0<|user|>"),
    "gptoss": ("<|start|>assistant", "<|channel|>final<|message|>Answer 0<|return|>"),
    "phi3": ("<|assistant|>\n", "Answer 0<|end|>"),
}


@pytest.mark.parametrize(("name", "want"), PROMPTS.items())
def test_what_is_learned_goes_on_from_the_generation_prompt(name: str, want: tuple[str, str]) -> None:
    tokenizer, encoder = tokenizer_of(name)
    row = row_of(tokenizer, chat(1, answer="Answer {0}"))
    assert isinstance(row, TokenisedRow)
    (sequence,) = row.sequences
    prompt = encoder.decode(sequence.input_ids[: sequence.prompt_tokens].tolist(), skip_special_tokens=False)
    assert prompt.endswith(want[0])
    assert texts_learned(row, encoder) == [want[1]]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "deepseek_r1_distill", "glm4moe", "nemotron_3_nano"])
@pytest.mark.parametrize(
    "answer",
    [
        "<think>\nReason {0}\n</think>\n\nAnswer {0}",
        "<think>Reason {0}</think>Answer {0}",
        "<think>\n\nReason {0}</think>\n\n\nAnswer {0}",
    ],
)
def test_reasoning_of_an_answer_is_learned_and_context_has_none(name: str, answer: str) -> None:
    tokenizer, encoder = tokenizer_of(name)
    row = row_of(tokenizer, chat(3, answer=answer))
    assert isinstance(row, TokenisedRow), row
    texts = texts_learned(row, encoder)
    assert len(texts) == 3
    for turn, text in enumerate(texts):
        assert f"Reason {turn}" in text
        assert text.index(f"Reason {turn}") < text.index("</think>") < text.index(f"Answer {turn}")
        assert text.count("</think>") == 1


THINK_FAULTS = {
    "</think>": "the answer is empty: nothing follows </think>",
    "<think>a</think>": "the answer is empty: nothing follows </think>",
    "<think>a</think>  \n": "the answer is empty: nothing follows </think>",
    "<think>it goes on": "opens a think block and does not close it",
    "<think>a</think>b<think>c</think>d": "leaves reasoning of the answer out",
}


@pytest.mark.parametrize(("answer", "words"), THINK_FAULTS.items())
def test_an_answer_that_a_think_tag_swallows_is_refused(answer: str, words: str) -> None:
    fault = row_of(tokenizer_of("qwen3")[0], [user("q"), assistant(answer)])
    assert isinstance(fault, RowFault)
    assert words in fault.rule
    plain = row_of(tokenizer_of("llama3")[0], [user("q"), assistant(answer)])
    assert isinstance(plain, TokenisedRow), "to a template without think blocks it is text"


def test_a_think_tag_that_nothing_opens_is_said() -> None:
    tokenizer, encoder = tokenizer_of("qwen3")
    row = row_of(tokenizer, [user("q"), assistant("It is </think> and nothing else.")])
    assert isinstance(row, TokenisedRow)
    assert Fact.UNPAIRED_THINK in row.facts
    assert texts_learned(row, encoder) == ["<think>\nIt is \n</think>\n\n and nothing else.<|im_end|>"]
    paired = row_of(tokenizer, [user("q"), assistant("<think>a</think>b")])
    assert isinstance(paired, TokenisedRow)
    assert Fact.UNPAIRED_THINK not in paired.facts


def test_reasoning_that_cannot_be_served_is_refused() -> None:
    """The generation prompt closes the block, the template strips it, or it writes one of its own."""
    thought = chat(1, answer="<|channel>thought\nReason {0}<channel|>Answer {0}")
    for name, messages in (("qwen3_5_nothink", REASONING), ("gemma4", thought), ("qwen3_8", REASONING)):
        fault = row_of(tokenizer_of(name)[0], messages)
        assert isinstance(fault, RowFault), name
        assert fault.reason is Reason.TEMPLATE_REFUSES


def test_two_answers_in_a_row() -> None:
    """Each is learned behind a header of its own, which is not learned; a template that joins them is refused."""
    messages = [user("q"), assistant("one"), assistant("two"), user("r"), assistant("three")]
    for name in ("qwen3", "qwen2_5", "llama3", "qwen3_5_think"):
        row = check_as_served(name, messages)
        texts = texts_learned(row, tokenizer_of(name)[1])
        assert [sum(word in text for text in texts) for word in ("one", "two", "three")] == [1, 1, 1]
        assert not any("assistant" in text or "im_start" in text for text in texts)
    for name in ("gemma4_v5", "gemma3"):
        assert isinstance(row_of(tokenizer_of(name)[0], messages), RowFault)
    same = [user("q"), assistant("Yes."), assistant("Yes.")]
    check_as_served("qwen3", same)
    assert isinstance(row_of(tokenizer_of("gemma4_v5")[0], same), RowFault)


SYSTEM_IN_LAST = (
    "{% set last = (messages | selectattr('role', 'equalto', 'user') | list | length) %}{% set n = namespace(i=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% set n.i = n.i + 1 %}[INST]{% if n.i == last and messages[0].role == 'system' %}{{ messages[0].content }}"
    "\n\n{% endif %}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
NUMBERED = (
    "{% for m in messages %}({{ loop.revindex }}) {{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}(1) assistant: {% endif %}"
)


@pytest.mark.parametrize(("text", "system"), [(SYSTEM_IN_LAST, True), (SYSTEM_IN_LAST, False), (NUMBERED, False)])
def test_templates_that_write_a_turn_by_its_place(text: str, system: bool) -> None:
    encoder = chat_level()
    template = ChatTemplate(text, "t", TOKENS)
    row = row_of(RowTokenizer(encoder, template, stop_ids=[]), chat(3, system=system))
    assert isinstance(row, TokenisedRow)
    assert len(row.sequences) == (3 if system or text is NUMBERED else 1)
    assert texts_learned(row, encoder) == [f"Answer {turn}, it is.</s>" for turn in range(3)]


def test_a_template_that_writes_the_time_is_asked_once() -> None:
    text = "{{ strftime_now('%f') }}{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    row = row_of(RowTokenizer(chat_level(), ChatTemplate(text, "t", TOKENS), stop_ids=[]), chat(3))
    assert isinstance(row, TokenisedRow)
    assert len(row.sequences) == 1


def test_a_message_that_the_template_skips_is_said() -> None:
    messages = [user("q"), assistant("a"), {"role": "critic", "content": "42 degrees"}, assistant("warm")]
    glm = row_of(tokenizer_of("glm4moe")[0], messages)
    assert isinstance(glm, TokenisedRow)
    assert Fact.LEFT_OUT in glm.facts
    llama = row_of(tokenizer_of("llama3")[0], messages)
    assert isinstance(llama, TokenisedRow)
    assert Fact.LEFT_OUT not in llama.facts


def test_the_next_role_ends_a_turn_only_where_generation_stops_at_it() -> None:
    encoder = chat_level()
    template = ChatTemplate((FOLDER / "glm4moe.jinja").read_text(), "glm", TOKENS)
    row = row_of(RowTokenizer(encoder, template, stop_ids=[encoder.token_to_id("<|endoftext|>")]), chat(2))
    assert isinstance(row, TokenisedRow)
    assert not any(sequence.learns_end for sequence in row.sequences)
    assert not any("<|user|>" in text for text in texts_learned(row, encoder))
    stops = [encoder.token_to_id(token) for token in STOPS["glm4moe"].split()]
    with_tool = [user("q"), assistant("Let me see."), {"role": "tool", "content": "42"}, assistant("It is 42.")]
    row = row_of(RowTokenizer(encoder, template, stop_ids=stops), with_tool)
    assert isinstance(row, TokenisedRow)
    assert [text.split("\n")[-1] for text in texts_learned(row, encoder)] == [
        "Let me see.<|observation|>",
        "It is 42.<|user|>",
    ]


def test_answers_that_run_together_with_their_prompt_are_encoded_apart() -> None:
    """A line end behind one of the template's is one token with it, which no server's prompt has."""
    for encoder in (chat_level(), byte_level(), metaspace()):
        template = ChatTemplate(
            "{% for m in messages %}{{ m.role }}:\n{{ m.content }}</s>{% endfor %}"
            "{% if add_generation_prompt %}assistant:\n{% endif %}",
            "t",
            TOKENS,
        )
        tokenizer = RowTokenizer(encoder, template, stop_ids=[])
        for answer in ("\n\nAnswer {0}", "  Answer {0}", "Answer {0}"):
            messages = chat(3, answer=answer)
            row = row_of(tokenizer, messages)
            assert isinstance(row, TokenisedRow)
            texts = texts_learned(row, encoder)
            assert sorted(text.strip() for text in texts) == [f"Answer {turn}</s>" for turn in range(3)]
            for sequence in row.sequences:
                assert sequence.messages is not None
                prompt = template.render(sequence.messages[:-1], add_generation_prompt=True)
                want = encoder.encode(prompt, add_special_tokens=False).ids
                ids = sequence.input_ids.tolist()
                assert ids[: sequence.prompt_tokens or len(want)] == want
                whole = encoder.encode(template.render(sequence.messages), add_special_tokens=False).ids
                decoded = [encoder.decode(each, skip_special_tokens=False) for each in (ids, whole)]
                assert decoded[0] == decoded[1]


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_answers_behind_the_cut_are_counted_and_leave_no_sequence(name: str) -> None:
    tokenizer, _ = tokenizer_of(name)
    whole = row_of(tokenizer, chat(40))
    assert isinstance(whole, TokenisedRow)
    assert (whole.answers, whole.answers_cut) == (40, 0)
    cut = row_of(tokenizer, chat(40), max_length=300)
    assert isinstance(cut, TokenisedRow)
    assert cut.answers + cut.answers_cut == 40
    assert cut.answers_cut > 20
    assert all(sequence.learned.any() for sequence in cut.sequences)
    learned = sum(int(sequence.learned[:300].sum()) for sequence in whole.sequences if sequence.full_length <= 300)
    kept = [sequence for sequence in cut.sequences if sequence.full_length <= 300]
    assert sum(int(sequence.learned.sum()) for sequence in kept) == learned


@pytest.mark.parametrize("name", ["qwen3", "llama3", "qwen3_5_think"])
def test_a_long_conversation_is_rendered_no_further_than_the_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, _ = tokenizer_of(name)
    messages = chat(60, answer="Answer {0} " + "and so on " * 20)
    short = row_of(tokenizer, messages, max_length=700)
    monkeypatch.setattr("llm_tuning.data.tokens._RENDERED_AT_ONCE", 0)
    long = row_of(tokenizer, messages, max_length=700)
    assert isinstance(short, TokenisedRow)
    assert isinstance(long, TokenisedRow)
    ids = [[sequence.input_ids.tolist() for sequence in row.sequences] for row in (short, long)]
    assert ids[0] == ids[1]
    assert (short.answers, short.answers_cut, short.facts) == (long.answers, long.answers_cut, long.facts)


def test_rows_with_a_number_or_of_two_conversations_stay_one_sequence_each() -> None:
    tokenizer, _ = tokenizer_of("qwen3")
    several = Conversation(chat(2), learn_from=1)
    (fault,) = tokenizer.tokenise([Example(1, (several,), number=1.0)], max_length=1000)
    assert isinstance(fault, RowFault)
    assert "rewrites earlier answers" in fault.rule
    (fault,) = tokenizer.tokenise([Example(1, (several, several))], max_length=1000)
    assert isinstance(fault, RowFault)
    one = Conversation(chat(2), learn_from=3)
    (pair,) = tokenizer.tokenise([Example(1, (one, one))], max_length=1000)
    assert isinstance(pair, TokenisedRow)
    assert len(pair.sequences) == 2
