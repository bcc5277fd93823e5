"""Follow metrics.jsonl while another process writes it, also when a resumed run replaces the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from llm_tuning.models.metrics_file import decode, metric_names, sent_names
from llm_tuning.tracking.state import SenderState

METRICS_IN_BATCH = 1000
"""MLflow's limit for one log_batch."""


class Tail:
    """Hands out the new lines in batches; what is not `advance`d over is handed out again after a failure."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: BinaryIO | None = None
        self._done = 0
        self._next = 0
        self._already: Mapping[str, int] = {}

    def batches(self, state: SenderState) -> Iterator[list[dict[str, Any]]]:
        """New whole lines, at most 1,000 values at a time, without those that `state` had sent from an earlier file.

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
        """What was handed out so far is sent."""
        self._done = self._next

    def _new_part(self, line: dict[str, Any]) -> dict[str, Any]:
        names = [name for name in sent_names(line) if self._already.get(name, -1) < line["step"]]
        return {name: line[name] for name in ("step", "time", *names)}

    def _open(self, state: SenderState) -> BinaryIO | None:
        """The file now at the path. It is kept open, so that its inode cannot come again and tells a replaced file."""
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
