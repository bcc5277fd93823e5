"""All checks in their order: what everything else rests on, what must be right, then figures; a cut loses least."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One check. Its function is named and not imported, so that listing the checks imports no torch."""

    name: str
    where: str
    """module:function."""
    says: str
    cuda_limit: float
    """Seconds after which it is stopped on a GPU."""
    cpu_limit: float
    """The same in the rehearsal, on one busy core."""
    optional: bool = False
    """Information only: left out without harm where time runs out."""

    def limit(self, device: str) -> float:
        return self.cpu_limit if device == "cpu" else self.cuda_limit


CHECKS = (
    Check(
        "machine", "tests.gpu.machine:machine", "versions, architectures, the ceilings of products and copies", 40, 240
    ),
    Check("collectives", "tests.gpu.machine:collectives", "all collective operations in a group of one", 40, 240),
    Check("families", "tests.gpu.families:families", "a step in bf16 of every family", 60, 240),
    Check("gradients", "tests.gpu.gradients:step_gradients", "sft and ppo against fp32 on the CPU", 60, 240),
    Check(
        "attention", "tests.gpu.attention:attention", "rows end to end against the formula; torch's kernels", 40, 240
    ),
    Check("sft", "tests.gpu.runs:sft_runs", "sft to the end, and killed and resumed", 90, 240),
    Check("ppo", "tests.gpu.runs:ppo_runs", "ppo to the end; the ratio of a policy to itself", 60, 240),
    Check("four-bits", "tests.gpu.fourbit:four_bits", "4 bits against bitsandbytes on the CPU", 60, 240),
    Check("sharding", "tests.gpu.sharding:sharding", "a base in parts, in a group of one, and on two cards", 90, 240),
    Check("memory", "tests.gpu.memory:memory_runs_out", "memory that runs out, by stage and cause", 60, 60),
    Check("vllm-kernels", "tests.gpu.kernels:vllm_kernels", "vLLM's kernels against their formulas", 60, 60),
    Check(
        "proof",
        "tests.gpu.proof:proof",
        "a served adapter and false ones, against an engine of other arithmetic",
        100,
        240,
    ),
    Check("small-bases", "tests.gpu.speed:small_bases", "0.5B and 1.5B: tokens a second, shares, memory", 110, 240),
    Check("large-base", "tests.gpu.speed:large_base", "7B: tokens a second and memory", 90, 240),
    Check("trl", "tests.gpu.speed:against_trl", "TRL's trainer on the same rows", 60, 240, optional=True),
    Check("compile", "tests.gpu.speed:compiled", "torch.compile of decoder layers", 90, 60, optional=True),
)
