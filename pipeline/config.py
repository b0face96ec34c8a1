"""The sections of a recipe, see `pipeline.recipe`."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import UserError, refuse
from pipeline.shapes import Strategy, predicted_positions

Selection = Literal["norm", "taylor", "random"]
Decay = Literal["anneal", "penalty"]
ReaderKind = Literal["process", "thread"]


@dataclass
class TeacherConfig:
    """Where the weights come from."""

    path: str | None = None
    """Directory or hub name of a Hugging Face BERT. Wanted by every method but scratch."""
    head_warmup_steps: int = 500
    """Steps on a new MLM head with everything else frozen; only for a teacher that comes without one."""
    head_lr: float = 1e-4
    """Peak learning rate of that warm-up."""

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each value that cannot be."""
        for name in ("head_warmup_steps", "head_lr"):
            if getattr(self, name) < 0:
                yield f"teacher.{name} must not be negative, and is {getattr(self, name)}"


@dataclass
class DataConfig:
    """What is read."""

    shards: Any = None
    """A shard directory, or a list of {path: DIR, weight: X}."""
    heldout: str | None = None
    """A shard directory to measure the held-out loss on. Without one, the last windows of every directory in
    `shards` are kept back, and those of the first are measured."""
    heldout_windows: int = 256
    """Windows the held-out loss is measured on."""
    seq_len: int = 128
    mask_fraction: float = 0.15
    whole_word: bool = False
    separate_documents: bool = False
    """A token attends to its own document only, where a window is packed from several; false as published."""
    reader: ReaderKind | None = None
    """What reads ahead of the training: a process beside each rank, or a thread in it. Default: process where there is
    a GPU, thread on CPUs. The text that is read is the same, and a resumed run may have another."""

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each value that cannot be."""
        if self.seq_len < 8:
            yield f"data.seq_len must be at least 8 tokens, not {self.seq_len}"
        elif not 0 < self.mask_fraction < 1:
            yield f"data.mask_fraction must lie between 0 and 1, and is {self.mask_fraction}"
        elif self.predicted < 1:
            yield (f"data.mask_fraction {self.mask_fraction} of {self.seq_len - 2} tokens leaves nothing to predict")
        if self.heldout_windows < 1:
            yield "data.heldout_windows must be at least 1"

    @property
    def predicted(self) -> int:
        """Positions predicted in every window."""
        return predicted_positions(self.seq_len, self.mask_fraction)

    def sources(self) -> list[tuple[Path, float]]:
        """Directories and weights.

        Raises:
            UserError: `shards` is missing or of another form.
        """
        if self.shards is None:
            raise UserError("the recipe names no data: set data.shards to a directory that build_shards.py wrote")
        if isinstance(self.shards, str):
            return [(Path(self.shards), 1.0)]
        try:
            sources = [(Path(entry["path"]), float(entry["weight"])) for entry in self.shards]
        except (TypeError, KeyError, ValueError):
            sources = []
        if not sources or not all(0 < weight < math.inf for _, weight in sources):
            raise UserError(
                f"data.shards must be a directory or a list of {{path: DIR, weight: X}} with X > 0, not {self.shards!r}"
            )
        return sources


@dataclass
class TargetConfig:
    """The shape of the student, or of the new BERT."""

    hidden: int | None = None
    head_size: int | None = None
    intermediate: int | None = None
    """Default: 4 x hidden."""
    layers: int | None = None
    """Of a new BERT (scratch, kd, minilmv2) only: a WID student keeps its teacher's layers."""
    params: Any = None
    """Instead of hidden: a number of parameters without pooler and MLM head, such as 11M."""

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each value that cannot be."""
        for name in ("hidden", "head_size", "intermediate", "layers"):
            if (value := getattr(self, name)) is not None and value < 1:
                yield f"target.{name} must be at least 1, not {value}"

    def parameter_count(self) -> int | None:
        """`params` as a number: 11M, 11.5M, 500k or plain digits."""
        if self.params is None:
            return None
        text = str(self.params).strip().lower()
        factor = {"k": 1e3, "m": 1e6, "b": 1e9}.get(text[-1:], 1.0)
        try:
            count = round(float(text[:-1] if factor > 1 else text) * factor)
        except (ValueError, OverflowError):
            count = 0
        if count < 1:
            raise UserError(f"target.params must be a number such as 11M, not {self.params!r}")
        return count


@dataclass
class CompactionConfig:
    """The recipe's `compaction` section. Steps are optimizer steps.

    The defaults are the published schedule: 16 equal increments, 500 steps apart, all done by step 8,000 plus decay.
    """

    strategy: Strategy = "dim"
    selection: Selection = "taylor"
    decay: Decay = "anneal"
    start_step: int = 500
    interval_steps: int = 500
    increments: int = 16
    decay_steps: int = 500
    replay: str | None = None
    """A `selection.jsonl` whose choices are repeated instead of made anew."""

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each value that cannot be."""
        for name in ("interval_steps", "increments", "decay_steps"):
            if getattr(self, name) < 1:
                yield f"compaction.{name} must be at least 1, not {getattr(self, name)}"
        if self.start_step < 0:
            yield f"compaction.start_step must not be negative, and is {self.start_step}"
        elif self.selection == "taylor" and self.start_step < 1 and self.replay is None:
            yield ("compaction.selection taylor needs statistics first: set compaction.start_step to at least 1")

    @property
    def last_selection_step(self) -> int:
        return self.start_step + (self.increments - 1) * self.interval_steps

    @property
    def end_step(self) -> int:
        """From this step on every gate is 0 or 1."""
        return self.last_selection_step + self.decay_steps

    def increment_due(self, step: int) -> int | None:
        """The increment (1..increments) to choose before optimizer step `step` (counted from 0), if any."""
        increment, rest = divmod(step - self.start_step, self.interval_steps)
        return increment + 1 if rest == 0 and 0 <= increment < self.increments else None


