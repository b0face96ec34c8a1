"""Fine-tune and score SQuAD 1.1 and 2.0: an item is a version under one seed, and at one point of a grid.

1. `check` reads all questions before anything is trained, so that a bad file is found at once.
2. `run` trains and keeps the answers. For 2.0 it chooses, as the official script does, the threshold with the best F1
   on the dev set, and leaves the answers beyond it empty.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.evaluation.defaults import default_settings
from pipeline.evaluation.items import Item, Outcome
from pipeline.evaluation.predictions import answers_file, write_answers
from pipeline.evaluation.squad.load import load_squad
from pipeline.evaluation.squad.questions import VERSIONS, Questions, SquadData, acceptable, without_a_tenth
from pipeline.evaluation.squad.score import apply_threshold, best_v2, score_v1, score_v2
from pipeline.evaluation.store import model_file
from pipeline.evaluation.task import CHOSEN_ON, Settings, Task

if TYPE_CHECKING:
    from pipeline.evaluation.encoder import Encoder
    from pipeline.evaluation.squad.answering import EncodedSquad

LONGEST = 384
"""Tokens of a window, where the model has as many positions and `--max-length` is not given."""


class Squad(Task):
    """A new span head on the encoder, fine-tuned for every version and seed, and scored on the dev set."""

    names = tuple(VERSIONS)
    own_length = True

    def check(self, model: "Encoder") -> Iterator[Item]:
        """Read all questions, and say how long the windows will be."""
        if not model.tokenizer.is_fast:
            needed = "its tokenizer does not say where in a text its tokens are, which SQuAD needs"
            raise UserError(f"--model {self.request.model}: {needed}")
        self.length = self.request.max_length or min(LONGEST, model.config.max_position_embeddings)
        self.trained_length = trained_length(self.request.model)
        self.data = {name: load_squad(VERSIONS[name], self.request.data) for name in dict.fromkeys(self.asked)}
        self.settings = {name: self._points(name, model) for name in self.data}
        self._encoded: tuple[str, EncodedSquad] | None = None
        if self.request.keep_models:
            from pipeline.evaluation.kept import check_tokenizer

            check_tokenizer(model)
        for name, data in self.data.items():
            yield from self._items(name, data, model)

    def _points(self, name: str, model: "Encoder") -> dict[str, Settings]:
        default = default_settings(name, model.config.hidden_size, self.length)
        points = self.request.settings.points(default)
        return {point: replace(settings, max_length=self.length) for point, settings in points.items()}

    def _items(self, name: str, data: SquadData, model: "Encoder") -> Iterator[Item]:
        """One version under every seed, at every point."""
        from pipeline.evaluation.estimate import fine_tuning_flops
        from pipeline.evaluation.squad.answering import forward_flops

        grid = self.request.settings.grid
        chosen_on = CHOSEN_ON[grid] if grid else ""
        entry = {
            "data": f"{data.describe()}; settings chosen on {chosen_on}" if grid else data.describe(),
            "data_sha256": data.fingerprint(),
            "max_length": self.length,
        }
        if self._beyond:
            entry["trained_length"] = self.trained_length
        if grid == "split":
            train, held = without_a_tenth(data.train)
            data = self.data[name] = replace(data, train=train, choosing=held)
        parts = [forward_flops(q, model, self.length) for q in (data.train, data.dev, data.choosing) if q]
        for seed, (point, settings) in product(self.request.seeds, self.settings[name].items()):
            files = [answers_file(name, seed, point)]
            if self.request.keep_models:
                files.append(model_file(name, seed))
            flops = fine_tuning_flops(parts[0], sum(parts[1:]), settings)
            yield Item(name, seed, point, chosen_on, {name: entry}, asdict(settings), files=files, flops=flops)

    @property
    def _beyond(self) -> bool:
        """Whether the windows are longer than those that the model was trained with."""
        return self.trained_length is not None and self.length > self.trained_length

    def run(self, item: Item, model: "Encoder") -> Outcome:
        """Fine-tune, answer and score."""
        from pipeline.evaluation.squad.answering import answer, encode_squad

        data, seed = self.data[item.task], item.seed or 0
        print(f"{item.label}: fine-tuning on {len(data.train.rows):,} questions ...", flush=True)
        if self._beyond:
            print(
                f"squad: windows of {self.length} tokens, the model was trained with {self.trained_length}", flush=True
            )
        if self._encoded is None or self._encoded[0] != item.task:
            self._encoded = item.task, encode_squad(data, model, self.length)
        keep = self._keeper(item, model) if self.request.keep_models else None
        answers = answer(self._encoded[1], model, seed, self.settings[item.task][item.point], keep)
        texts, no_answer = thresholded(data.version.unanswerable, data.dev, *answers)
        write_answers(self.request.output / answers_file(item.task, seed, item.point), texts, no_answer)
        scores = score(data.version.unanswerable, data.dev, texts)
        selection = scores["f1"]
        if data.choosing:
            chosen_by, _ = thresholded(data.version.unanswerable, data.choosing, *answers)
            selection = score(data.version.unanswerable, data.choosing, chosen_by)["f1"]
        return Outcome({item.task: {m: {seed: value} for m, value in scores.items()}}, selection=selection)

    def _keeper(self, item: Item, model: "Encoder") -> Callable[[Any], None]:
        """What `answer` hands its model to."""
        from pipeline.evaluation.kept import keep_model

        output = self.request.output / model_file(item.task, item.seed or 0)
        return lambda trained: keep_model(trained, model, self.length, output)


def thresholded(
    unanswerable: bool, questions: Questions, texts: Mapping[str, str], no_answer: Mapping[str, float]
) -> tuple[dict[str, str], dict[str, float]]:
    """The answers to these questions; for 2.0 those beyond the threshold with the best F1 are empty."""
    names = [question.name for question in questions.rows]
    texts = {name: texts[name] for name in names}
    if not unanswerable:
        return texts, {}
    no_answer = {name: no_answer[name] for name in names}
    _, threshold = best_v2(acceptable(questions.rows), texts, no_answer)["f1"]
    return apply_threshold(texts, no_answer, threshold), no_answer


def score(unanswerable: bool, questions: Questions, texts: dict[str, str]) -> dict[str, float]:
    """All metrics of the version."""
    return (score_v2 if unanswerable else score_v1)(acceptable(questions.rows), texts)


def trained_length(model: Path) -> int | None:
    """With how many tokens a student was trained, as its `fold.json` says; None where nothing says it."""
    try:
        found = json.loads((model / "fold.json").read_text(encoding="utf-8"))["trained_seq_len"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None
