"""Task attention: how close a student's attention is to its teacher's, head by head, beside the controls.

1. `check` reads the teacher, the controls and all texts.
2. For each text `run` finds the pairs of heads on one half of the windows and measures on the other.
3. Means go into `results.json`, what belongs to layers and heads into `attention.json`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.manifest import TOKENIZER_NAME
from pipeline.errors import DataError, UserError
from pipeline.evaluation.attention.controls import (
    SCRATCH,
    SHUFFLED,
    SLICE,
    STUDENT,
    TEACHER,
    parse_controls,
    rebuild_slice,
)
from pipeline.evaluation.items import Item, Outcome, Values
from pipeline.evaluation.mlm import check_vocabulary, find_shards
from pipeline.evaluation.progress import Progress
from pipeline.evaluation.results import ATTENTION
from pipeline.evaluation.task import Request, Task
from pipeline.files import write_atomically

if TYPE_CHECKING:
    import numpy as np

    from pipeline.data.manifest import Manifest
    from pipeline.data.windows import WindowSource
    from pipeline.evaluation.attention.observe import Condition
    from pipeline.evaluation.encoder import Encoder


class Attention(Task):
    """Divergence of attention from the teacher's (nats), as `attention TEXT`, and of each control after its name."""

    names = ("attention",)

    def __init__(self, asked: list[str], request: Request) -> None:
        super().__init__(asked, request)
        if request.teacher is None:
            raise UserError("--tasks attention: it compares with a teacher; give --teacher DIR")
        self.teacher = request.teacher
        self.controls = parse_controls(request.controls)

    def check(self, model: "Encoder") -> Iterator[Item]:
        """Open all models and all shard directories."""
        from pipeline.data.open import open_shards
        from pipeline.evaluation.attention.forward import Looker
        from pipeline.evaluation.attention.observe import MOST_WINDOWS
        from pipeline.evaluation.estimate import shape_of

        teacher = self._load("--teacher ", self.teacher, model)
        encoders = {"--model ": (self.request.model, model), "--teacher ": (self.teacher, teacher)}
        self.models = {STUDENT: Looker.of(model), TEACHER: Looker.of(teacher)}
        if SCRATCH in self.controls:
            scratch = self._load(f"--controls {SCRATCH}=", self.controls[SCRATCH], model)
            encoders[f"--controls {SCRATCH}="] = self.controls[SCRATCH], scratch
            self.models[SCRATCH] = Looker.of(scratch)
        if SLICE in self.controls:
            self.models[SLICE] = rebuild_slice(self.controls[SLICE], teacher)
        self.reference = Looker.of(teacher)
        self.inputs: dict[str, str] = {}
        self.sources: dict[str, WindowSource] = {}
        entries: dict[str, Mapping[str, str]] = {}
        flops = 0.0
        for shards in find_shards(Path(self.request.data), self.names[0]):
            source, manifest = open_shards(shards, self.request.settings.max_length)
            if source.windows < 2:
                raise DataError(f"{shards}: two windows at least were expected, one to find pairs of heads in")
            for option, (directory, encoder) in encoders.items():
                check_ids(option, directory, encoder, shards, manifest)
            entries |= self._entries(shards.resolve().name, source, manifest)
            windows = min(MOST_WINDOWS, source.windows)
            flops += len(self.models) * windows * shape_of(model).encoder_flops(self.request.settings.max_length)
        yield Item("attention", entries=entries, files=[ATTENTION], flops=flops)

    def _load(self, option: str, directory: Path, student: "Encoder") -> "Encoder":
        """Another model that is to be compared, layer by layer.

        Raises:
            UserError: it cannot be loaded, or has not as many layers as the student, or too few positions.
        """
        from pipeline.evaluation.encoder import load_encoder

        with said_of(option):
            encoder = load_encoder(directory)
        layers, tokens = student.config.num_hidden_layers, self.request.settings.max_length
        if encoder.config.num_hidden_layers != layers:
            raise UserError(
                f"{option}{directory} has {encoder.config.num_hidden_layers} layers and --model {layers}: attention is "
                "compared layer by layer"
            )
        if encoder.config.max_position_embeddings < tokens:
            positions = f"{encoder.config.max_position_embeddings} positions"
            raise UserError(f"{option}{directory} has {positions}, --max-length is {tokens}: set it lower")
        return encoder

    def _entries(
        self, text: str, source: "WindowSource", manifest: "Manifest"
    ) -> Iterator[tuple[str, Mapping[str, str]]]:
        """What is measured on a text, by condition."""
        from pipeline.evaluation.attention.observe import MOST_WINDOWS
        from pipeline.evaluation.encoder import fingerprint

        windows = min(MOST_WINDOWS, source.windows) // 2
        tokens = self.request.settings.max_length
        controls = {name: fingerprint(directory) for name, directory in self.controls.items()}
        inputs = [manifest.source_hash, fingerprint(self.teacher)]
        for condition in self._conditions():
            matching = self._matching(condition)
            heads = "heads shuffled" if matching == SHUFFLED else f"heads by {matching}"
            what = f"{windows:,} of {source.windows:,} windows of {tokens} tokens, {heads}"
            of = [controls[condition]] if condition in controls else []
            yield scored(text, condition), {"data": what, "data_sha256": digest([*inputs, *of])}
        self.inputs[text] = digest([*inputs, *(f"{name} {value}" for name, value in sorted(controls.items()))])
        self.sources[text] = source

    def _conditions(self) -> list[str]:
        """What is held against the teacher: one head cannot be shuffled."""
        several = min(self.models[STUDENT].heads, self.models[TEACHER].heads) > 1
        return [name for name in (STUDENT, TEACHER, SHUFFLED, *self.controls) if several or name != SHUFFLED]

    def _matching(self, condition: str) -> str:
        """How the heads of a condition find those of the teacher: those of a scratch have no order of the teacher's."""
        if condition == SHUFFLED:
            return SHUFFLED
        same = self.models[condition].heads == self.reference.heads
        return "identity" if same and condition != SCRATCH else "assignment"

    def run(self, item: Item, model: "Encoder") -> Outcome:
        """Measure on all texts."""
        scores: dict[str, Values] = {}
        verdicts: dict[str, str] = {}
        texts: dict[str, Any] = {}
        for text, source in self.sources.items():
            print(f"{scored(text)}: {item.entries[scored(text)]['data']} ...", flush=True)
            texts[text], found, verdicts[scored(text)] = self._measure(text, source)
            scores |= found
        document = json.dumps({**self._header(), "texts": texts}, allow_nan=False)
        write_atomically(self.request.output / ATTENTION, f"{document}\n".encode())
        del self.models, self.reference  # the items that follow may need the memory
        return Outcome(scores, verdicts)

    def _header(self) -> dict[str, Any]:
        from pipeline.evaluation.attention.record import FORMAT

        controls = {name: str(directory) for name, directory in self.controls.items()}
        return {
            "format": FORMAT,
            "model": str(self.request.model),
            "teacher": str(self.teacher),
            "controls": controls,
        }

    def _measure(self, text: str, source: "WindowSource") -> tuple[dict[str, Any], dict[str, "Values"], str]:
        """Everything on one text: what `attention.json` has of it, its scores, and its verdict."""
        from pipeline.evaluation.attention.forward import relation_heads
        from pipeline.evaluation.attention.observe import observe, read_windows
        from pipeline.evaluation.attention.record import describe
        from pipeline.evaluation.attention.verdict import conclude, no_verdict

        fitted, reported = read_windows(source)
        conditions = self._pair(fitted)
        heads = relation_heads([self.reference, *self.models.values()], self.reference.heads)
        sums: dict[str, np.ndarray] = {}
        done, total = 0, sum(len(ids) for ids, _ in reported)
        with Progress(scored(text), total, "windows") as progress:
            for windows, attention in observe(self.reference, self.models, conditions, reported, heads):
                sums = {name: sums.get(name, 0.0) + values for name, values in attention.items()}
                done += windows
                progress.reached(done)
        scores: dict[str, Values] = {
            scored(text, name): {metric: {0: value} for metric, value in condition.means().items()}
            for name, condition in conditions.items()
        }
        reason = no_verdict(conditions)
        verdict = reason or conclude(conditions)
        entry = {
            "inputs_sha256": self.inputs[text],
            "windows": total,
            "tokens": self.request.settings.max_length,
            "relation_heads": heads,
            "verdict": None if reason else verdict,
            "no_verdict": reason,
            **describe(conditions, {name: values / total for name, values in sums.items()}),
        }
        return entry, scores, verdict

    def _pair(self, fitted: Any) -> dict[str, "Condition"]:
        """All conditions, with the pairs of heads that `fitted` windows tell."""
        from pipeline.evaluation.attention.matching import by_assignment, by_identity, shuffled
        from pipeline.evaluation.attention.observe import Condition, all_columns

        found: dict[str, Condition] = {}
        for name in self._conditions():
            matching = self._matching(name)
            if matching == SHUFFLED:
                found[name] = Condition(STUDENT, matching, shuffled(found[STUDENT].pairs))
            elif matching == "identity":
                found[name] = Condition(name, matching, by_identity(self.models[name]))
            else:
                pairs = by_assignment(self.reference, self.models[name], all_columns(fitted))
                found[name] = Condition(name, matching, pairs)
        return found


def scored(text: str, condition: str = STUDENT) -> str:
    """The name in `results.json`."""
    return f"attention {text}" if condition == STUDENT else f"attention {text} {condition}"


def digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def check_ids(option: str, directory: Path, encoder: "Encoder", shards: Path, manifest: "Manifest") -> None:
    """Look whether the ids in `shards` mean to a model what they mean to the tokenizer that they were made with.

    Raises:
        UserError: it has another vocabulary or tokenizer.
    """
    from pipeline.data.agreement import check_same_tokenizer
    from pipeline.data.vocabulary import load_tokenizer

    with said_of(option):
        check_vocabulary(directory, encoder, shards, manifest.vocab_size)
    check_same_tokenizer(str(directory), shards, load_tokenizer(shards / TOKENIZER_NAME), option.rstrip(" ="))


@contextmanager
def said_of(option: str) -> Iterator[None]:
    """Name the right option in a refusal of what is otherwise --model."""
    try:
        yield
    except UserError as error:
        raise type(error)(*(s.replace("--model ", option, 1) for s in error.sentences)) from error
