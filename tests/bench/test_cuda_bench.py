"""What a step of 4,096 tokens asks of a GPU, counted without one: it needs no card, and no quiet machine.

Bounds are what was counted when this was written, and 3 % for what libraries may add.
"""

from __future__ import annotations

import pytest

from tests.bench.cuda_step import count_step

# shape: (launches, GiB read of the output layer)
COUNTED = {"0.5B": (5_085, 2.54), "1.5B": (5_917, 4.35), "7B": (5_917, 10.15)}


@pytest.mark.parametrize("shape", COUNTED)
def test_a_step_of_4096_tokens_of(shape: str) -> None:
    launches, head_gib = COUNTED[shape]
    counted = count_step(shape)
    print(
        f"\n{shape}: {counted['launches']:,.0f} launches (target <= {launches:,}), "
        f"{counted['head_gib']:.2f} GiB of the output layer (target <= {head_gib:.2f}), "
        f"the host waits {counted['waits']:.0f} times (target 1), peak {counted['peak_gib']:.1f} GiB"
    )
    assert counted["launches"] <= 1.03 * launches
    assert counted["head_gib"] <= 1.03 * head_gib
    assert counted["waits"] == 1
