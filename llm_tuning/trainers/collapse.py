"""Whether answers that were to become likelier have become much less likely: the sign of a policy that falls apart.

A comparison of answers is also won by making both unlikely, the worse one more so. A little of it is common; far on,
the policy writes neither of them, and at last no sentences any more.
"""

from __future__ import annotations

FALL_OF_TOKEN = 0.25
"""Nats; each token of such an answer is then 0.8 times as likely as at the start, and all that follows from it."""
FALL_OF_ANSWER = 10.0
"""Nats; one of a few tokens may well be given up for a better one."""


def collapse(which: str, change: float, tokens: float, remedy: str) -> str | None:
    """Say so where `which` answers, `tokens` long on average, have changed by `change` nats, far below the start."""
    if change > -FALL_OF_ANSWER or change > -FALL_OF_TOKEN * tokens:
        return None
    return (
        f"the held-out {which} answers have become {-change:.0f} nats less likely than at the start "
        f"({-change / tokens:.1f} a token): the model may have left what it could write. Read some of its answers; if "
        f"they are broken, set a lower training.learningRate, fewer steps or {remedy}"
    )
