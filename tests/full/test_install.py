"""The operator's certificate authority over an upgrade, and when it is damaged."""

from __future__ import annotations

from contextlib import suppress

from devcluster.cluster import KubectlError
from tests.cluster.test_install import space
from tests.support.operator_rights import OPERATOR, TLS
from tests.support.tuning_namespace import CHART, TuningNamespace, wait_until

__all__ = ["space"]  # a fixture of the tests below


def test_an_upgrade_keeps_the_authority_and_takes_over_without_a_second_operator(space: TuningNamespace) -> None:
    before = space.get("secret", TLS)
    [old] = space.list("pods", f"app.kubernetes.io/name={OPERATOR}")
    assert before is not None
    space.cluster.helm(
        *(
            "upgrade",
            "llm-tuning",
            str(CHART),
            "-n",
            space.name,
            "--reset-then-reuse-values",
            "--wait",
            "--timeout",
            "90s",
        ),
        *("--set", "resources.requests.cpu=101m"),
    )
    after = space.get("secret", TLS)
    assert after is not None
    assert after["data"] == before["data"]
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    wait_until(lambda: len(space.list("pods", f"app.kubernetes.io/name={OPERATOR}")) == 1, 30, "the old pod's end")
    [new] = space.list("pods", f"app.kubernetes.io/name={OPERATOR}")
    assert new["metadata"]["uid"] != old["metadata"]["uid"]


def test_a_damaged_authority_is_said_and_its_deletion_heals(space: TuningNamespace) -> None:
    space.kubectl("patch", "secret", TLS, "--type=merge", "-p", '{"data": {"ca.key": "bm9uc2Vuc2U="}}')
    space.kubectl("rollout", "restart", f"deployment/{OPERATOR}")

    def says() -> bool:
        for pod in space.list("pods", f"app.kubernetes.io/name={OPERATOR}"):
            with suppress(KubectlError):  # the pod of before may go between the two looks
                if f"kubectl -n {space.name} delete secret {TLS}" in space.kubectl("logs", pod["metadata"]["name"]):
                    return True
        return False

    wait_until(says, 60, "the way out in the operator's log")
    space.kubectl("delete", "secret", TLS)
    space.kubectl("rollout", "restart", f"deployment/{OPERATOR}")
    space.kubectl("rollout", "status", f"deployment/{OPERATOR}", "--timeout=60s")
    assert space.get("secret", TLS) is not None
