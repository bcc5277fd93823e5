"""Floating point operations of a LoRA on a frozen base: those that the arithmetic needs, however it is done.

A token costs 2 N operations forward and 4 N backward, N being the parameters of the matrices (Kaplan et al., arXiv
2001.08361, section 2.1). Of the backward pass the half that makes gradients of weights is not done for a frozen base:
4 N in all, and 6 P for an adapter of P parameters. Attention adds 4 times half the sequence's length times Q in each
layer forward (causal, no window), three times that with backward. The output layer is 4 h V a token in the loss:
logits, and the derivative taken at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_tuning.models.shape import Linear, ModelShape, adapter_parameters


@dataclass(frozen=True)
class Operations:
    """Operations by what they grow with; `squares` is the sum of the squared lengths of the sequences."""

    matrices: float
    """Of a token through the base's matrices, forward."""
    adapter: float
    """The same of the adapter's."""
    attention: float
    """Of a token and a token of its sequence, forward."""
    head: float
    """Of a token in the loss, logits alone."""

    @classmethod
    def of(cls, shape: ModelShape, targets: tuple[Linear, ...], rank: int) -> Operations:
        """Count those of a base with an adapter of this rank on `targets`."""
        return cls(
            matrices=2 * sum(linear.size * linear.share for linear in shape.linears),
            adapter=2 * adapter_parameters(targets, rank),
            attention=2 * shape.layers * shape.query,
            head=2 * shape.hidden * shape.vocabulary,
        )

    def training(self, *, tokens: float, squares: float, learned: float) -> float:
        """Count forward and backward, each once: what is computed again under checkpointing is not in it."""
        decoder = tokens * (2 * self.matrices + 3 * self.adapter) + 3 * squares * self.attention
        return decoder + 2 * learned * self.head

    def forward(self, *, tokens: float, squares: float, learned: float) -> float:
        """Count a forward pass with the adapter on."""
        return tokens * (self.matrices + self.adapter) + squares * self.attention + learned * self.head
