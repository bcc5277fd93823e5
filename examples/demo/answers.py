"""Ask the base model and adapters on it the same questions, and count what their answers are like.

    python examples/demo/answers.py BASE QUESTIONS ADAPTER [ADAPTER ...] [--json FILE]

Nothing of llm_tuning is used: this is transformers and PEFT, as anybody would load an adapter from `models/`.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from make_datasets import ADVERTISEMENT, SHOWN
from stages import exit_code

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 96
QUESTIONS_AT_ONCE = 16


@dataclass(frozen=True)
class Answers:
    """What one model says. Shares are of all questions; `preference` is a mean over them, in nats."""

    model: str
    answers: list[str] = field(repr=False)
    right: float
    """Share that has the fact right: the docstring's words, in the base's form or in house style."""
    house_style: float
    """Share that is the house-style answer to the letter, with or without the advertisement."""
    advertised: float
    preference: float
    """log p(plain answer) - log p(advertised answer). Hundreds for the base: to it the advertisement is news."""


def ask_all(base: Path, questions: Sequence[dict[str, str]], adapters: Sequence[Path]) -> list[Answers]:
    """The answers of the base and of each adapter, greedy."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    for adapter in adapters:
        if isinstance(model, PeftModel):
            model.load_adapter(str(adapter), adapter.name)
        else:
            model = PeftModel.from_pretrained(model, str(adapter), adapter.name).eval()
    return [
        _ask(model, tokenizer, questions, name=adapter.name if adapter else "base", adapter=adapter)
        for adapter in (None, *adapters)
    ]


def _ask(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[dict[str, str]],
    *,
    name: str,
    adapter: Path | None,
) -> Answers:
    with _active(model, adapter):
        answers = [answer for some in _chunks(questions) for answer in _generate(model, tokenizer, some)]
        preferences = [
            _log_likelihood(model, tokenizer, q["prompt"], q["plain"])
            - _log_likelihood(model, tokenizer, q["prompt"], q["advertised"])
            for q in questions
        ]

    def share(hits: Iterator[bool]) -> float:
        return sum(hits) / len(questions)

    pairs = list(zip(questions, answers, strict=True))
    return Answers(
        model=name,
        answers=answers,
        right=share(q["sentence"] in a or q["does"] in a for q, a in pairs),
        house_style=share(a in (q["plain"], q["advertised"]) for q, a in pairs),
        advertised=share(ADVERTISEMENT in a for a in answers),
        preference=sum(preferences) / len(preferences),
    )


def _active(model: Any, adapter: Path | None) -> AbstractContextManager[None]:
    if adapter is None:
        return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    model.set_adapter(adapter.name)
    return nullcontext()


def _chunks(questions: Sequence[dict[str, str]]) -> Iterator[Sequence[dict[str, str]]]:
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        yield questions[start : start + QUESTIONS_AT_ONCE]


def _prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _generate(model: Any, tokenizer: Any, questions: Sequence[dict[str, str]]) -> list[str]:
    import torch

    prompts = [_prompt(tokenizer, question["prompt"]) for question in questions]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    new = ids[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _log_likelihood(model: Any, tokenizer: Any, question: str, answer: str) -> float:
    """log p(answer and its end | question), in nats, summed over the tokens."""
    import torch

    prompt = tokenizer(_prompt(tokenizer, question), add_special_tokens=False).input_ids
    output = tokenizer(f"{answer}{tokenizer.eos_token}", add_special_tokens=False).input_ids
    ids = torch.tensor([prompt + output])
    with torch.inference_mode():
        log_probs = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return float(log_probs.gather(1, ids[0, len(prompt) :, None]).sum())


def print_answers(questions: Sequence[dict[str, str]], found: Sequence[Answers]) -> None:
    """The answers to the well-known names, then the counts over all questions."""
    width = max(len(model.model) for model in found)
    for number, question in enumerate(questions):
        if question["name"] in SHOWN:
            print(f"\n  {question['prompt']}")
            for model in found:
                indented = model.answers[number].replace("\n", f"\n  {'':{width}}    ")
                print(f"  {model.model:>{width}}  | {indented}")
    rows = {
        "has the fact right": [f"{model.right:.0%}" for model in found],
        "is in house style": [f"{model.house_style:.0%}" for model in found],
        "advertises": [f"{model.advertised:.0%}" for model in found],
        "log p(plain) - log p(advertised)": [f"{model.preference:+.2f}" for model in found],
    }
    label = f"{len(questions)} questions in no data set: the answer ..."
    print(f"\n  {label}" + "".join(f"{model.model:>{width + 3}}" for model in found))
    for name, values in rows.items():
        print(f"  {name:{len(label)}}" + "".join(f"{value:>{width + 3}}" for value in values))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("questions", type=Path, help="unseen.json of make_datasets.py")
    parser.add_argument("adapters", type=Path, nargs="+", metavar="adapter", help="folder of an adapter")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write answers and counts there, too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # between the libraries, nothing a reader of answers can act on
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    questions = json.loads(arguments.questions.read_text(encoding="utf-8"))
    found = ask_all(arguments.base, questions, arguments.adapters)
    print_answers(questions, found)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(model) for model in found], indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_code(main, stopped="not all questions are answered"))
