"""The plugin as it is called, against the answers of an API server; its exit codes are for scripts."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_tuning.kubectl.main import COMMANDS, main
from tests.support.fake_api_server import FakeApiServer
from tests.unit.llm_tuning.client.conftest import FAILED, SPEC, SUCCEEDED, condition, training

ROOT = Path(__file__).resolve().parents[4]
Call = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Exit code, standard output and standard error of the plugin with these arguments."""

    async def run(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.wait_for(asyncio.to_thread(main, arguments), 20)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def manifest(name: str, kind: str = "TuningJob", **spec: Any) -> dict[str, Any]:
    base = SPEC if kind == "TuningJob" else {"model": SPEC["model"], "volume": SPEC["volume"]}
    return {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {**base, **spec},
    }


def written(path: Path, *objects: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump_all(objects))
    return str(path)


async def test_submit_creates_all_and_checks_all_before(server: FakeApiServer, call: Call, tmp_path: Path) -> None:
    file = written(tmp_path / "both.yaml", manifest("a"), manifest("b", "InferenceService"))
    code, out, _ = await call("submit", "-f", file)
    assert code == 0
    assert out.splitlines() == [
        "tuningjob.tuning.llmtuning.dev/a created",
        "inferenceservice.tuning.llmtuning.dev/b created",
    ]
    before = len(server.requests)
    bad = written(tmp_path / "bad.yaml", manifest("c"), manifest("d", lora={"rank": 0}), manifest("E", retries=-1))
    code, out, err = await call("submit", "-f", bad)
    assert (code, out) == (64, "")
    assert f"error: {bad}: d: spec.lora.rank: must be at least 1, got 0" in err
    assert "E: spec.retries: must be at least 0, got -1" in err
    assert len(server.requests) == before, "not even the good one"
    code, _, err = await call("submit", "-f", file)
    assert code == 1
    assert "already exists" in err


async def test_submit_reads_standard_input_and_watches(
    server: FakeApiServer, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(yaml.safe_dump(manifest("faq"))))
    calling = asyncio.create_task(call("submit", "-f", "-", "--watch"))
    while not any("watch=true" in path for _, path, *_ in server.requests):
        await asyncio.sleep(0.01)
    await server.put("tuningjobs", "faq", status=training(50, loss=2.0))
    await server.put("tuningjobs", "faq", status=SUCCEEDED)
    code, out, err = await calling
    assert code == 0
    assert out.splitlines()[-1] == "TuningJob faq: Succeeded, loss 0.1"
    assert "TuningJob faq: Training, 50 %, loss 2" in err


async def test_an_object_of_another_namespace(server: FakeApiServer, call: Call, tmp_path: Path) -> None:
    values = manifest("faq")
    values["metadata"]["namespace"] = "other"
    file = written(tmp_path / "f.yaml", values)
    code, _, err = await call("submit", "-f", file, "-n", "team")
    assert code == 64
    assert "metadata.namespace: is 'other', but this client's namespace is 'team'" in err
    code, _, _ = await call("submit", "-f", file)  # as kubectl: that of the object
    assert code == 1
    assert "/namespaces/team/" not in " ".join(server.paths("POST"))


async def test_watch_ends_as_the_job_does(server: FakeApiServer, call: Call) -> None:
    await server.put("tuningjobs", "good", spec=SPEC, status=SUCCEEDED)
    await server.put("tuningjobs", "bad", spec=SPEC, status=FAILED)
    await server.put("tuningjobs", "slow", spec=SPEC, status=training(1))
    assert (await call("watch", "good"))[0] == 0
    code, _, err = await call("watch", "tj/bad")
    assert code == 1
    assert "TuningJob bad has failed: DatasetInvalid" in err
    code, _, err = await call("watch", "slow", "--timeout", "0.2")
    assert code == 75
    assert "not finished within 0.2 s" in err
    code, _, err = await call("watch", "nobody")
    assert code == 1
    assert "neither a TuningJob nor an InferenceService nobody in namespace team" in err
    code, _, err = await call("watch", "pod/x")
    assert (code, err) == (64, "error: pod/x: 'pod' is no kind of ours; write tj/NAME or tisvc/NAME\n")
    assert "did you mean tuningjob?" in (await call("watch", "tuningjop/good"))[2]


async def test_a_service_is_watched_and_explained_too(server: FakeApiServer, call: Call) -> None:
    spec = manifest("x", "InferenceService")["spec"]
    status = {"readyReplicas": 1, "url": "http://faq.team.svc", "conditions": [condition("Ready", "True", "Ready")]}
    await server.put("inferenceservices", "faq", spec=spec, status=status)
    assert (await call("watch", "faq"))[1] == "InferenceService faq: Ready\n"
    code, out, _ = await call("explain", "tisvc/faq")
    assert code == 0
    assert out.startswith("faq is Ready")


async def test_logs_and_explain(server: FakeApiServer, call: Call) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC, status=FAILED)
    server.add_pod("faq", "check", "faq-check-1", lines=["row 3: output is empty"])
    assert (await call("logs", "faq"))[1] == "row 3: output is empty\n"
    assert (await call("logs", "-f", "tj/faq"))[1] == "row 3: output is empty\n"
    code, _, said = await call("logs", "faq", "--rank", "1")
    assert (code, "TuningJob faq has no rank 1" in said) == (64, True)
    code, out, _ = await call("explain", "faq")
    assert code == 0
    assert " ".join(out.split()).startswith("faq has failed")


