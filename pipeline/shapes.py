"""The sizes of a BERT and of its windows: what they cost, and which students a teacher can become."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.errors import UserError

Strategy = Literal["dim", "head"]


@dataclass(frozen=True)
class BertShape:
    """The sizes of a BERT. `hidden` = `heads` x `head_size` always holds."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab_size: int
    positions: int = 512
    segments: int = 2

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise UserError(f"{self.hidden} hidden dimensions cannot be split into {self.heads} equal heads")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "BertShape":
        """The sizes in a Hugging Face BERT configuration, by the keys of its `config.json`."""
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            intermediate=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            positions=config["max_position_embeddings"],
            segments=config["type_vocab_size"],
        )

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """Embeddings and encoder, without pooler and MLM head: the number that papers call the size."""
        h, i = self.hidden, self.intermediate
        embeddings = (self.vocab_size + self.positions + self.segments) * h + 2 * h
        layer = 4 * (h * h + h) + (h * i + i) + (i * h + h) + 2 * (2 * h)
        return embeddings + self.layers * layer

    @property
    def encoder_parameters(self) -> int:
        """The layers alone, without the embedding tables."""
        h = self.hidden
        return self.parameters - (self.vocab_size + self.positions + self.segments) * h - 2 * h

    def encoder_flops(self, tokens: int) -> int:
        """Floating-point operations of one forward pass of the layers over a sequence of `tokens`.

        Two operations per multiply-accumulate; matrix products only. BERT-base at 128 tokens: 22.35 G.
        """
        h, i = self.hidden, self.intermediate
        projections = tokens * (4 * h * h + 2 * h * i)
        attention = 2 * tokens * tokens * h
        return 2 * self.layers * (projections + attention)

    def __str__(self) -> str:
        return (
            f"{self.layers} layers, hidden {self.hidden}, {self.heads} heads x {self.head_size}, "
            f"intermediate {self.intermediate}, {self.parameters / 1e6:.1f}M parameters"
        )


def predicted_positions(seq_len: int, mask_fraction: float) -> int:
    """Positions predicted in every window of `seq_len` tokens. [CLS] and [SEP] at its ends are never among them."""
    return round(mask_fraction * (seq_len - 2))


def check_target(teacher: BertShape, target: BertShape, strategy: Strategy) -> None:
    """Refuse, in one sentence, a target that the teacher cannot be compacted to."""
    if target.hidden > teacher.hidden or target.intermediate > teacher.intermediate:
        raise UserError(
            f"target {target.hidden}/{target.intermediate} is wider than the teacher "
            f"({teacher.hidden}/{teacher.intermediate}); a student only keeps what the teacher has"
        )
    if strategy == "dim" and target.heads != teacher.heads:
        raise UserError(
            f"strategy dim keeps the teacher's {teacher.heads} heads, so target.hidden must be {teacher.heads} x "
            f"target.head_size, not {target.hidden} = {target.heads} x {target.head_size}"
        )
    if strategy == "head" and target.head_size != teacher.head_size:
        raise UserError(
            f"strategy head keeps whole heads of size {teacher.head_size}, so target.head_size must be "
            f"{teacher.head_size}, not {target.head_size}"
        )


def resolve_target(
    teacher: BertShape,
    strategy: Strategy,
    hidden: int | None = None,
    head_size: int | None = None,
    intermediate: int | None = None,
    params: int | None = None,
) -> BertShape:
    """The student's shape from the recipe's `target` section.

    Either `hidden` (with `head_size`, whose default follows from the strategy, and `intermediate`, by default
    4 x hidden) or `params` (counted without pooler and MLM head), which picks the nearest legal shape.

    Raises:
        UserError: the sizes are no BERT, or the teacher cannot be compacted to them.
    """
    if params is not None:
        if hidden is not None or head_size is not None:
            raise UserError("give either target.params or target.hidden with target.head_size, not both")
        candidates = list(_legal_targets(teacher, strategy, intermediate))
        if not candidates:
            size = intermediate or "(four times hidden by default)"
            raise UserError(
                f"no student of this teacher has target.intermediate {size}: set it to at most the teacher's "
                f"{teacher.intermediate}"
            )
        return min(candidates, key=lambda shape: (abs(shape.parameters - params), shape.hidden))
    if hidden is None:
        raise UserError("the recipe names no target: set target.hidden or target.params")
    if head_size is None:
        head_size = hidden // teacher.heads if strategy == "dim" else teacher.head_size
    if hidden < 1 or head_size < 1 or hidden % head_size:
        raise UserError(
            f"target.hidden {hidden} is not a multiple of target.head_size {head_size}: a BERT needs "
            "hidden = heads x head size"
        )
    target = _resized(teacher, hidden // head_size, head_size, intermediate)
    if intermediate is None and target.intermediate > teacher.intermediate and target.hidden <= teacher.hidden:
        raise UserError(
            f"target.hidden {hidden} makes the intermediate size {target.intermediate}, four times hidden by default, "
            f"which is wider than the teacher's: set target.intermediate to at most {teacher.intermediate}"
        )
    check_target(teacher, target, strategy)
    return target


def _legal_targets(teacher: BertShape, strategy: Strategy, intermediate: int | None) -> Iterator[BertShape]:
    """Every student that the strategy allows, narrowest first."""
    steps = teacher.head_size if strategy == "dim" else teacher.heads
    for step in range(1, steps + 1):
        heads, head_size = (teacher.heads, step) if strategy == "dim" else (step, teacher.head_size)
        target = _resized(teacher, heads, head_size, intermediate)
        if target.intermediate <= teacher.intermediate:
            yield target


def _resized(teacher: BertShape, heads: int, head_size: int, intermediate: int | None) -> BertShape:
    hidden = heads * head_size
    return replace(teacher, hidden=hidden, heads=heads, intermediate=intermediate or 4 * hidden)
