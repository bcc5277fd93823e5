"""Names of the files in `models/`, once for all who write or read them.

models/registry.json                  the index over the manifests
models/<model_id>/                    one finished adapter: whole when it holds a manifest
models/.work/<model_id>/              one run that is not finished
models/.cache/                        what runs on the same bases need not compute again
"""

from __future__ import annotations

REGISTRY = "registry.json"
WORK_FOLDER = ".work"
CACHE_FOLDER = ".cache"
SERVED_IDS = "served_ids.json"
"""In the cache: for which tokenizers and texts a server has the same token ids."""
BASE_HASHES = "base_hashes.json"
"""In the cache: what the files of large bases hash to."""

# --- one adapter ------------------------------------------------------------------------------------------------------
MANIFEST = "model.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
CONFIG = "config.json"
"""Of a base; an adapter has none."""
PARITY = "parity.json"
EVALUATION = "evaluation.json"
METRICS = "metrics.jsonl"
CARD = "README.md"
LOSS_CURVE = "loss_curve.png"

# --- one run that is not finished -------------------------------------------------------------------------------------
STAGE = "stage"
"""The adapter that is being made; publishing renames it."""
CHECKPOINTS = "checkpoints"
ROWS = "rows"
RUN_SPEC = "run.json"
RUN_LOCK = "lock"
DATA_REPORT = "data_report.json"
PRECISION = "precision.json"
"""What `training.precision: auto` became when the run began."""
HARDWARE = "hardware.json"
"""What the run was computed on, and its peak of memory."""
TRAINING = "training.json"
"""How the training ended, where that is not in the metrics."""
