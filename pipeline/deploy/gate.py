"""What may be written: an ONNX file that computes what PyTorch does, and an int8 file that is hardly worse."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.data.masking import Vocabulary
from pipeline.deploy.quality import Measure, Scores
from pipeline.deploy.subject import Inputs, Predict
from pipeline.deploy.text import Text

TOLERANCE = 1e-4
"""Of logits, times the largest one if that is above 1."""
LENGTHS, ROWS = (8, 32, 128), (1, 3, 8)
"""Shapes that are compared, beside the model's longest input, of which there are two rows."""


@dataclass(frozen=True)
class Agreement:
    """How far the logits of an ONNX file are from PyTorch's, over all shapes."""

    max_logit_diff: float
    max_abs_logit: float
    shapes: list[dict[str, Any]]

    @property
    def limit(self) -> float:
        return TOLERANCE * max(1.0, self.max_abs_logit)

    @property
    def passes(self) -> bool:
        """Whether they agree; differences that are no numbers do not."""
        return self.max_logit_diff <= self.limit

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "limit": self.limit}


def shapes(positions: int) -> list[tuple[int, int]]:
    """Rows and tokens of the batches that are compared."""
    fitting = [length for length in LENGTHS if length < positions]
    return [*((rows, length) for length in fitting for rows in ROWS), (1, positions), (2, positions)]


def batches(text: Text, vocabulary: Vocabulary, positions: int) -> Iterable[Inputs]:
    """The batches that are compared; the rows of each are of several lengths."""
    return (text.batch(rows, length, vocabulary, padded=True) for rows, length in shapes(positions))


def compare(reference: Predict, candidate: Predict, compared: Iterable[Inputs]) -> Agreement:
    """Measure the largest difference between two ways to compute a model."""
    found, largest = list[dict[str, Any]](), 0.0
    for inputs in compared:
        expected = reference(inputs)
        rows, length = inputs["input_ids"].shape
        difference = float(np.abs(expected - candidate(inputs)).max())
        found.append({"batch": rows, "length": length, "max_logit_diff": difference})
        largest = max(largest, float(np.abs(expected).max()))
    # The maximum of numpy keeps what is no number.
    return Agreement(float(np.max([shape["max_logit_diff"] for shape in found])), largest, found)


ROUNDING = 1e-9
"""What a difference of two scores may be off by: of 0.90 and 0.89, in points, it is more than 1."""


@dataclass(frozen=True)
class Verdict:
    """Whether an int8 file may be written; `fall` and `margin` are in the unit of its measure."""

    measure: str
    unit: str
    fall: float
    margin: float
    default_margin: float

    @property
    def passes(self) -> bool:
        """Whether the fall is within the margin; one that is no number is not."""
        return self.fall <= self.margin + ROUNDING

    def record(self) -> dict[str, Any]:
        fall = self.fall if math.isfinite(self.fall) else None  # JSON knows no NaN
        return {**asdict(self), "fall": fall, "written": self.passes}

    def sentence(self) -> str:
        """Why there is no int8 file."""
        fell = f"it is {self.fall:.3f} {self.unit} worse" if self.fall == self.fall else "its outputs are no numbers"
        return (
            f"the int8 model is not written: {fell} in {self.measure}, where {self.margin:g} {self.unit} were allowed; "
            "the fp32 one is written"
        )


def judge(measure: Measure, before: Scores, after: Scores, margin: float | None) -> Verdict:
    """Compare int8 with PyTorch; `margin` replaces that of the measure, if there is one."""
    allowed = measure.margin if margin is None else margin
    return Verdict(measure.title, measure.unit, measure.fall(before, after), allowed, measure.margin)
