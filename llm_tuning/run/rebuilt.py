"""What transformers makes of a base's tokenizer, which is what a vLLM server has: token ids of given texts.

`tokenizers` reads tokenizer.json as it is, and so do the data check and the training. transformers 5 builds many
tokenizers (`LlamaTokenizer`, `GPT2Tokenizer`, ...) from their class, with the vocabulary of that file alone, and
applies what tokenizer_config.json says; no code of the folder runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TIMEOUT_SECONDS = 120


class RebuildFailed(Exception):  # noqa: N818 - an outcome, not a fault: there is nothing to compare
    """transformers does not load this tokenizer; the text is its first line."""


class RebuildStopped(RebuildFailed):
    """The process that asks transformers was ended, or took too long: nothing is known of this tokenizer."""


@dataclass(frozen=True)
class Rebuilt:
    """The tokenizer that transformers built, and its ids of the texts."""

    tokenizer_class: str
    ids: list[list[int]]


Rebuild = Callable[[Path, Sequence[str], bool], Rebuilt]
"""(folder, texts, add_special_tokens) to Rebuilt; raises RebuildFailed."""


def transformers_version() -> str | None:
    """Return the version of transformers, None where it is not installed; imports nothing."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return None


def rebuild_here(folder: Path, texts: Sequence[str], add_special_tokens: bool) -> Rebuilt:
    """Tokenise in this process; raises RebuildFailed. For a process that imports transformers and torch anyway."""
    from transformers import AutoTokenizer

    try:
        # As vLLM does; with the whole path, since a few names of the hub are treated apart by transformers.
        tokenizer = AutoTokenizer.from_pretrained(
            folder.resolve(), local_files_only=True, trust_remote_code=False, mistral_format=False
        )
        ids = [tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"] for text in texts]
    except Exception as error:  # transformers raises many types for files that it does not like
        raise RebuildFailed(_first_line(error)) from None
    return Rebuilt(type(tokenizer).__name__, ids)


def rebuild_apart(folder: Path, texts: Sequence[str], add_special_tokens: bool) -> Rebuilt:
    """Tokenise in a process of its own, which never imports torch; raises RebuildFailed."""
    request = {"folder": str(folder.resolve()), "texts": list(texts), "add_special_tokens": add_special_tokens}
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "llm_tuning.run.rebuilt"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=environment,
            timeout=TIMEOUT_SECONDS,
            check=True,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired as late:
        raise RebuildStopped(f"transformers took longer than {late.timeout:g} s to load its tokenizer") from None
    except subprocess.CalledProcessError as ended:
        if ended.returncode < 0:
            raise RebuildStopped(f"the process that loads it was ended by signal {-ended.returncode}") from None
        raise RebuildFailed(_first_line(ended)) from None
    except (OSError, ValueError) as error:
        raise RebuildFailed(_first_line(error)) from None
    if "error" in answer:
        raise RebuildFailed(answer["error"])
    return Rebuilt(**answer)


def main() -> None:
    """Answer one request of `rebuild_apart`: JSON on standard input, JSON on standard output."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # its import takes longer than all else, and nothing needs it
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints
    request = json.load(sys.stdin)
    try:
        answer = asdict(rebuild_here(Path(request["folder"]), request["texts"], request["add_special_tokens"]))
    except RebuildFailed as failure:
        answer = {"error": str(failure)}
    json.dump(answer, answer_to)
    answer_to.close()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200] if text else ''}"


if __name__ == "__main__":
    main()
