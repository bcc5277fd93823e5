"""V(s_t): what reward to expect, read off the hidden state that the next token is predicted from."""

from __future__ import annotations

from torch import Tensor, nn


class ValueHead(nn.Module):
    """One linear layer, zero at first, so that the first advantages are the standardised rewards themselves.

    Kept in fp32 and in checkpoints; the published adapter does not have it: a server has no use for values.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Values (N,) of hidden states (N, H); call it outside autocast."""
        return self.linear(hidden_NH.float())[:, 0]
