"""How the commands of README and docs are run: which in what order, what stands in for what, what they have to say.

Two files run them: tests/full/test_pages_run.py on this machine, tests/full/test_pages.py on a cluster. Whatever stands
on a page is either in one of their walks or in NOT_RUN.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.pages import PAGES, READMES, ROOT, Snippet, snippets
from tests.support.terminal import Terminal
from tests.support.vllm_server import free_port

COMMAND_SECONDS = 300.0
WALKED_PAGES = [page for page in PAGES if page not in READMES[1:]] + [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
"""README in one language stands for the others: they show the same commands."""


@dataclass(frozen=True)
class Walk:
    """Parts of pages (page, heading) that a reader follows one after the other in one clone."""

    name: str
    parts: tuple[tuple[str, str], ...]

    def snippets(self) -> list[Snippet]:
        """What is typed, without NOT_RUN."""
        return [
            snippet
            for page, heading in self.parts
            for snippet in snippets(ROOT / page)
            if snippet.heading == heading and is_run(snippet)
        ]


ON_THIS_MACHINE = [
    Walk(
        "start-ml",
        (("docs/start-ml.md", "On one machine"), ("docs/start-ml.md", "Without a GPU, or without a network")),
    ),
    Walk(
        "readme",
        (
            ("docs/sources.md", "Sources: a name in place of a path"),
            ("README.md", "Quick start on one machine"),
            ("README.md", "The same from Python, from a file, from the source folder"),
        ),
    ),
    Walk("datasets", (("docs/datasets.md", "Datasets"),)),
    Walk(
        "dpo",
        (
            ("docs/dpo.md", "One rated file by three methods"),
            ("docs/dpo.md", "What the check says"),
            ("docs/kto.md", "What the check says"),
        ),
    ),
    Walk("migrating", (("docs/migrating.md", "The same run"), ("docs/tracking.md", "Where runs are kept"))),
    Walk("contributing", (("CONTRIBUTING.md", "Set up"),)),
]

ON_A_CLUSTER = [
    Walk("devcluster", (("docs/devcluster.md", "devcluster: a real Kubernetes on one Linux machine"),)),
    Walk(
        "start-platform",
        (
            ("docs/start-platform.md", "A cluster to try it on"),
            ("docs/start-platform.md", "Install"),
            ("docs/start-platform.md", "A first TuningJob"),
        ),
    ),
    Walk("start-ml", (("docs/start-ml.md", "The same on a cluster"),)),
    Walk("afterwards", (("docs/evaluation.md", "Fetch an adapter"), ("docs/tuningjob.md", "MLflow"))),
    Walk("install", (("docs/install.md", "Install"), ("docs/operations.md", "Teams"))),
    Walk(
        "tuningjob",
        (
            ("docs/tuningjob.md", "What happens"),
            ("docs/evaluation.md", "Held-out rows"),
            ("docs/evaluation.md", "Curves and runs in MLflow"),
        ),
    ),
    Walk(
        "kubectl-plugin",
        (
            ("docs/kubectl-plugin.md", "kubectl tuning"),
            ("docs/kubectl-plugin.md", "Keys of the fine-tuning API"),
        ),
    ),
    Walk("suspend", (("docs/tuningjob.md", "Retries, deadline, suspend"),)),
    Walk(
        "operations",
        (("docs/operations.md", "KServe side by side"), ("docs/troubleshooting.md", "Troubleshooting, by reason")),
    ),
    Walk(
        "upgrade",
        (
            ("docs/install.md", "Upgrade, roll back"),
            ("docs/install.md", "Uninstall"),
            ("docs/devcluster.md", "Without root: kind"),
        ),
    ),
]
"""In this order: the first makes a cluster and takes it down, the second makes the one of all others."""

OTHER_ROWS = (
    *("Reasoning in tags", "Conversations in one text", "Calls of xLAM", "Calls of Glaive", "Calls in tags"),
    *("Calls of ToolACE", "Ratings of UltraFeedback", "Ratings of distilabel", "Preferences of HelpSteer"),
    *("Ranks of Nectar", "Turns of Gemini", "Preferences of Gemini", "Answers A and B"),
)
RUN_ELSEWHERE = {
    **{("docs/other-rows.md", part): "tests/unit/llm_tuning/data/test_known_sets.py" for part in OTHER_ROWS},
    ("docs/serving.md", "Serving on one machine, and proving it"): "tests/engine/test_launch_llm.py",
    ("docs/serving.md", "What is served under which name"): "tests/engine/test_launch_llm.py",
    ("docs/client.md", "From rows to answers"): "tests/docs/test_client_page.py",
    ("docs/client.md", "Looking and waiting"): "tests/docs/test_client_page.py",
    ("docs/client.md", "Asking a service"): "tests/docs/test_client_page.py",
    ("docs/client.md", "Without blocking"): "tests/docs/test_client_page.py",
    ("README.md", "From Python and kubectl"): "tests/docs/test_client_page.py",
    ("charts/llm-tuning-api/README.md", "Install"): "tests/full/api/test_install.py",
    ("charts/llm-tuning-api/README.md", "Uninstall"): "tests/full/api/test_install.py",
    ("README.md", "With OpenAI's SDK"): "tests/train/test_openai_local.py",
    ("docs/coming-from-openai.md", "The script"): "tests/full/openai_api/test_script.py",
    ("docs/coming-from-openai.md", "A longer script to try"): "tests/full/openai_api/test_script.py",
    ("docs/coming-from-openai.md", "On this machine"): "tests/train/test_openai_local.py",
    ("docs/air-gapped.md", "With a mirror"): "tests/train/run/test_air_gapped_page.py",
    ("docs/air-gapped.md", "Carried over"): "tests/train/run/test_air_gapped_page.py",
    ("docs/air-gapped.md", "Without a network"): "tests/train/run/test_air_gapped_page.py",
    ("docs/air-gapped.md", "From a folder that can only be read"): "tests/train/run/test_air_gapped_page.py",
    ("docs/air-gapped.md", "On a cluster, without a network"): "tests/cluster/test_air_gapped_page.py",
}
"""Parts of pages that another test takes its commands from, since it has what they need at hand."""

RUN_ONCE = {
    "mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db": "docs/tracking.md",
}
"""A line that stands on several pages after the same steps, by the page where it is run: it takes 20 s to start."""

REPEATS = {"charts/llm-tuning/README.md": "docs/install.md"}
"""A page whose lines are those of another, where they are run. A line that differs is not meant."""

NOT_RUN = {
    r"make (setup|vllm-env)": "what they make is what runs the tests",
    r"make (demo|test)": "the demo runs in no test, being one; this is a part of `make test`",
    r"bash .* Qwen/Qwen3-0\.6B models/<modelId>": "the same with another adapter is a line of README",
    r"make gpu-check": "needs a GPU; tests/full/test_gpu_check.py runs the rehearsal",
    r"make images": "tests/command/release/test_images.py has the program behind it; the trainer's image takes minutes",
    r"(docker|kind) ": "no container engine, and no registry to push to",
    r"pip install '\.\[client\]'": "a registry; tests/full/release/test_packages.py looks at what the extra brings",
    r".*devcluster\.release images .*--engine docker": "no container engine",
    r"cosign |sha256sum --check SHA256SUMS": "there is no published release to check",
    r"from trl import SFTConfig": "the script that a reader comes from",
}
"""By how they begin, with the reason."""


@dataclass(frozen=True)
class Substitution:
    """`pattern` in a command becomes `replacement`, with {names} of the run in it."""

    pattern: str
    replacement: str
    why: str


SUBSTITUTIONS = [
    Substitution(r"(?<!\d)8000(?!\d)", "{port}", "somebody may have the port"),
    Substitution(r"\bmlflow (ui|server)\b", r"mlflow \1 --port {free_port}", "somebody may have the port 5000"),
    Substitution(r"--host 0\.0\.0\.0", "--host 127.0.0.1", "tests listen on loopback"),
    Substitution(r"ft_sft_qwen3-0\.6b_\d+_[0-9a-f]{6}|<modelId>", "{model_id}", "each run has an id of its own"),
    Substitution(r"sqlite:////workspace/", "sqlite:///{folder}/workspace/", "the claim is mounted in pods only"),
    Substitution(r"registry\.example/llm-tuning/operator:0\.1\.0", "localhost/llm-tuning/operator:dev", "no registry"),
    Substitution(
        r"registry\.example/llm-tuning/trainer:0\.1\.0",
        "localhost/llm-tuning/stand-in:dev",
        "no registry, and training for real is what the other installation does",
    ),
    Substitution(r"https://hub\.example\.com", "http://127.0.0.1:8090", "Olah, in a network of the test's own"),
    Substitution(r"--name try\b", "--name {cluster}", "several test runs on one machine"),
    Substitution(r"(make_base_model\.py \S+)", r"\1 --steps 30", "a shorter training"),
    Substitution(r"(--epochs 3 --learning_rate 2e-3)", r"\1 --max_steps 20", "a shorter training"),
    Substitution(r"(--epochs 3 --learning_rate 1e-4)", r"\1 --max_steps 4", "a shorter training"),
    Substitution(r"(answers\.json --model_id faq)$", r"\1 --max_steps 20", "a shorter training"),
]


@dataclass(frozen=True)
class Promise:
    """What a command that begins with `pattern` says, how it ends, and whether it ends at all."""

    pattern: str
    says: str = ""
    code: int = 0
    stays: bool = False


PROMISES = [
    Promise(r"python examples/demo/answers.py", says=r"log p\(plain\) - log p\(advertised\)( +[+-]\d+\.\d\d){5}$"),
    Promise(r"tune-llm validate .*--tuning_mode dpo", says=r"^Pairs +280 of 280 prompts; .* in 0%, by -30\.0 tokens"),
    Promise(r"tune-llm validate .*--tuning_mode kto", says=r"^Labels +280 good and 280 bad .* 39\.6 and 69\.6 tokens"),
    Promise(r"mlflow (ui|server)", says=r"Application startup complete", stays=True),
    Promise(r"kubectl get tj -w", says=r"^NAME +MODE +PHASE", stays=True),
    Promise(r"kubectl port-forward", says=r"^Forwarding from 127\.0\.0\.1", stays=True),
    Promise(r"tune-llm validate .*answers_with_a_mistake", says=r"row 7", code=64),
    Promise(r"tune-llm validate", says=r"^Rows:? +\d+ read, \d+ kept, 0 refused"),
    Promise(r"tune-llm report", says=r"^loss \(nats a token\) +\d"),
    Promise(r"tune-llm registry list", says=r"^MODEL_ID"),
    Promise(r"tune-llm sources fetch", says=r"fetched to sources/hf/"),
    Promise(r"tune-llm sources verify", says=r"as fetched"),
    Promise(r"tune-llm sources list", says=r"^hf://Qwen/Qwen3-0\.6B@[0-9a-f]{40} "),
    Promise(r"kubectl exec volume -- tune-llm registry verify", says=r"all as published"),
    Promise(r"tune-llm prove|bash .*launch_llm", says=r"\beffective\b"),
    Promise(r"tune-llm|cd llm_tuning && python codes/tune_llm", says=r"^held out"),
    Promise(r"curl", says=r'"role": ?"assistant"'),
    Promise(r"helm test", says=r"Phase: +Succeeded"),
    Promise(r"kubectl .*describe tj help-desk-mistake", says=r"row 7"),
    Promise(r"kubectl describe tj faq", says=r"Type: +Succeeded"),
    Promise(r"kubectl describe tisvc faq", says=r"Kind: +InferenceService"),
    Promise(r"kubectl get tj faq -o jsonpath='\{range", says=r"^Succeeded=True"),
    Promise(r"kubectl get tj faq .*evaluation", says=r"tunedLoss"),
    Promise(r"kubectl get tj faq .*adapterPath", says=r"^models/ft_sft_"),
    Promise(r"kubectl get events", says=r"TuningJob|tuningjob"),
    Promise(r"kubectl get pods -l", says=r"^faq-train-"),
    Promise(r"kubectl logs", says=r"Trained: "),
    Promise(r"kubectl tuning plan", says=r"memory"),
    Promise(r"kubectl tuning submit", says=r"faq created"),
    Promise(r"kubectl tuning logs", says=r"Trained: "),
    Promise(r"kubectl tuning explain", says=r"faq has succeeded"),
    Promise(r"kubectl tuning report", says=r"loss \(nats a token\)"),
    Promise(r"kubectl tuning api-key create", says=r"^sk-llmtuning-"),
    Promise(r"kubectl tuning api-key list", says=r"^alice +full "),
    Promise(r"kubectl get nodes", says=r" Ready "),
    Promise(r"python -m devcluster status", says=r"kubeconfig"),
]
"""The first that fits; a command without one ends with 0."""


def is_run(snippet: Snippet) -> bool:
    """Whether it is typed where it stands."""
    if RUN_ONCE.get(snippet.text, snippet.page) != snippet.page:
        return False
    if snippet.text in {each.text for each in _repeated(snippet.page)}:
        return False
    return not any(re.match(pattern, snippet.text) for pattern in NOT_RUN)


@cache
def _repeated(page: str) -> list[Snippet]:
    return snippets(ROOT / REPEATS[page]) if page in REPEATS else []


def not_accounted_for(given: Iterable[Snippet]) -> list[Snippet]:
    """Those that no test runs and that are not listed either."""
    parts = {part for walk in (*ON_THIS_MACHINE, *ON_A_CLUSTER) for part in walk.parts} | set(RUN_ELSEWHERE)
    return [each for each in given if (each.page, each.heading) not in parts and is_run(each)]


def texts(page: str, heading: str) -> list[str]:
    """What a part of a page tells to type."""
    return [snippet.text for snippet in snippets(ROOT / page) if snippet.heading == heading]


class Reader:
    """Somebody with a clone and its environments who types what the pages say; `hub` is the address of theirs."""

    def __init__(self, folder: Path, *, hub: str | None = None, within: Sequence[str] = (), **values: object) -> None:
        """`within` is a command that runs the shell in it: `unshare --net`."""
        self.folder = folder / "clone"
        self.values: dict[str, object] = {"folder": self.folder, "port": free_port(), **values}
        make_clone(self.folder)
        environment = {**os.environ, "PYTHONPATH": f"{self.folder}:{self.folder / 'operator'}"}
        if hub is not None:
            environment |= {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0"}
        self.terminal = Terminal(self.folder, folder / "said", environment, within=within)

    def follow(self, walk: Walk) -> None:
        """Type it all, and end what stays at its end."""
        for snippet in walk.snippets():
            began = time.monotonic()
            self.run(snippet)
            print(f"{time.monotonic() - began:6.1f} s  {snippet}")
        self.terminal.close_windows()

    def run(self, snippet: Snippet) -> None:
        """Raises AssertionError if the command does not do as it should."""
        command = self.typed(snippet)
        promise = next((p for p in PROMISES if re.match(p.pattern, snippet.text)), Promise(""))
        if promise.stays:
            self.terminal.open_window(command, says=promise.says, seconds=COMMAND_SECONDS)
            return
        typed = self.terminal.type(command, seconds=COMMAND_SECONDS)
        said = f"{snippet}\ntyped as: {command}\nexit code {typed.code}, and said:\n{typed.output}"
        assert typed.code == promise.code, said
        assert re.search(promise.says, typed.output, re.MULTILINE), f"does not say {promise.says!r}: {said}"

    def prepare(self, *commands: str) -> str:
        """Type what a page supposes to be done; returns what the last one says."""
        said = ""
        for command in commands:
            typed = self.terminal.type(command, seconds=COMMAND_SECONDS)
            assert typed.code == 0, f"{command}\nexit code {typed.code}, and said:\n{typed.output}"
            said = typed.output
        return said

    def typed(self, snippet: Snippet) -> str:
        """The command with SUBSTITUTIONS in it."""
        command = snippet.text
        for each in SUBSTITUTIONS:
            command = re.sub(each.pattern, each.replacement, command)
        for name, value in {**self.values, "free_port": free_port()}.items():
            command = command.replace(f"{{{name}}}", str(value))
        return f"python - <<'PAGE'\n{command}PAGE" if snippet.is_python else command


def make_clone(folder: Path) -> None:
    """The repository's files as they are now, and the environments that `make setup vllm-env` made."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    if (ROOT / ".venv-vllm").exists():
        (folder / ".venv-vllm").symlink_to((ROOT / ".venv-vllm").resolve())
