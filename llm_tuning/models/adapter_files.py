"""Which modules an adapter changes, read from the header of its weights: no tensor is loaded."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

ADAPTER_WEIGHTS = "adapter_model.safetensors"
OUTPUT_HEAD = "lm_head"
_MODULE = re.compile(r"(?:^|\.)([^.]+)\.lora_(?:embedding_)?[AB](?:\.|$)")


def adapted_modules(adapter: Path) -> set[str]:
    """Last name parts of the adapted modules, as `q_proj`; raises ValueError or OSError if the file is not readable."""
    with (adapter / ADAPTER_WEIGHTS).open("rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            names = set(json.loads(stream.read(min(length, 2**27)))) - {"__metadata__"}
        except (struct.error, UnicodeDecodeError, TypeError) as error:
            raise ValueError(f"is not a safetensors file ({error})") from None
    found = [_MODULE.search(name) for name in names]
    return {match.group(1) for match in found if match}


def adapts_output_head(adapter: Path) -> bool:
    """Whether lm_head is adapted; False where the weights cannot be read."""
    try:
        return OUTPUT_HEAD in adapted_modules(adapter)
    except (OSError, ValueError):
        return False