@dataclass
class DistillationConfig:
    """The recipe's `distillation` section, for the methods kd and minilmv2."""

    temperature: float = 2.0
    """kd: by which the distributions of teacher and student over the vocabulary are softened."""
    mlm_share: float = 0.3
    """kd: what masked-language modelling has in the loss; the teacher's logits have the rest."""
    teacher_layer: int | None = None
    """minilmv2: the teacher's layer, counted from 1, whose relations the student's last layer learns. Default: the
    last."""
    relation_heads: int | None = None
    """minilmv2: parts that queries, keys and values are cut in; must divide both hidden sizes. Default: the teacher's
    attention heads."""

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each value that cannot be."""
        if not 0.01 <= self.temperature <= 1000:
            yield f"distillation.temperature must lie between 0.01 and 1000, and is {self.temperature}"
        if not 0 <= self.mlm_share < 1:
            yield f"distillation.mlm_share must lie in [0, 1), and is {self.mlm_share}"
        for name in ("teacher_layer", "relation_heads"):
            if (value := getattr(self, name)) is not None and value < 1:
                yield f"distillation.{name} must be at least 1, not {value}"


@dataclass
class TrainConfig:
    """The optimization."""

    steps: int = 400_000
    global_batch: int = 960
    """Sequences per optimizer step, over all ranks and accumulations."""
    lr: float = 1e-6
    """Peak learning rate of the teacher's own weights; of everything, for a new BERT."""
    compactor_lr: float = 5e-5
    warmup: float = 0.01
    """Share of the steps in which the learning rate rises; it falls linearly to 0 afterwards."""
    weight_decay: float = 0.01
    dropout: float = 0.1
    seed: int = 1
    checkpoint_every: int | None = None
    """Default: a twentieth of the steps."""
    keep_checkpoints: int = 2
    """The last so many stay: at least two, since the newest may turn out to be damaged."""
    keep_every: int = 0
    """Checkpoints of every so many steps stay for ever; 0 for none."""
    max_skipped_in_a_row: int = 10
    """The run ends after so many steps in a row whose loss or gradient is no finite number. Each is skipped."""
    hang_minutes: float = 10.0
    """The job ends when it gets no further for so long: a rank hangs or is lost. A checkpoint must take less."""
    evaluate_every: int = 1000
    log_every: int = 10
    compile: bool = False
    """Put the training forward pass through torch.compile, which pays on GPUs. It takes up to a minute at the first
    step and wherever the model changes its form: when gates first count, at the last choice, when it is narrowed."""
    cuda_graph: Literal["auto", "off"] = "auto"
    """auto: a GPU records the training of a micro-batch once and replays it. It computes the same either way."""
    embedding_init: Literal["random", "ppmi"] = "random"
    """New BERTs only: ppmi starts the word embeddings from co-occurrence counts of the training text."""

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each value that cannot be."""
        least = {"keep_checkpoints": 2, "keep_every": 0}
        counts = ("steps", "global_batch", "checkpoint_every", "evaluate_every", "log_every", "max_skipped_in_a_row")
        for name in (*counts, *least):
            if (value := getattr(self, name)) is not None and value < least.get(name, 1):
                yield f"train.{name} must be at least {least.get(name, 1)}, not {value}"
        if self.keep_every % self.checkpoint_interval:
            yield (
                f"train.keep_every {self.keep_every} is not a multiple of train.checkpoint_every "
                f"{self.checkpoint_interval}: there would be no checkpoint to keep at most of these steps"
            )
        if not self.hang_minutes > 0:
            yield f"train.hang_minutes must be more than 0, and is {self.hang_minutes}"
        for name in ("lr", "compactor_lr", "weight_decay"):
            if getattr(self, name) < 0:
                yield f"train.{name} must not be negative, and is {getattr(self, name)}"
        for name in ("warmup", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                yield f"train.{name} must lie in [0, 1), and is {getattr(self, name)}"
        if not 0 <= self.seed < 2**63:
            yield f"train.seed must be a whole number from 0 to 2^63 - 1, not {self.seed}"

    @property
    def checkpoint_interval(self) -> int:
        """Steps between two checkpoints."""
        return self.checkpoint_every or max(self.steps // 20, 1)


@dataclass
class SourcesConfig:
    """The text of a run and the tokenizer for it: what slurm/submit.py makes shards of. The trainer takes no notice."""

    inputs: Any = None
    """A SPEC (FORMAT:PATH), or a list of them. Without any, `data.shards` must be there already."""
    tokenizer: str | None = None
    """Directory, hub name, vocab.txt or SentencePiece model; the teacher's own by default."""

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each value that cannot be."""
        if not all(isinstance(spec, str) and ":" in spec for spec in self.specs) or self.inputs == []:
            yield f"sources.inputs must be FORMAT:PATH or a list of such texts, not {self.inputs!r}"
        if self.tokenizer is not None and self.inputs is None:
            yield "sources.tokenizer is for sources.inputs, which names no text"

    @property
    def specs(self) -> list[Any]:
        """`inputs` as a list."""
        if self.inputs is None:
            return []
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]


@dataclass
class EvaluationConfig:
    """What slurm/submit.py has the student scored on, as pipeline/evaluate.py takes it. The trainer takes no notice."""

    tasks: str | None = None
    """Names, separated by commas. Without any, nothing is scored."""
    data: str | None = None
    """A directory, or `hub`."""
    seeds: str = "1,2,3"

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each value that cannot be."""
        if (self.tasks is None) != (self.data is None):
            yield "evaluation.tasks and evaluation.data go together: give both, or leave the section out"
        if not all(seed.strip().isdecimal() for seed in self.seeds.split(",")):
            yield f"evaluation.seeds must be whole numbers separated by commas, not {self.seeds!r}"
