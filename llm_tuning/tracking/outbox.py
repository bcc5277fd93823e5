"""What of a run's metrics was sent, and what is still to be.

work/mlflow.json says what the sender has achieved: it writes, the run reads, and the next start continues from it.
metrics.jsonl is followed while another process writes it, also when a resumed run replaces the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from llm_tuning.core.files import temporary_beside
from llm_tuning.models.metrics_file import decode, last_steps, metric_names, sent_names

STATE_FILE = "mlflow.json"
JOB_FILE = "tracking.json"
"""What the run gives its sender, but for the URI, which may hold a password and goes through a pipe."""
METRICS_IN_BATCH = 1000
"""MLflow's limit for one log_batch."""


@dataclass(frozen=True)
class SenderState:
    """Progress of the sender; replaced as a whole, never changed in place."""

    store: str = ""
    """Redacted URI and experiment: a run id means nothing in another store."""
    run_id: str | None = None
    described: bool = False
    """Parameters and data set are logged."""
    sent: Mapping[str, int] = field(default_factory=dict)
    """Metric name -> last step in MLflow. Steps of one name only grow, so this is all that a resume needs."""
    tries: int = 0
    """Attempts to reach the store, whatever came of them; only grows, so that a new one can be waited for."""
    fault: str | None = None
    """Why the last attempt failed, without credentials; None after one that worked."""
    finished: bool = False
    """Metrics, status and files are all there."""

    def is_sent(self, line: Mapping[str, Any]) -> bool:
        """Return whether every value of this line of metrics.jsonl is in MLflow."""
        return all(self.sent.get(name, -1) >= line["step"] for name in sent_names(line))

    def reopened(self) -> SenderState:
        """Return this state for the next start of the run: what was sent stays, how the last start ended does not."""
        return replace(self, fault=None, finished=False)

    def after(self, lines: Iterable[Mapping[str, Any]]) -> SenderState:
        """Return this state with `lines` sent."""
        return replace(self, sent={**self.sent, **last_steps(lines)})


def read_state(work_dir: Path) -> SenderState:
    """Read the state on disk; an empty one if there is none or it is damaged."""
    try:
        return SenderState(**json.loads((work_dir / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return SenderState()


def write_state(work_dir: Path, state: SenderState) -> None:
    """Replace the state on disk."""
    temporary = temporary_beside(work_dir / STATE_FILE)
    temporary.write_text(json.dumps(asdict(state)))
    temporary.replace(work_dir / STATE_FILE)


class Tail:
    """Hands out the new lines in batches; what is not `advance`d over is handed out again after a failure."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: BinaryIO | None = None
        self._done = 0
        self._next = 0
        self._already: Mapping[str, int] = {}

    def batches(self, state: SenderState) -> Iterator[list[dict[str, Any]]]:
        """Yield new whole lines, at most 1,000 values at a time, without those that `state` sent from an earlier file.

        A resumed run takes some steps again: the first values stay, so that MLflow shows no step twice.
        """
        stream = self._open(state)
        if stream is None:
            return
        stream.seek(self._done)
        self._next = self._done
        batch: list[dict[str, Any]] = []
        values = 0
        while (raw := stream.readline()).endswith(b"\n"):
            line = self._new_part(decode(raw) or {"step": 0, "time": 0.0})
            names = len(metric_names(line))
            if batch and values + names > METRICS_IN_BATCH:
                yield batch
                batch, values = [], 0
            self._next += len(raw)
            if names:
                batch.append(line)
                values += names
        if batch:
            yield batch
        self.advance()

    def advance(self) -> None:
        """Mark what was handed out so far as sent."""
        self._done = self._next

    def _new_part(self, line: dict[str, Any]) -> dict[str, Any]:
        names = [name for name in sent_names(line) if self._already.get(name, -1) < line["step"]]
        return {name: line[name] for name in ("step", "time", *names)}

    def _open(self, state: SenderState) -> BinaryIO | None:
        """Open the file at the path and keep it open: so its inode is not reused, and a replaced file is noticed."""
        try:
            inode = os.stat(self._path).st_ino
        except FileNotFoundError:
            return None
        if self._stream is None or os.fstat(self._stream.fileno()).st_ino != inode:
            if self._stream is not None:
                self._stream.close()
            self._stream = self._path.open("rb")
            self._done, self._already = 0, dict(state.sent)
        return self._stream
