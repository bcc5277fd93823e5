"""What a notebook shows is whole HTML whatever the texts are, and a curve where there is one."""

from __future__ import annotations

import asyncio
from xml.etree import ElementTree

from llm_tuning.client import AsyncTuningClient, LossPoint, TuningClient
from llm_tuning.client.display import MOST_POINTS, loss_svg
from tests.support.fake_api_server import FakeApiServer, status_object
from tests.unit.llm_tuning.client.conftest import FAILED, SPEC, SUCCEEDED, condition, training


def parsed(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{html}</div>")


def cells(html: str) -> dict[str, str]:
    """The table's second column by the first."""
    return {row[0].text or "": row[1].text or "" for row in parsed(html).iter("tr")}


async def test_a_finished_job_and_its_curve(server: FakeApiServer) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC, status=SUCCEEDED)
    lines = [f'{{"percent": 1, "step": {step}, "loss": {3 - step / 50}}}' for step in range(1, 101)]
    server.add_pod("faq", "train", "faq-train-1", lines=lines)
    with TuningClient(connection=server.connection) as client:
        job = await asyncio.to_thread(client.get, "faq")
        html = await asyncio.to_thread(job._repr_html_)
        server.next_answers += [status_object(500, "InternalError", "x")]
        without = await asyncio.to_thread(job._repr_html_)
    assert cells(html) == {
        "phase": "Succeeded",
        "mode": "sft",
        "base": "base/tiny",
        "progress": "100 %, step 100 of 100",
        "loss": "0.1",
        "adapter": "models/ft_sft_tiny_1_abcdef",
        "held out loss": "3 (base) → 1.5 (tuned)",
    }
    assert "step 1<" in html
    assert "step 100<" in html
    assert "<svg" in html
    assert cells(without) == cells(html)
    assert "<svg" not in without


async def test_troubles_are_told_and_texts_are_no_html(server: FakeApiServer, client: AsyncTuningClient) -> None:
    status = training(10, loss=2.0)
    status["conditions"].append(condition("Stalled", "True", "QuotaExceeded", "<script>alert(1)</script> & more"))
    await server.put("tuningjobs", "faq", spec=SPEC, status=status)
    html = (await client.get("faq"))._repr_html_()
    assert cells(html)["stalled"] == "QuotaExceeded: <script>alert(1)</script> & more"
    assert "<script>" not in html
    assert cells(html)["left"] == "1:00"
    await server.put("tuningjobs", "faq", status=FAILED)
    assert cells((await client.get("faq"))._repr_html_())["failed"].startswith(
        "DatasetInvalid: datasets/faq.json, row 3"
    )


async def test_a_service_with_its_adapters(server: FakeApiServer, client: AsyncTuningClient) -> None:
    route = {"name": "faq", "targets": [{"tuningJob": "faq"}]}
    spec = {"model": {"path": "base/tiny"}, "volume": {"claimName": "tuning"}, "routes": [route], "replicas": 2}
    adapter = {"modelId": "ft_a", "effective": "False", "reason": "NoEffect", "message": "it changes nothing"}
    status = {
        "readyReplicas": 1,
        "url": "http://faq.team.svc",
        "adapters": [adapter],
        "conditions": [condition("Ready", "False", "NoEffect", "ft_a: it changes nothing")],
    }
    await server.put("inferenceservices", "faq", spec=spec, status=status)
    assert cells((await client.get_service("faq"))._repr_html_()) == {
        "ready": "no",
        "models": "faq, tiny",
        "replicas": "1 of 2 answer",
        "url": "http://faq.team.svc",
        "ft_a": "effective: False, NoEffect",
        "why": "NoEffect: ft_a: it changes nothing",
    }


def test_the_curve_stays_in_its_frame_and_is_thinned() -> None:
    assert loss_svg([LossPoint(1, 1.0)]) == ""
    points = [LossPoint(step, 5.0 / step) for step in range(1, 10_000)]
    line = parsed(loss_svg(points)).find(".//{http://www.w3.org/2000/svg}polyline")
    assert line is not None
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert len(places) <= 2 * MOST_POINTS
    assert all(0 <= x <= 420 and 0 <= y <= 120 for x, y in places)
    assert places == sorted(places), "from left to right, and falling on the screen as the loss does"
    assert "polyline" in loss_svg([LossPoint(1, 2.0), LossPoint(2, 2.0)]), "a flat one is no division by zero"
