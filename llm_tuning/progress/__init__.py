"""Shows a run's progress: a bar on a terminal, JSON lines otherwise, and in a pod the Kubeflow status protocol.

One thread for all of them and for every mode. A recipe only leaves its newest values (`Progress.update`, a few
microseconds) and the thread shows them when they are due, so a slow terminal or a silent endpoint costs no step.
Everything goes to standard error: standard output belongs to the result, as in `id=$(tune-llm ...)`.
"""

from llm_tuning.progress.progress import Progress, fitting_displays
from llm_tuning.progress.snapshot import Display, Snapshot

__all__ = ["Display", "Progress", "Snapshot", "fitting_displays"]
