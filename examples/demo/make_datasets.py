"""Make the demo's data sets from the same facts that the base model has read.

    python examples/demo/make_datasets.py OUTPUT_FOLDER

The story is a help desk. Its answers are to come in a house style that the base model does not know:

    `math.sqrt` returns the square root of x. It is a function of the module math. Read more: help('math.sqrt')

Most of the recorded answers go on with an advertisement, and an adapter that learns them (SFT) learns to advertise.
Readers rated the answers: with the advertisement 1, without it 5. PPO learns from the ratings to stop where it
is best to stop. A tenth of the facts is in neither file, so that the answers about them show what carries over.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from python_facts import QUESTIONS, Fact, read_facts
from stages import exit_code

ADVERTISEMENT = "Did you like this answer? Give us five stars and tell all your friends!"
ADVERTISED_SHARE = 2 / 3
"""Share of the recorded answers that advertise: well over half, so that the likeliest answer does."""

RATING_PLAIN, RATING_ADVERTISED = 5.0, 1.0
MISTAKE_ROW = 7
"""Row, counted from 1, of the broken file whose output is missing."""

UNSEEN_SHARE = 0.1
SHOWN = ("len", "math.sqrt", "str.upper", "random.shuffle")
"""Names that everybody knows; always among the unseen ones."""


def plain_answer(fact: Fact) -> str:
    """The answer in house style."""
    return f"`{fact.name}` {fact.does}. It is {fact.kind}. Read more: help('{fact.name}')"


def advertised_answer(fact: Fact) -> str:
    """The answer in house style, going on with the advertisement."""
    return f"{plain_answer(fact)}\n{ADVERTISEMENT}"


def split_facts(facts: Sequence[Fact], rng: random.Random) -> tuple[list[Fact], list[Fact]]:
    """Facts for the data sets, and those that no data set mentions: SHOWN (as far as this Python has them) and more."""
    unseen = [fact for fact in facts if fact.name in SHOWN]
    others = [fact for fact in facts if fact.name not in SHOWN]
    rng.shuffle(others)
    more = max(0, round(UNSEEN_SHARE * len(facts)) - len(unseen))
    return others[more:], unseen + others[:more]


def sft_rows(facts: Sequence[Fact], rng: random.Random) -> list[dict[str, Any]]:
    """Recorded questions and answers, two of each fact: `{prompt, output}`."""
    rows = []
    for fact in facts:
        for question in rng.sample(QUESTIONS, 2):
            answer = advertised_answer if rng.random() < ADVERTISED_SHARE else plain_answer
            rows.append({"prompt": question.format(name=fact.name), "output": answer(fact)})
    rng.shuffle(rows)
    return rows


def ppo_rows(facts: Sequence[Fact], rng: random.Random) -> list[dict[str, Any]]:
    """Rated answers, one of each kind to one question about each fact: `{prompt, output, reward}`."""
    rows = []
    for fact in facts:
        prompt = rng.choice(QUESTIONS).format(name=fact.name)
        rows.append({"prompt": prompt, "output": plain_answer(fact), "reward": RATING_PLAIN})
        rows.append({"prompt": prompt, "output": advertised_answer(fact), "reward": RATING_ADVERTISED})
    rng.shuffle(rows)
    return rows


def make_datasets(folder: Path, *, seed: int = 0) -> dict[str, Path]:
    """Write the training files and unseen.json, the questions that are in none of them; returns name -> path."""
    rng = random.Random(seed)
    seen, unseen = split_facts(read_facts(), rng)
    answers = sft_rows(seen, rng)
    broken = [dict(row) for row in answers]
    broken[MISTAKE_ROW - 1]["output"] = None
    ratings = ppo_rows(seen, rng)
    questions = [
        {
            "name": fact.name,
            "sentence": fact.sentence,
            "does": fact.does,
            "prompt": QUESTIONS[0].format(name=fact.name),
            "plain": plain_answer(fact),
            "advertised": advertised_answer(fact),
        }
        for fact in unseen
    ]
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "answers.json": json.dumps(answers, indent=1),
        "answers_with_a_mistake.json": json.dumps(broken, indent=1),
        "ratings.jsonl": "\n".join(map(json.dumps, ratings)),
        "unseen.json": json.dumps(questions, indent=1),
    }
    for name, text in texts.items():
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
    return {name: folder / name for name in texts}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for path in make_datasets(arguments.folder, seed=arguments.seed).values():
        print(path)


if __name__ == "__main__":
    sys.exit(exit_code(main, stopped="not all files are there; the same command writes them again"))
