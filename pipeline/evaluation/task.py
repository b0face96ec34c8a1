"""What all tasks of an evaluation have in common: what the user asked for, and how a task is checked and run.

Nothing here is heavy, so that a mistake on the command line is said at once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pipeline.errors import UserError
from pipeline.evaluation.results import ResultStore

if TYPE_CHECKING:
    from pipeline.evaluation.encoder import Encoder

WARMUP = 0.1
"""Share of the fine-tuning steps over which the learning rate rises."""
WEIGHT_DECAY = 0.01
PAIR_LENGTH = 128
"""Tokens of a sentence or a pair, where `--max-length` is not given."""


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of one task; `max_length` in tokens of the whole pair, special tokens included."""

    epochs: float
    batch_size: int
    learning_rate: float
    max_length: int


@dataclass(frozen=True)
class AskedSettings:
    """The hyper-parameters of the command line; None where the default of each task stands."""

    epochs: float | None
    batch_size: int | None
    learning_rate: float | None
    max_length: int

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be greater than 0, not {value}")
        if self.max_length < 8:
            raise UserError(f"--max-length must be at least 8 tokens, not {self.max_length}")

    def check_fits(self, positions: int) -> None:
        """Compare `max_length` with the positions of a model.

        Raises:
            UserError: the model has fewer.
        """
        if self.max_length > positions:
            raise UserError(f"--max-length {self.max_length} is more than the model's {positions} positions")

    def over(self, default: Settings) -> Settings:
        """What was asked for, and `default` where nothing was."""
        return replace(default, **{name: value for name, value in asdict(self).items() if value is not None})

    def record(self) -> dict[str, float | None]:
        """All hyper-parameters as `results.json` keeps them, the fixed ones included."""
        return {**asdict(self), "warmup": WARMUP, "weight_decay": WEIGHT_DECAY}


@dataclass(frozen=True)
class Request:
    """What one command asks of its tasks.

    `data` is a directory or `hub`; `max_length` is None where each task is to use its own default, which `settings` has
    for sentence pairs; `keep_models` and `predict_test` are for GLUE, `teacher` and `controls` for task attention.
    """

    model: Path
    data: str
    seeds: Sequence[int]
    settings: AskedSettings
    max_length: int | None = None
    keep_models: bool = False
    predict_test: bool = False
    teacher: Path | None = None
    controls: str = ""


class Task(ABC):
    """One kind of evaluation. A class has `names`, those that `--tasks` accepts; an object has those asked for."""

    names: ClassVar[tuple[str, ...]]
    own_length: ClassVar[bool] = False
    """Whether it has a default of its own for `--max-length`, which fits the model."""

    def __init__(self, asked: Sequence[str], request: Request) -> None:
        self.asked = asked
        self.request = request

    @abstractmethod
    def check(self, model: "Encoder", store: ResultStore) -> None:
        """Find all that can be wrong, and enter what will be scored into `store`. Runs nothing, writes nothing.

        Raises:
            UserError: the model or the results in the output directory do not fit.
            DataError: the data cannot be read.
        """

    @abstractmethod
    def run(self, model: "Encoder", store: ResultStore) -> None:
        """Score what `store` does not have yet, keep it there, and say so."""
