"""The library names settings by placeholders, and every edge puts in the words of its users."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from llm_tuning.api.flags import FLAG_WORDS, config_flags, option_flags
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.errors import PLAIN, InputError, Problem, TryAgain, Words, in_words
from llm_tuning.pod.wording import SPEC_WORDS

ROOT = Path(__file__).resolve().parents[3] / "llm_tuning"
ROOMS = ("data", "models", "modes", "run", "trainers")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]+")
PLACEHOLDER = re.compile(r"\{(field|set|command):([^{}=]*)(=[^{}]*)?\}")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every text in a module that is not a docstring, with its line; the braces that an f-string escapes are single."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.lineno, node.value


def of_the_library() -> list[tuple[str, str]]:
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    found = [(f"{path.relative_to(ROOT)}:{line}", text) for path in files for line, text in texts(path)]
    assert len(files) > 40
    assert len(found) > 1000
    return found


COMMANDS = ("models/card.py", "models/not_a_base.py", "data/files/locate.py")
"""Files whose texts hold commands to copy, of other programs too, and no flag of ours."""
FLAGS_OF_OTHERS = {"--repo-type", "--local-dir", "--max-model-len"}
"""Of `hf` and of vLLM, in sentences that name our settings besides."""


def test_no_sentence_of_the_library_names_a_flag() -> None:
    raw = [
        f"{where}: {text}"
        for where, text in of_the_library()
        if set(FLAG.findall(text)) - FLAGS_OF_OTHERS and not where.startswith(COMMANDS)
    ]
    assert not raw, "name the setting by a placeholder: {field:output_dir}, {set:mode=sft}\n" + "\n".join(raw)


def test_every_placeholder_is_of_a_setting_that_there_is() -> None:
    flags = {".".join(flag.path) for flag in (*config_flags(), *option_flags())}
    flags |= {"model.uri", "dataset.uri"}  # the flag of the path takes them
    found = [(where, *match.groups()) for where, text in of_the_library() for match in PLACEHOLDER.finditer(text)]
    assert {kind for _, kind, _, _ in found} == {"field", "set", "command"}
    for where, kind, name, _ in found:
        if kind != "command":
            assert name in flags, where
    for _, kind, name, value in found:
        text = "{" + f"{kind}:{name}{value or ''}" + "}"
        for words in (PLAIN, FLAG_WORDS, SPEC_WORDS):
            assert "{" not in in_words(text, words)


def test_every_field_that_the_library_names_is_in_the_spec_under_the_pods_word() -> None:
    not_there = {"spec.volume.claimName", "metadata.name"}  # where a pod has other words than its own field
    for where, text in of_the_library():
        for kind, name, _ in PLACEHOLDER.findall(text):
            word = SPEC_WORDS.field(name)
            if kind != "field" or word in not_there:
                continue
            model: object = TuningJobSpec
            for part in word.removeprefix("spec.").split("."):
                fields = {info.alias or key: info for key, info in model.model_fields.items()}  # type: ignore[attr-defined]
                assert part in fields, f"{where}: {word}"
                annotation = fields[part].annotation
                model = next((kind for kind in get_args(annotation) if hasattr(kind, "model_fields")), annotation)


@pytest.mark.parametrize(
    ("text", "plain", "flags", "spec"),
    [
        (
            "raise {field:training.max_length} or shorten it",
            "raise max_length or shorten it",
            "raise --max_length or shorten it",
            "raise spec.training.maxLength or shorten it",
        ),
        (
            "give another {field:model_id}",
            "give another model_id",
            "give another --model_id",
            "give another metadata.name",
        ),
        ("or {set:mode=sft}", "or set mode to sft", "or use --tuning_mode sft", "or set spec.mode to sft"),
        (
            "{set:training.gradient_checkpointing=true}",
            "set gradient_checkpointing to true",
            "use --gradient_checkpointing",
            "set spec.training.gradientCheckpointing to true",
        ),
        ("{field:devices}", "devices", "--devices", "spec.resources.gpus"),
        (
            "{set:dataset.columns=prompt=question,output=answer}",
            "set columns to prompt=question,output=answer",
            "use --columns prompt=question,output=answer",
            "set spec.dataset.columns to {prompt: question, output: answer}",
        ),
        ("{set:devices=cpu}", "set devices to cpu", "use --devices cpu", "set spec.resources.gpus to 0"),
        (
            "see {command:registry list}",
            "see `tune-llm registry list`",
            "see `tune-llm registry list`",
            "see models/registry.json on the claim",
        ),
        ("{field:ppo.kl_coef}", "kl_coef", "--ppo_kl_coef", "spec.ppo.klCoef"),
        ("{field:lora.rank}", "rank", "--lora_rank", "spec.lora.rank"),
        ("{prompt, output} and {no:such} stay", *["{prompt, output} and {no:such} stay"] * 3),
    ],
)
def test_each_edge_has_its_words(text: str, plain: str, flags: str, spec: str) -> None:
    all_words: list[Words] = [PLAIN, FLAG_WORDS, SPEC_WORDS]
    assert [in_words(text, words) for words in all_words] == [plain, flags, spec]


def test_errors_are_plain_text_and_keep_their_placeholders_for_the_edge() -> None:
    problem = Problem("rows", "too long for {field:training.max_length}", "{set:mode=sft}")
    error = InputError(problem)
    assert str(error) == "rows: too long for max_length; set mode to sft"
    assert error.problems == (problem,)
    assert str(problem.in_words(FLAG_WORDS)) == "rows: too long for --max_length; use --tuning_mode sft"
    stopped = TryAgain("GPUUnavailable", "{set:devices=cpu}")
    assert (str(stopped), stopped.message) == ("set devices to cpu", "{set:devices=cpu}")
