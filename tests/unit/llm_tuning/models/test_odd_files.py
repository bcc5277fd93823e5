"""A pipe, a socket, a device, a folder or gigabytes of nothing in the place of any file: each reader says so at once.

Whoever may write to a volume can put them there, and a hung network volume looks the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from llm_tuning.agent.contract import DesiredRoutes, ServeInput
from llm_tuning.agent.fit import Misfit, find_misfit
from llm_tuning.agent.plan import make_plan
from llm_tuning.api.conditions import AdapterReason
from llm_tuning.api.inference_service import VllmSpec
from llm_tuning.core.files import file_hash, open_regular, read_file, read_json, write_json
from llm_tuning.data.tokens import RowTokenizer
from llm_tuning.engines.vllm.adapter import inspect_adapter
from llm_tuning.errors import InputError
from llm_tuning.models.base import inspect_base, weight_hash
from llm_tuning.models.registry import Registry
from llm_tuning.models.safetensors import read_header
from llm_tuning.proof.parity import Unprovable, read_parity
from tests.support.odd_files import ODD, put, soon
from tests.unit.llm_tuning.agent.conftest import BASE_HASH, PLAN, TEMPLATE, desire, write_adapter, write_safetensors

ADAPTER_FILES = ("adapter_config.json", "model.json", "parity.json", "chat_template.jinja", "adapter_model.safetensors")
BASE_FILES = ("config.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors", "tokenizer.json")
UNREAD = ("3 GiB of nothing", "nested", "folder", "link to itself")
"""Harmless in a file that this reader does not open."""


def is_fine(name: str, form: str) -> bool:
    """A template of brackets is one, and a link to itself is no template."""
    return name == "chat_template.jinja" and form in ("nested", "link to itself")


forms = pytest.mark.parametrize("form", ODD)


def write_base(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, text in {
        "config.json": '{"architectures": ["LlamaForCausalLM"]}',
        "tokenizer_config.json": "{}",
        "generation_config.json": "{}",
        "chat_template.jinja": "{{ messages }}",
    }.items():
        (folder / name).write_text(text)
    Tokenizer(WordLevel({"a": 0})).save(str(folder / "tokenizer.json"))
    write_safetensors(folder / "model.safetensors", {"model.layers.0.self_attn.q_proj.weight": (4, 4)})
    return folder


@forms
def test_a_reader_of_files_refuses_what_is_none(tmp_path: Path, form: str) -> None:
    put(tmp_path / "file", form)
    for read in (read_json, read_header) if form == "nested" else (read_file, read_json, read_header):
        assert isinstance(soon(lambda read=read: read(tmp_path / "file")), OSError | ValueError)  # type: ignore[misc]
    if form not in ("3 GiB of nothing", "nested"):
        for read in (open_regular, file_hash):
            assert isinstance(soon(lambda read=read: read(tmp_path / "file")), OSError)  # type: ignore[misc]


def test_a_pipe_that_takes_a_files_place_after_the_look_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "file", "named pipe")
    monkeypatch.setattr("llm_tuning.core.files.check_regular", lambda path, **_: 0)
    assert isinstance(soon(lambda: open_regular(tmp_path / "file")), OSError)


@forms
@pytest.mark.parametrize("name", [*ADAPTER_FILES, "tokenizer.json", "of_no_use"])
def test_the_launcher_refuses_an_adapter_with_it(tmp_path: Path, name: str, form: str) -> None:
    folder = write_adapter(tmp_path, "ft_a", dtype="float32", template="{{ messages }}")
    put(folder / name, form)
    result = soon(lambda: inspect_adapter(folder, None))
    if form not in UNREAD or (name in ADAPTER_FILES and not is_fine(name, form)):
        assert isinstance(result, InputError)
        assert name in str(result)
    else:
        assert not isinstance(result, Exception)


@forms
@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_the_agent_says_what_is_wrong_with_the_adapter(tmp_path: Path, name: str, form: str) -> None:
    folder = write_adapter(tmp_path, "ft_a", dtype="float32", template=TEMPLATE)
    put(folder / name, form)
    misfit = soon(lambda: find_misfit(folder, PLAN))
    assert isinstance(misfit, Misfit) or form == "link to itself"
    if isinstance(misfit, Misfit):
        assert misfit.reason == (
            AdapterReason.TEMPLATE_MISMATCH if is_fine(name, form) else AdapterReason.ADAPTER_INVALID
        )
        assert name in misfit.message


@forms
@pytest.mark.parametrize("name", [*BASE_FILES, "model.safetensors.index.json", "generation_config.json"])
def test_the_check_of_a_base_refuses_it(tmp_path: Path, name: str, form: str) -> None:
    base = write_base(tmp_path / "base")
    put(base / name, form)

    def check() -> Any:
        inspect_base(base)
        return RowTokenizer.load(base)

    result = soon(check)
    if form == "link to itself" or is_fine(name, form):
        assert not isinstance(result, Exception) or isinstance(result, InputError)
    else:
        assert isinstance(result, InputError)
        assert name in str(result)


@forms
@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_the_plan_of_a_pod_is_made_without_the_adapter(tmp_path: Path, name: str, form: str) -> None:
    write_base(tmp_path / "claim/base/tiny")
    put(write_adapter(tmp_path / "claim/models", "ft_bad", rank=64) / name, form)
    given = ServeInput(model_path="base/tiny", base_name="tiny", gpus=1, vllm=VllmSpec())
    plan = soon(lambda: make_plan(given, desire({"bad": "ft_bad"}), tmp_path / "claim", scratch=tmp_path))
    assert not isinstance(plan, Exception)


@forms
def test_the_plan_of_a_pod_says_what_is_wrong_with_the_base(tmp_path: Path, form: str) -> None:
    given = ServeInput(model_path="base/tiny", base_name="tiny", gpus=1, vllm=VllmSpec())
    for name in BASE_FILES[:4]:
        put(write_base(tmp_path / name / "base/tiny") / name, form)
        plan = soon(lambda name=name: make_plan(given, DesiredRoutes(), tmp_path / name, scratch=tmp_path))  # type: ignore[misc]
        assert is_fine(name, form) or form == "link to itself" or isinstance(plan, InputError), name


@forms
def test_noted_hashes_that_cannot_be_read_are_computed(tmp_path: Path, form: str) -> None:
    base = write_base(tmp_path / "claim/base/tiny")
    (tmp_path / "claim/models/.cache").mkdir(parents=True)
    put(tmp_path / "claim/models/.cache/base_hashes.json", form)
    given = ServeInput(model_path="base/tiny", base_name="tiny", gpus=1, vllm=VllmSpec())
    plan = soon(lambda: make_plan(given, DesiredRoutes(), tmp_path / "claim", scratch=tmp_path))
    assert not isinstance(plan, Exception)
    assert plan.base_hash == weight_hash(inspect_base(base), tmp_path / "other.json")


@forms
def test_a_proof_says_that_probes_cannot_be_read(tmp_path: Path, form: str) -> None:
    folder = write_adapter(tmp_path, "ft_a", dtype="float32")
    put(folder / "parity.json", form)
    assert isinstance(soon(lambda: read_parity(folder)), Unprovable)


@forms
@pytest.mark.parametrize("name", ["model.json", "adapter_config.json", "registry.json"])
def test_the_registry_names_it_and_lists_the_others(tmp_path: Path, name: str, form: str) -> None:
    models = tmp_path / "models"
    about = {"mode": "sft", "size": 10_000, "base": {"name": "tiny", "path": "base/tiny", "weight_hash": BASE_HASH}}
    for model_id in ("ft_a", "ft_b"):
        folder = write_adapter(models, model_id, manifest=about)
        manifest = read_json(folder / "model.json")
        manifest["files"]["adapter_config.json"] = file_hash(folder / "adapter_config.json")
        write_json(folder / "model.json", manifest)
    put(models / name if name == "registry.json" else models / "ft_a" / name, form)
    result = soon(lambda: Registry(models).heal())
    if name == "registry.json" and isinstance(result, Exception):
        assert isinstance(result, InputError)
        assert "move it away" in str(result)
        return
    assert not isinstance(result, Exception)
    assert "ft_b" in result.index.ids
    problems = soon(lambda: Registry(models).verify())
    assert isinstance(problems, list)
    assert name == "registry.json" or any("ft_a" in problem.where for problem in problems)
