"""work/mlflow.json: what the sender has achieved. It writes, the run reads, and the next start goes on from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_tuning.core.files import temporary_beside
from llm_tuning.models.metrics_file import last_steps, sent_names

STATE_FILE = "mlflow.json"
JOB_FILE = "tracking.json"
"""What the run tells its sender, but for the URI, which may hold a password and goes through a pipe."""


@dataclass(frozen=True)
class SenderState:
    """Progress of the sender; replaced as a whole, never changed in place."""

    store: str = ""
    """Redacted URI and experiment: a run id means nothing in another store."""
    run_id: str | None = None
    described: bool = False
    """Parameters and dataset are logged."""
    sent: Mapping[str, int] = field(default_factory=dict)
    """Metric name -> last step in MLflow. Steps of one name only grow, so this is all that a resume needs."""
    tries: int = 0
    """Attempts to reach the store, whatever came of them; only grows, so that a new one can be waited for."""
    fault: str | None = None
    """Why the last attempt failed, without credentials; None after one that worked."""
    finished: bool = False
    """Metrics, status and files are all there."""

    def is_sent(self, line: Mapping[str, Any]) -> bool:
        """Whether every value of this line of metrics.jsonl is in MLflow."""
        return all(self.sent.get(name, -1) >= line["step"] for name in sent_names(line))

    def reopened(self) -> SenderState:
        """This state at the next start of the run: what was sent stays, how the last start ended does not."""
        return replace(self, fault=None, finished=False)

    def after(self, lines: Iterable[Mapping[str, Any]]) -> SenderState:
        """This state with `lines` sent."""
        return replace(self, sent={**self.sent, **last_steps(lines)})


def read_state(work_dir: Path) -> SenderState:
    """The state on disk; an empty one if there is none or it is damaged."""
    try:
        return SenderState(**json.loads((work_dir / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return SenderState()


def write_state(work_dir: Path, state: SenderState) -> None:
    """Replace the state on disk."""
    temporary = temporary_beside(work_dir / STATE_FILE)
    temporary.write_text(json.dumps(asdict(state)))
    temporary.replace(work_dir / STATE_FILE)