async def test_report_has_the_scores_and_the_place_of_the_adapter(server: FakeApiServer, call: Call) -> None:
    status = {
        **SUCCEEDED,
        "mlflowRunId": "5" * 32,
        "startTime": "2026-11-29T08:00:00Z",
        "completionTime": "2026-11-29T08:02:05Z",
        "evaluation": {"heldOutRows": 2, "baseLoss": 3.0, "startLoss": 2.0, "tunedLoss": 1.5, "basePerplexity": 20.1},
    }
    await server.put("tuningjobs", "faq", spec=SPEC, status=status)
    code, out, _ = await call("report", "faq")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["adapter", "models/ft_sft_tiny_1_abcdef", "on", "the", "claim", "tuning"] in lines
    assert ["took", "2:05"] in lines
    assert ["held", "out", "(2", "rows)", "base", "start", "tuned"] in lines
    assert ["loss", "(nats", "a", "token)", "3.0000", "2.0000", "1.5000"] in lines
    assert ["perplexity", "20.1000", "-", "-"] in lines
    await server.put("tuningjobs", "faq", status={**SUCCEEDED, "evaluation": None})
    assert "No rows were held out" in (await call("report", "faq"))[1]
    await server.put("tuningjobs", "faq", status=training(1))
    code, out, _ = await call("report", "faq")
    assert code == 75
    assert out.startswith("faq is Training")
    await server.put("tuningjobs", "faq", status=FAILED)
    assert (await call("report", "faq"))[0] == 1


async def test_plan_needs_no_cluster(
    call: Call, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    rows = "".join(f'{{"prompt": "What is {i}?", "output": "{i}."}}\n' for i in range(40))
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "faq.json").write_text(rows)
    file = written(tmp_path / "job.yaml", manifest("faq"))
    code, _, err = await call("plan", "-f", file, "--root", str(tmp_path))
    assert code == 64
    assert "give a local copy with --base" in err
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "tiny").symlink_to(tiny_base)
    code, out, _ = await call("plan", "-f", file, "--root", str(tmp_path))
    assert code == 0
    assert "steps    5 (8 rows a step, 1 epochs, 2 rows held out)" in out
    assert "80 GB (H100)       yes   under a minute" in out
    assert "pod memory: 2.0 GiB needed, 8.0 GiB given, enough" in out
    (tmp_path / "datasets" / "faq.json").unlink()
    assert "no steps and no time" in (await call("plan", "-f", file, "--root", str(tmp_path)))[1]
    (tmp_path / "datasets" / "faq.json").write_text('{"prompt": "no answer"}\n' * 3)
    code, _, err = await call("plan", "-f", file, "--root", str(tmp_path))
    assert code == 64
    assert "output" in err


