"""spec.serve of a TuningJob: an InferenceService once there is an adapter, and an end whatever comes of it."""

from __future__ import annotations

from llm_tuning.api.inference_service import InferenceServiceSpec
from llm_tuning.pod.roles import CHECK, TRAIN
from tests.support.operator_objects import CHECKED, MODEL_ID, TRAINED, UID
from tests.support.service_objects import make_service
from tests.unit.tuning_operator.tuning_job.test_reconciler import Bench
from tuning_operator.core.cache import INFERENCE_SERVICES
from tuning_operator.core.constants import MADE_FOR_ANNOTATION
from tuning_operator.core.errors import Forbidden

SERVE = {"name": "support", "replicas": 2, "resources": {"gpus": 0}}


async def train(bench: Bench) -> None:
    bench.start(serve=SERVE)
    await bench.look()
    bench.end_job(CHECK, CHECKED)
    await bench.look()
    bench.end_job(TRAIN, TRAINED)
    await bench.look()
    await bench.look()


async def test_the_adapter_is_served_by_an_object_of_its_own() -> None:
    bench = Bench()
    await train(bench)
    made = bench.cluster.get(INFERENCE_SERVICES, "support")
    assert made is not None
    assert "ownerReferences" not in made["metadata"], "it outlives the TuningJob"
    spec = InferenceServiceSpec.parse(made["spec"])
    assert [(route.name, [target.model_id for target in route.targets]) for route in spec.routes] == [
        ("support", [MODEL_ID])
    ]
    assert (spec.replicas, spec.resources.gpus, spec.volume.claim_name) == (2, 0, "tuning")
    assert bench.condition("Served") == ("True", "ServiceCreated")
    assert bench.condition("Finished") == ("True", "Finished")
    assert bench.cluster.writes.count("create support") == 1


async def test_one_that_is_there_is_left_as_it_is() -> None:
    bench = Bench()
    theirs = bench.cluster.add(INFERENCE_SERVICES, make_service("support"))
    await train(bench)
    assert bench.cluster.get(INFERENCE_SERVICES, "support") == theirs
    assert bench.condition("Served") == ("False", "ServiceExists")
    assert bench.condition("Succeeded") == ("True", "Succeeded"), "there is an adapter all the same"


async def test_one_made_before_a_crash_is_known_again() -> None:
    bench = Bench()
    made = make_service("support")
    made["metadata"] |= {"annotations": {MADE_FOR_ANNOTATION: UID}, "uid": "uid-support"}
    bench.cluster.add(INFERENCE_SERVICES, made)
    await train(bench)
    assert bench.condition("Served") == ("True", "ServiceCreated")


async def test_one_made_for_a_namesake_that_was_deleted_is_not_taken_for_ours() -> None:
    bench = Bench()
    made = make_service("support")
    made["metadata"] |= {"annotations": {MADE_FOR_ANNOTATION: "uid-of-the-namesake"}, "uid": "uid-support"}
    bench.cluster.add(INFERENCE_SERVICES, made)
    await train(bench)
    assert bench.condition("Served") == ("False", "ServiceExists")


async def test_a_refusal_is_said_and_does_not_hold_up_the_end() -> None:
    bench = Bench()

    def refuse(moment: str, write: str) -> None:
        if moment == "before" and write == "create support":
            raise Forbidden("inferenceservices is forbidden")

    bench.cluster.hook = refuse
    await train(bench)
    assert bench.condition("Served") == ("False", "ServiceRefused")
    assert bench.condition("Finished") == ("True", "Finished")


async def test_without_serve_nothing_is_said_of_it() -> None:
    bench = Bench()
    bench.start()
    await bench.look()
    assert "Served" not in {c["type"] for c in bench.status["conditions"]}
