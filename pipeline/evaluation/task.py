"""What all tasks of an evaluation have in common: what the user asked for, and how a task is checked and run.

Nothing here is heavy, so that a mistake on the command line is said at once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipeline.errors import UserError
from pipeline.evaluation.items import Item, Outcome

if TYPE_CHECKING:
    from pipeline.evaluation.encoder import Encoder

Precision = Literal["fp32", "bf16"]
WARMUP = 0.1
"""Share of the fine-tuning steps over which the learning rate rises."""
WEIGHT_DECAY = 0.01
PAIR_LENGTH = 128
"""Tokens of a sentence or a pair, where `--max-length` is not given."""


GRID_RATES = (3e-5, 5e-5, 1e-4, 3e-4)
GRID_BATCH_SIZES = (16, 32)
"""The points of a grid where the command line does not say: the learning rates of Turc et al. (2019)."""
CHOSEN_ON = {"split": "a tenth of the training rows, held out", "dev": "the dev rows"}
"""What a grid's points are chosen by, in words."""


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of one task; `max_length` in tokens of the whole pair, special tokens included."""

    epochs: float
    batch_size: int
    learning_rate: float
    max_length: int
    precision: Precision = "fp32"


@dataclass(frozen=True)
class AskedSettings:
    """The hyper-parameters of the command line; None where the default of each task stands.

    Attributes:
        epochs: of every fine-tuning.
        batch_sizes: one, or those of a grid.
        learning_rates: likewise.
        max_length: tokens of a pair.
        precision: of the products of a fine-tuning.
        threads: of every item.
        grid: what the points of a grid are chosen by, a split of the training rows or the dev set; None for no grid.
    """

    epochs: float | None = None
    batch_sizes: tuple[int, ...] | None = None
    learning_rates: tuple[float, ...] | None = None
    max_length: int = PAIR_LENGTH
    precision: Precision = "fp32"
    threads: int = 1
    grid: Literal["split", "dev"] | None = None

    def __post_init__(self) -> None:
        values: dict[str, Sequence[float]] = {
            "epochs": () if self.epochs is None else (self.epochs,),
            "batch-size": self.batch_sizes or (),
            "learning-rate": self.learning_rates or (),
        }
        for name, given in values.items():
            for value in given:
                if not 0 < value < math.inf:
                    raise UserError(f"--{name} must be greater than 0, not {value}")
            if len(given) > 1 and not self.grid:
                raise UserError(f"--{name}: several values are a grid; give --grid split or --grid dev with them")
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
        """What was asked for, and `default` where nothing was; the first point of a grid."""
        return next(iter(self.points(default).values()))

    def points(self, default: Settings) -> dict[str, Settings]:
        """All points of the grid, by their names; without a grid one, whose name is empty."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        known = {field.name for field in fields(Settings)}
        base = replace(default, **{name: value for name, value in given.items() if name in known})
        rates = self.learning_rates or (GRID_RATES if self.grid else (default.learning_rate,))
        sizes = self.batch_sizes or (GRID_BATCH_SIZES if self.grid else (default.batch_size,))
        points = [replace(base, learning_rate=rate, batch_size=size) for rate, size in product(rates, sizes)]
        return {f"lr{p.learning_rate:g}_b{p.batch_size}" if self.grid else "": p for p in points}

    def record(self) -> dict[str, Any]:
        """All hyper-parameters as `results.json` keeps them, the fixed ones included."""

        def plain(values: Sequence[float] | None) -> list[float] | float | None:
            return None if values is None else list(values) if self.grid else values[0]

        given = {
            "epochs": self.epochs,
            "batch_size": plain(self.batch_sizes),
            "learning_rate": plain(self.learning_rates),
            "max_length": self.max_length,
            "precision": self.precision,
            "threads": self.threads,
            "grid": self.grid,
        }
        return {**given, "warmup": WARMUP, "weight_decay": WEIGHT_DECAY}


@dataclass(frozen=True)
class Request:
    """What one command asks of its tasks.

    `data` is a directory or `hub`; `max_length` is None where each task is to use its own default, which `settings` has
    for sentence pairs; `keep_models` is for fine-tuning, `predict_test` for GLUE, `teacher` and `controls` for task
    attention.
    """

    model: Path
    data: str
    output: Path
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
    def check(self, model: "Encoder") -> Iterator[Item]:
        """Find all that can be wrong, and list what is to be done. Runs nothing, writes nothing.

        Raises:
            UserError: the model does not fit.
            DataError: the data cannot be read.
        """

    @abstractmethod
    def run(self, item: Item, model: "Encoder") -> Outcome:
        """Do one item of `check`; files that it leaves are written before it returns."""
