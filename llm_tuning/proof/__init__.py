"""Proves that a server's adapter takes effect: a LoRA that loads and changes nothing is serving's most reported fault.

`judge` is the pure verdict, `prove` queries a server first. No torch, no numpy: this also runs beside vLLM.
"""

from llm_tuning.engines.protocol import Unprovable
from llm_tuning.proof.judge import Numbers, Proof, Templates, Verdict, judge
from llm_tuning.proof.parity import Parity, Probe, read_parity

__all__ = ["Numbers", "Parity", "Probe", "Proof", "Templates", "Unprovable", "Verdict", "judge", "read_parity"]
