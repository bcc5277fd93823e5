"""Which of a data set's texts two tokenizers are compared on."""

from __future__ import annotations

from llm_tuning.data.chat import ChatTemplate, plain_template
from llm_tuning.data.id_sample import DRAWN_ROWS, FIXED_TEXTS, LONGEST_ROW, RARE_ROWS, IdSample
from llm_tuning.data.rows import Conversation, Example

NO_SYSTEM = ChatTemplate(
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{% for message in messages %}{{ message['content'] }}|{% endfor %}",
    "chat_template.jinja",
)


def chat(number: int, answer: str) -> Example:
    messages = [{"role": "user", "content": "Say it"}, {"role": "assistant", "content": answer}]
    return Example(number, (Conversation(messages),))


def text(number: int, words: str) -> Example:
    return Example(number, (Conversation(None, words),))


def rows_of(sample: IdSample, template: ChatTemplate = NO_SYSTEM) -> list[int]:
    return [int(found.source[4:]) for found in sample.texts(template) if found.source.startswith("row ")]


def test_rows_are_drawn_from_the_whole_file_and_the_same_ones_every_time() -> None:
    def draw() -> list[int]:
        sample = IdSample()
        for number in range(1, 5001):
            sample.offer(chat(number, f"answer {number}"))
        return rows_of(sample)

    chosen = draw()
    assert chosen == draw()
    assert DRAWN_ROWS <= len(chosen) <= DRAWN_ROWS + 1
    assert max(chosen) > 4000


def test_a_row_with_characters_of_a_new_kind_is_always_taken() -> None:
    sample = IdSample()
    for number in range(1, 5001):
        words = {3000: "这是", 3001: "中文" * 5, 4000: "\U0001f600", 4500: "naïve"}.get(number, "plain")
        sample.offer(chat(number, words))
    assert {3000, 4000, 4500} <= set(rows_of(sample))


def test_the_choice_is_bounded_however_many_kinds_there_are() -> None:
    sample = IdSample()
    for number in range(1, 3001):
        sample.offer(text(number, chr(0x4E00 + 7 * number)))
    assert len(rows_of(sample)) <= DRAWN_ROWS + RARE_ROWS + 1


def test_long_rows_are_left_out_but_for_the_first() -> None:
    sample = IdSample()
    for number in (1, 2, 3):
        sample.offer(text(number, "a" * (LONGEST_ROW + 1)))
    sample.offer(text(4, "short"))
    assert rows_of(sample) == [1, 4]


def test_fixed_texts_are_rendered_as_chats_with_a_system_message_where_the_template_takes_one() -> None:
    sample = IdSample()
    sample.offer(chat(1, "yes"))
    fixed = [found for found in sample.texts(NO_SYSTEM) if not found.source.startswith("row ")]
    assert [found.text.split("|")[0] for found in fixed] == list(FIXED_TEXTS)
    with_system = sample.texts(plain_template())[0]
    assert with_system.text.count(FIXED_TEXTS[0].strip()) == 3


def test_rows_of_text_bring_the_fixed_texts_as_they_are() -> None:
    sample = IdSample()
    sample.offer(text(1, "words"))
    assert sample.of_text
    assert [found.text for found in sample.texts(NO_SYSTEM)] == [*FIXED_TEXTS, "words"]


def test_without_a_row_there_is_nothing_to_compare() -> None:
    assert IdSample().texts(NO_SYSTEM) == []
