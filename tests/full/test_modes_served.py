"""A TuningJob of each mode that learns from answers, on one base; their adapters served, proven and asked with tools.

The base calls tools in the right form, and always the wrong one. Rows with the right calls (sft), right against wrong
calls (dpo) and calls marked as good and bad (kto) teach the right one. The InferenceService derives its parser from the
base's chat template, so what clients get of requests that no row has are calls, and the right ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.client import TuningClient
from tests.support.serving import VLLM_IMAGE, condition_of, inference_service, put, status_of, wait_for
from tests.support.tool_rows import TOOLS, Request, make_tool_base, requests, teach_format, with_other_tools
from tests.support.tuning_namespace import TRAINER_IMAGE, TuningNamespace, tuning_job, tuning_namespace

MODES = ("sft", "dpo", "kto")
BASE, SERVICE = "caller", "callers"
TRAINING = {"batchSize": 6, "precision": "fp32", "epochs": 12, "learningRate": 5e-3}
FROM_SFT = {"epochs": 4, "learningRate": 2e-4}
"""Where dpo begins, as it best does; from a base that never makes the right call it would unlearn all calls."""
GENTLY = {"learningRate": 2e-3}
"""For kto: at sft's rate all labels are told apart, and yet, by the processor, only 7 of 12 calls are right."""
SCORE = {"dpo": "reward_accuracy", "kto": "label_accuracy"}
"""One of the scores that only the mode has."""
READ_ALL = """
import json, sys
from mlflow import MlflowClient
from mlflow.tracking import set_tracking_uri
for model_id in sys.argv[1:]:
    manifest = json.load(open(f"/workspace/models/{model_id}/model.json"))
    set_tracking_uri(manifest["mlflow"]["uri"])
    tracked = MlflowClient().get_run(manifest["mlflow"]["run_id"]).data.metrics
    card = open(f"/workspace/models/{model_id}/README.md").read()
    print(json.dumps({"manifest": manifest["metrics"], "mlflow": tracked, "card": card}))
"""


def rows_of(mode: str, chosen: list[Request]) -> list[dict[str, Any]]:
    """The requests with the right tool, and for dpo and kto with a wrong one, too."""
    both = list(zip(chosen, with_other_tools(chosen), strict=True))
    if mode == "sft":
        return [{"tools": TOOLS, "messages": right.messages} for right in chosen]
    if mode == "dpo":
        return [
            {"tools": TOOLS, "prompt": right.messages[:1], "chosen": right.messages[1:], "rejected": wrong.messages[1:]}
            for right, wrong in both
        ]
    return [{"tools": TOOLS, "messages": each.messages, "label": each is pair[0]} for pair in both for each in pair]


def make_claim(folder: Path) -> None:
    """The base and the rows of each mode, laid out as on the claim."""
    teach_format(make_tool_base(folder.parent / "random"), folder / "base" / BASE, steps=(220, 60))
    (folder / "datasets").mkdir()
    for mode in MODES:
        for name, held_out in ((mode, False), (f"{mode}-eval", True)):
            rows = rows_of(mode, requests(held_out=held_out))
            (folder / "datasets" / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def make_job(mode: str) -> dict[str, Any]:
    start: dict[str, Any] = {"lora": {"rank": 16, "alpha": 32}, "training": TRAINING}
    if mode == "dpo":
        start = {"model": {"adapter": {"tuningJob": "sft"}}, "training": TRAINING | FROM_SFT}
    if mode == "kto":
        start["training"] = TRAINING | GENTLY
    return tuning_job(
        mode,
        mode=mode,
        dataset={"path": f"datasets/{mode}.jsonl", "evaluation": f"datasets/{mode}-eval.jsonl"},
        resources={"cpu": "500m", "memory": "4Gi"},
        **start | {"model": {"path": f"base/{BASE}", **start.get("model", {})}},
    )


@pytest.fixture(scope="module")
def space(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TuningNamespace]:
    """Where all three jobs have been applied, and the service of their adapters."""
    folder = tmp_path_factory.mktemp("made") / "claim"
    make_claim(folder)
    values = {"images.vllm": VLLM_IMAGE}
    with tuning_namespace(cluster, trainer=TRAINER_IMAGE, values=values, images=(VLLM_IMAGE,)) as namespace:
        put(namespace, folder)
        namespace.apply(*(make_job(mode) for mode in MODES))
        for mode in MODES:
            namespace.wait(mode, "Finished", seconds=400)
        routes = {mode: [{"tuningJob": mode}] for mode in MODES}
        spec = {"model": {"path": f"base/{BASE}"}, "vllm": {"maxModelLen": 1024}}
        namespace.apply(inference_service(SERVICE, routes, **spec))
        yield namespace


def job_of(space: TuningNamespace, mode: str) -> dict[str, Any]:
    found = space.get("tuningjobs", mode)
    assert found is not None
    return found


def test_the_scores_of_the_mode_are_in_status_manifest_card_tracking_and_report(space: TuningNamespace) -> None:
    statuses = {mode: job_of(space, mode)["status"] for mode in MODES}
    for mode in MODES:
        assert space.conditions(mode)["Succeeded"]["status"] == "True", statuses[mode]
    ids = [statuses[mode]["modelId"] for mode in MODES]
    printed = space.run(
        "read", TRAINER_IMAGE, "python", "-c", READ_ALL, *ids, seconds=240
    )  # torch, MLflow, vLLM beside it
    read = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    for mode, model_id, found in zip(MODES, ids, read, strict=True):
        evaluation, tuned = statuses[mode]["evaluation"], found["manifest"]["tuned"]
        print(mode, {name: round(value, 3) for name, value in tuned.items()})
        if mode in SCORE:
            name = SCORE[mode]
            assert tuned[name] > 0.9
            assert found["mlflow"][f"eval/{name}"] == tuned[name]
            assert evaluation["tuned" + "".join(word.title() for word in name.split("_"))] == pytest.approx(tuned[name])
        assert evaluation["tunedCallsEqual"] == pytest.approx(tuned["calls_equal"], abs=1e-5)
        assert tuned["calls_equal"] >= 0.9
        assert evaluation["baseCallsEqual"] == 0
        assert found["mlflow"]["eval/calls_equal"] == tuned["calls_equal"]
        assert "| Calls as recorded | 0 | " in found["card"]
        report = ["tune-llm", "report", model_id, "--output_dir", "/workspace/models"]
        assert "calls as recorded" in space.run(f"report-{mode}", TRAINER_IMAGE, *report)


def test_the_adapters_are_proven_and_answer_with_calls_that_are_parsed(space: TuningNamespace) -> None:
    wait_for(space, SERVICE, seconds=500)
    adapters = status_of(space, SERVICE)["adapters"]
    assert [(a["tuningJob"], a["effective"], a["reason"]) for a in adapters] == [
        (mode, "True", "Effective") for mode in MODES
    ]
    assert condition_of(space, SERVICE, "AdaptersEffective")[0] == "True"
    request = requests(held_out=True)[0]
    with TuningClient(kubeconfig=space.cluster.kubeconfig, namespace=space.name) as client:
        for mode in (*MODES, BASE):
            how: dict[str, Any] = {"tools": TOOLS, "max_tokens": 96, "temperature": 0}
            answer = client.chat(SERVICE, request.messages[:1], model=mode, **how)
            [call] = answer.tool_calls
            assert json.loads(call["function"]["arguments"]) == {"thing": request.thing, "times": 1}
            assert (call["function"]["name"] == request.tool) == (mode != BASE), mode
