"""50 adapters on two replicas of real vLLM, nothing changing: what the operator writes and the agents report."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.devcluster import own_cluster
from tests.support.serving import VLLM_IMAGE, inference_service, make_files, put, status_of, wait_for
from tests.support.tuning_namespace import STAND_IN_IMAGE, TuningNamespace, pod, tuning_namespace

ADAPTERS, REPLICAS, QUIET_SECONDS = 50, 2, 60
REPORT_SECONDS = 15


def test_fifty_adapters_at_rest(tmp_path: Path) -> None:
    files = make_files(tmp_path / "claim", {"ft_0": {"b_scale": 0.05}})
    names = [f"ft_{number}" for number in range(ADAPTERS)]
    for name in names[1:]:
        _copy(files.folder / "models" / "ft_0", files.folder / "models" / name)
    with (
        own_cluster("serving-bench") as cluster,
        tuning_namespace(cluster, values={"images.vllm": VLLM_IMAGE}, images=(VLLM_IMAGE,)) as namespace,
    ):
        put(namespace, files.folder)
        routes: dict[str, Any] = {f"route-{name}": name for name in names}
        began = time.monotonic()
        namespace.apply(inference_service("faq", routes, replicas=REPLICAS))
        wait_for(namespace, "faq", seconds=600)
        print(f"\n{ADAPTERS} adapters proven on {REPLICAS} replicas after {time.monotonic() - began:.0f} s")
        assert len(status_of(namespace, "faq")["adapters"]) == ADAPTERS
        print(f"status: {len(json.dumps(status_of(namespace, 'faq'))) / 1024:.0f} KiB")
        namespace.apply(pod("look", STAND_IN_IMAGE, ["sleep", "600"], claim=None))
        namespace.kubectl("wait", "--for=condition=Ready", "pod/look", "--timeout=60s")
        time.sleep(REPORT_SECONDS)
        before = _counts(namespace)
        time.sleep(QUIET_SECONDS)
        after = _counts(namespace)
        writes, reports = (after[kind] - before[kind] for kind in ("writes", "reports"))
        print(f"in {QUIET_SECONDS} s: {writes:.0f} API writes, {reports:.0f} reports of {REPLICAS} replicas")
        assert writes == 0
        assert reports <= REPLICAS * (QUIET_SECONDS / REPORT_SECONDS + 1)


def _copy(source: Path, folder: Path) -> None:
    """The same adapter under another model_id."""
    shutil.copytree(source, folder)
    for name in ("model.json", "parity.json"):
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(value | {"model_id": folder.name}))


def _counts(namespace: TuningNamespace) -> dict[str, float]:
    """Writes of the chain and reports so far, by the operator's own metrics; Leases and Events are not counted."""
    (operator,) = namespace.list("pods", "app.kubernetes.io/name=llm-tuning-operator")
    url = f"http://{operator['status']['podIP']}:8080/metrics"
    code = f"import urllib.request; print(urllib.request.urlopen('{url}').read().decode())"
    text = namespace.kubectl("exec", "look", "--", "python", "-c", code)
    writes = reports = 0.0
    for sample in (sample for family in text_string_to_metric_families(text) for sample in family.samples):
        if sample.name == "tuning_operator_api_requests_total":
            writing = sample.labels["verb"] in ("create", "patch", "update", "delete")
            writes += sample.value if writing and sample.labels["resource"] not in ("leases", "events") else 0.0
        elif sample.name == "tuning_operator_progress_reports_total":
            reports += sample.value
    return {"writes": writes, "reports": reports}
