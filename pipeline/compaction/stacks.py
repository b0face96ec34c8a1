"""The stacks: linear layers of one place in every layer, and which groups they read and write."""

from dataclasses import dataclass
from typing import Literal

from pipeline.compaction.groups import Kind


@dataclass(frozen=True)
class Stack:
    """Linear layers that are composed together.

    Attributes:
        name: of the tensor of `encoder.SHAPES`.
        reads: kind of the groups whose dimensions come in (columns of W).
        writes: kind of the groups whose dimensions go out (rows of W).
        matrices: in each layer; 0 for one in the whole network.
        gated: the side on which the gates multiply the composed matrix: "rows" for Q, K and V, "columns" for FFN-out,
            None where the residual gate acts through the LayerNorms alone.
    """

    name: str
    reads: Kind
    writes: Kind
    matrices: int = 1
    gated: Literal["rows", "columns"] | None = None

    def count(self, layers: int) -> int:
        """Matrices in the stack."""
        return self.matrices * layers or 1


STACKS = (
    Stack("qkv", "residual", "attention", matrices=3, gated="rows"),
    Stack("attention_out", "attention", "residual"),
    Stack("ffn_in", "residual", "ffn"),
    Stack("ffn_out", "ffn", "residual", gated="columns"),
    Stack("transform", "residual", "residual", matrices=0),
)
"""Every linear layer of a BERT. Embedding tables and LayerNorms are of the residual group besides."""
