"""Fine-tune and score SQuAD 1.1 and 2.0, one (version, seed) after the other.

1. `check` reads all questions before anything is trained, so that a bad file is found at once.
2. `run` trains each (version, seed) whose answers are not there yet. For 2.0 it chooses, as the official script does,
   the threshold with the best F1 on the dev set, and leaves the answers beyond it empty.
3. After each one the metrics are computed anew from the kept answers and `results.json` is replaced.
"""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.evaluation.defaults import default_settings
from pipeline.evaluation.results import ResultStore
from pipeline.evaluation.squad.load import load_squad
from pipeline.evaluation.squad.questions import VERSIONS, SquadData, acceptable
from pipeline.evaluation.squad.score import apply_threshold, best_v2, score_v1, score_v2
from pipeline.evaluation.task import Settings, Task

if TYPE_CHECKING:
    from pipeline.evaluation.encoder import Encoder
    from pipeline.evaluation.squad.answering import EncodedSquad

LONGEST = 384
"""Tokens of a window, where the model has as many positions and `--max-length` is not given."""


class Squad(Task):
    """A new span head on the encoder, fine-tuned for every version and seed, and scored on the dev set."""

    names = tuple(VERSIONS)
    own_length = True

    def check(self, model: "Encoder", store: ResultStore) -> None:
        """Read all questions, and enter what they are and how long the windows will be."""
        if not model.tokenizer.is_fast:
            needed = "its tokenizer does not say where in a text its tokens are, which SQuAD needs"
            raise UserError(f"--model {self.request.model}: {needed}")
        self.length = self.request.max_length or min(LONGEST, model.config.max_position_embeddings)
        self.trained_length = trained_length(self.request.model)
        self.data = [load_squad(VERSIONS[name], self.request.data) for name in dict.fromkeys(self.asked)]
        self.settings = {data.version.name: self._settings(data.version.name, model) for data in self.data}
        for data in self.data:
            store.begin(data.version.name, data.describe(), data.fingerprint())
            store.mark_length(data.version.name, self.length, self.trained_length)
            store.settle(data.version.name, asdict(self.settings[data.version.name]))

    def _settings(self, name: str, model: "Encoder") -> Settings:
        asked = self.request.settings.over(default_settings(name, model.config.hidden_size, self.length))
        return replace(asked, max_length=self.length)

    def run(self, model: "Encoder", store: ResultStore) -> None:
        """Fine-tune what is not finished, and say one line about each (version, seed)."""
        if self.trained_length is not None and self.length > self.trained_length:
            print(
                f"squad: windows of {self.length} tokens, the model was trained with {self.trained_length}", flush=True
            )
        for data in self.data:
            self._run_version(data, model, store)

    def _run_version(self, data: SquadData, model: "Encoder", store: ResultStore) -> None:
        from pipeline.evaluation.squad.answering import answer, encode_squad

        encoded: EncodedSquad | None = None
        name = data.version.name
        for seed in self.request.seeds:
            label = f"{name}, seed {seed}"
            if store.answers_path(name, seed).is_file():
                print(f"{label}: already done", flush=True)
            else:
                print(f"{label}: fine-tuning on {len(data.train.rows):,} questions ...", flush=True)
                start = time.monotonic()
                encoded = encoded or encode_squad(data, model, self.length)
                keep(data, *answer(encoded, model, seed, self.settings[name]), seed, store)
                print(f"{label}: done in {time.monotonic() - start:.0f} s", flush=True)
            store.enter(name, score(data, store))
            store.say(name, seed)


def keep(data: SquadData, texts: dict[str, str], no_answer: dict[str, float], seed: int, store: ResultStore) -> None:
    """Write the answers of one fine-tuning; for 2.0 those beyond the threshold with the best F1 are empty."""
    if data.version.unanswerable:
        _, threshold = best_v2(acceptable(data.dev.rows), texts, no_answer)["f1"]
        store.write_answers(data.version.name, seed, apply_threshold(texts, no_answer, threshold), no_answer)
    else:
        store.write_answers(data.version.name, seed, texts, {})


def score(data: SquadData, store: ResultStore) -> dict[str, dict[int, float | None]]:
    """All metrics by seed, from all answers that there are."""
    questions, values = acceptable(data.dev.rows), dict[str, dict[int, float | None]]()
    for seed, texts in store.read_answers(data.version.name).items():
        for metric, value in (score_v2 if data.version.unanswerable else score_v1)(questions, texts).items():
            values.setdefault(metric, {})[seed] = value
    return values


def trained_length(model: Path) -> int | None:
    """With how many tokens a student was trained, as its `fold.json` says; None where nothing says it."""
    try:
        found = json.loads((model / "fold.json").read_text(encoding="utf-8"))["trained_seq_len"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None