async def test_plan_of_several_pods_says_of_how_many_and_that_each_has_its_own_memory(
    call: Call, tmp_path: Path, tiny_base: Path
) -> None:
    async def planned(asked: dict[str, Any], **resources: Any) -> str:
        file = written(tmp_path / "job.yaml", manifest("faq", resources=resources, training=asked))
        code, out, _ = await call("plan", "-f", file, "--base", str(tiny_base))
        assert code == 0
        return out

    on_gpus = await planned({}, gpus=4, nodes=2)
    assert on_gpus.splitlines()[0].endswith("GiB on each of 2 nodes x 4 GPUs")
    assert "pod memory in each of 2 pods: " in on_gpus
    assert (await planned({}, gpus=4)).splitlines()[0].endswith("GiB on each of 4 GPUs")
    on_cpus = await planned({}, gpus=0, nodes=2, memory="1Gi")
    assert on_cpus.splitlines()[0].endswith("GiB on each of 2 pods")
    (note,) = [line for line in on_cpus.splitlines() if "only with training.sharding: full" in line]
    divided = await planned({"sharding": "full"}, gpus=0, nodes=2, memory="1Gi")
    assert "only with training.sharding: full" not in divided
    needed = re.search(r"pod memory in each of 2 pods: (\S+ GiB) needed", divided)
    assert needed is not None
    assert note.endswith(f"which takes {needed[1]} in each of 2 pods")


async def test_a_file_for_the_command_line_is_told_from_a_tuning_job(call: Call, tmp_path: Path) -> None:
    file = written(tmp_path / "run.yaml", {"llm_path": "base/tiny", "dataset_path": "faq.json"})
    code, _, err = await call("plan", "-f", file)
    assert code == 64
    assert "holds no TuningJob; this is a file for `tune-llm --config`" in err


async def test_a_kind_in_the_wrong_case_is_named(call: Call, tmp_path: Path) -> None:
    file = written(tmp_path / "job.yaml", manifest("a"), manifest("b") | {"kind": "Tuningjob"})
    code, _, err = await call("plan", "-f", file)
    assert (code, err) == (64, f"error: {file}: holds a Tuningjob; did you mean TuningJob?\n")
    code, _, err = await call("submit", "-f", file)
    assert code == 64
    assert "got 'Tuningjob' of 'tuning.llmtuning.dev/v1alpha1'; did you mean TuningJob?" in err


async def test_plan_names_all_that_is_not_here(call: Call, tmp_path: Path) -> None:
    file = written(tmp_path / "job.yaml", manifest("faq"))
    code, _, err = await call("plan", "-f", file, "--base", str(tmp_path / "b"), "--dataset", str(tmp_path / "d"))
    assert code == 64
    assert [line.partition(" on this")[0] for line in err.splitlines()] == [
        f"error: --base: there is no {tmp_path}/b",
        f"error: --dataset: there is no {tmp_path}/d",
    ]
    err = (await call("plan", "-f", file, "--base", file, "--dataset", f"{tmp_path}/*.csv"))[2]
    assert f"--base: {file} is a file, and a folder is needed" in err
    assert f"--dataset: there is no {tmp_path}/*.csv on this machine" in err


async def test_plan_takes_one_copy_for_several_jobs_only_where_they_share_it(
    call: Call, tmp_path: Path, tiny_base: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "What is {i}?", "output": "{i}."}}\n' for i in range(4)))
    copies = ("--base", str(tiny_base), "--dataset", str(rows))
    same = written(tmp_path / "same.yaml", manifest("a"), manifest("b", retries=1))
    code, out, _ = await call("plan", "-f", same, *copies)
    assert code == 0
    assert out.count("8 rows a step") == 2
    other = manifest("b", model={"path": "base/other"}, dataset={"path": "datasets/other.json"})
    code, _, err = await call("plan", "-f", written(tmp_path / "other.yaml", manifest("a"), other), *copies)
    assert code == 64
    assert [line.partition(": is one for all")[0] for line in err.splitlines()] == [
        "error: --base",
        "error: --dataset",
    ]
    assert "theirs differ (spec.dataset); give the folder of the claim's files with --root, or plan each" in err


async def test_bad_flags_and_no_cluster_say_so(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ([], ["sumbit"], ["watch"], ["submit"], ["logs", "a", "--wrong"]):
        code, _, err = await call(*arguments)
        assert code == 64
        assert err.startswith("error: ")
    assert "got 'sumbit'; did you mean submit?" in (await call("sumbit"))[2]
    assert "--wach: is not a known flag; did you mean --watch?" in (await call("submit", "-f", "x", "--wach"))[2]
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    code, _, err = await call("watch", "faq")
    assert code == 64
    assert "none: does not exist, and a kubeconfig is needed; set KUBECONFIG to one that does" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert COMMANDS[command] in " ".join(capsys.readouterr().out.split())
