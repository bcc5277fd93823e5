"""How an engine is started for adapters that come and go, and what that fixes for them until it ends."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True)
class Lookup:
    """How an engine looks up an adapter's tensors by their names."""

    architecture: str = ""
    """The class of the base, by its config.json."""
    nested: bool = False
    """The layers lie below `language_model`: the base also sees or hears."""
    towers: bool = False
    """The engine is started with the layers that see or hear."""


@dataclass(frozen=True)
class EnginePlan:
    """The engine's command, and what it fixes for adapters."""

    command: tuple[str, ...]
    environment: dict[str, str]
    """Added to the container's own."""
    base_name: str
    base_hash: str
    max_lora_rank: int
    max_adapters: int
    """Loaded at once. Where loads have no limit, the engine keeps so many in memory, unloaded ones among them, and then
    forgets the one that was used longest ago."""
    target_modules: tuple[str, ...]
    template: str
    template_source: str
    """Where it is from, for messages."""
    max_loads: int | None = None
    """How often an engine may load an adapter from its start to its end; None without a limit."""
    lookup: Lookup = Lookup()
    without_lora: str = ""
    """Why this engine serves the base alone; empty where it serves adapters."""
    tool_call_parser: str = ""
    """What reads answers for calls of tools; empty where nothing does."""
    notes: tuple[str, ...] = ()
    """What its users should know, for the log."""

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Self:
        value = json.loads(text)
        lists = {name: tuple(value.get(name, ())) for name in ("command", "target_modules", "notes")}
        return cls(**{**value, **lists, "lookup": Lookup(**value["lookup"])})
