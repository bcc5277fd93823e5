"""What a Secret's keys do to a trainer: the credentials of a tracker arrive, what would decide what runs does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LOOK = """
import json, logging, os, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
from llm_tuning.pod.credentials import adopt_credentials
adopt_credentials()
print(json.dumps(dict(os.environ)))
"""


def adopted(folder: Path, keys: dict[str, bytes], **environment: str) -> tuple[dict[str, str], str]:
    """A mounted Secret as the kubelet lays it, taken in by a process of its own: its environment, and its log."""
    import json

    data = folder / "..2026_11_30"
    data.mkdir(parents=True)
    for name, value in keys.items():
        (data / name).write_bytes(value)
        (folder / name).symlink_to(Path("..data") / name)
    (folder / "..data").symlink_to("..2026_11_30")
    given = {"PYTHONPATH": str(ROOT), "LLM_TUNING_CREDENTIALS": str(folder), "PATH": os.environ["PATH"], **environment}
    done = subprocess.run([sys.executable, "-c", LOOK], env=given, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


def test_credentials_arrive_and_nothing_that_decides_what_runs(tmp_path: Path) -> None:
    hostile = [
        *("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "PYTHONINSPECT", "LD_PRELOAD", "LD_LIBRARY_PATH", "PATH"),
        *("HOME", "BASH_ENV", "GIT_SSH_COMMAND", "PIP_INDEX_URL", "HF_ENDPOINT", "HF_HUB_OFFLINE", "NCCL_NET_PLUGIN"),
        *(
            "CUDA_VISIBLE_DEVICES",
            "LLM_TUNING_POD",
            "LLM_TUNING_ROOT",
            "KUBEFLOW_TRAINER_SERVER_URL",
            "OMP_NUM_THREADS",
        ),
        *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES"),
        *(
            "AZURE_CONFIG_DIR",
            "mlflow_tracking_token",
            "XMLFLOW_A",
            "MLFLOW_",
            "AWS_a.b",
            "TRANSFORMERS_CACHE",
            "TMPDIR",
        ),
    ]
    wanted = [
        *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"),
        *(
            "AWS_SECRET_ACCESS_KEY",
            "AZURE_STORAGE_CONNECTION_STRING",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "DATABRICKS_TOKEN",
        ),
        *("HTTP_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"),
        *("CURL_CA_BUNDLE", "PGPASSWORD", "DATABRICKS_TOKEN"),
    ]
    keys = {name: f"value-of-{name}".encode() for name in (*hostile, *wanted)}
    environment, log = adopted(tmp_path / "secret", keys)
    taken = {name for name, value in environment.items() if value == f"value-of-{name}"}
    assert taken == set(wanted)
    assert all(name in log for name in hostile), "what is left out is named"
    assert "value-of-" not in log
    assert "..data" not in log


@pytest.mark.parametrize(
    ("value", "seen"), [(b"s3cret\n", "s3cret"), (b"s3cret", "s3cret"), (b" a b \n", " a b "), (b"", "")]
)
def test_the_line_break_of_a_file_is_no_part_of_a_value(tmp_path: Path, value: bytes, seen: str) -> None:
    environment, _ = adopted(tmp_path / "secret", {"MLFLOW_TRACKING_PASSWORD": value})
    assert environment["MLFLOW_TRACKING_PASSWORD"] == seen


def test_the_container_goes_before_the_secret(tmp_path: Path) -> None:
    environment, _ = adopted(tmp_path / "secret", {"HTTPS_PROXY": b"theirs"}, HTTPS_PROXY="the platform's")
    assert environment["HTTPS_PROXY"] == "the platform's"


@pytest.mark.parametrize("value", [b"a\0b", b"x" * 200_000, b"\xff\xfe"], ids=["NUL", "too long", "no text"])
def test_an_odd_value_does_not_end_the_trainer(tmp_path: Path, value: bytes) -> None:
    environment, _ = adopted(tmp_path / "secret", {"MLFLOW_TRACKING_TOKEN": value, "AWS_REGION": b"eu"})
    assert environment["AWS_REGION"] == "eu"


def test_without_a_secret_nothing_changes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_code_of_a_secret_is_not_run(tmp_path: Path) -> None:
    """The whole way: `python -m llm_tuning.pod train`, a sitecustomize on the claim, and a Secret that points to it."""
    claim = tmp_path / "claim"
    claim.mkdir()
    (claim / "sitecustomize.py").write_text("print('INJECTED CODE RUNS')")
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "PYTHONPATH").write_text(str(claim))
    environment = {"PYTHONPATH": str(ROOT), "LLM_TUNING_CREDENTIALS": str(folder), "LLM_TUNING_POD": "{}"}
    environment |= {"TERMINATION_LOG": str(tmp_path / "result"), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-m", "llm_tuning.pod", "train"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 64
    assert "INJECTED" not in done.stdout + done.stderr
    assert "not taken into the environment: PYTHONPATH" in done.stderr
