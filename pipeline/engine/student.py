"""From a run's checkpoint to the student's directory: fold, measure the difference in logits, write, say what it is."""

import json
import os
import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import BertForMaskedLM

from pipeline.data.manifest import TOKENIZER_NAME
from pipeline.data.open import open_training_data
from pipeline.data.tokenizer_files import write_tokenizer
from pipeline.data.vocabulary import load_tokenizer
from pipeline.engine.checkpoint import Checkpoint, load_checkpoint, require_checkpoint
from pipeline.engine.restore import check_same_vocabulary, restored_method
from pipeline.files import open_to_others, writing
from pipeline.methods import METHODS
from pipeline.models.huggingface import shape_of
from pipeline.recipe import Recipe, load_recipe
from pipeline.teachers import quiet_transformers

FORMAT = "wid-fold-1"
WINDOWS_COMPARED = 16
_BATCH = 8


def fold_run(run: Path, output: Path, shards: Path | None = None, step: int | None = None) -> None:
    """Fold the newest checkpoint of `run`, or that of `step`, into the directory `output`.

    Args:
        run: directory of pipeline/train.py.
        output: directory of the student; nothing may be in it.
        shards: where the run's shards are now, if not where its config.yaml says.
        step: of the checkpoint; the newest without.

    Raises:
        UserError: no usable checkpoint, an unfinished schedule, or logits that differ by more than the limits.
    """
    quiet_transformers()
    path, faults = require_checkpoint(run, step)
    for fault in faults:
        print(f"note: {fault}; folding {path.name}")
    recipe = load_recipe(run / "config.yaml", _data_overrides(shards) if shards else [])
    checkpoint = load_checkpoint(path)
    directory = recipe.data.sources()[0][0]
    _, heldout, manifest = open_training_data(recipe.data, recipe.train.seed)
    check_same_vocabulary(directory, manifest, checkpoint)
    batches = islice(heldout.batches(_BATCH), WINDOWS_COMPARED // _BATCH)
    windows = [torch.from_numpy(batch.input_ids) for batch, _ in batches]
    student, made = restored_method(recipe, checkpoint).export(windows)
    details = _origin(run, recipe, checkpoint) | made
    write_student(student.float(), load_tokenizer(directory / TOKENIZER_NAME), details, output)


def _data_overrides(shards: Path) -> list[str]:
    """Recipe keys that point to moved shards; quoted, since a path may look like anything in YAML."""
    return [f"--data.shards={json.dumps(str(shards))}", "--data.heldout="]


def _origin(run: Path, recipe: Recipe, checkpoint: Checkpoint) -> dict[str, Any]:
    """What fold.json says of where a student comes from."""
    return {
        "format": FORMAT,
        "method": recipe.method,
        "source_run": str(run),
        "step": checkpoint.step,
        "trained_seq_len": recipe.data.seq_len,
        "tokens": checkpoint.step * recipe.train.global_batch * recipe.data.seq_len,
    }


def write_student(student: BertForMaskedLM, tokenizer: Any, details: dict[str, Any], output: Path) -> None:
    """Write the student under a temporary name and rename it; print what it is."""
    shape = shape_of(student.config)
    student.config.architectures = ["BertForMaskedLM"]
    tokenizer.model_max_length = student.config.max_position_embeddings
    details["target"] = {
        "layers": shape.layers,
        "hidden": shape.hidden,
        "heads": shape.heads,
        "intermediate": shape.intermediate,
        "parameters": shape.parameters,
    }
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            student.save_pretrained(temporary)
            write_tokenizer(tokenizer, temporary)
            (temporary / "fold.json").write_text(_readable(details) + "\n", encoding="utf-8")
            (temporary / "README.md").write_text(model_card(details), encoding="utf-8")
            open_to_others(temporary)
            os.replace(temporary, output)  # an empty directory may stand there; anything else stays
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    print(f"{output}: {shape}")
    if "max_logit_diff_fp32" in details:
        print(
            f"largest difference in logits: {details['max_logit_diff_fp64']:.1e} in float64, "
            f"{details['max_logit_diff_fp32']:.1e} in fp32 (largest logit {details['max_abs_logit']:.1f})"
        )


def _readable(details: dict[str, Any]) -> str:
    """JSON with a line for every list of numbers, of which a student keeps tens of thousands, and those at the end."""
    text = json.dumps(dict(sorted(details.items(), key=lambda item: item[0] == "kept")), indent=1)
    return re.sub(r"\[[\d,\s]+\]", lambda found: " ".join(found[0].split()), text)


def model_card(details: dict[str, Any]) -> str:
    """The student's README.md."""
    target = details["target"]
    method = METHODS[details["method"]]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "---",
        f"# BERT, {target['parameters'] / 1e6:.1f}M parameters, by {method.title}",
        "",
        f"{target['layers']} layers, hidden {target['hidden']}, {target['heads']} heads, intermediate "
        f"{target['intermediate']}. Trained for {details['step']:,} steps ({details['tokens']:,} tokens) on sequences "
        f"of {details['trained_seq_len']} tokens with {method.objective}.",
        *(["", method.caution] if method.caution else []),
        "",
        "```python",
        "from transformers import AutoModelForMaskedLM, AutoTokenizer",
        'model = AutoModelForMaskedLM.from_pretrained("THIS_DIRECTORY")',
        'tokenizer = AutoTokenizer.from_pretrained("THIS_DIRECTORY")',
        "```",
        "",
        "It has no trained pooler; fine-tuning makes a new one. `fold.json` says which run it comes from.",
    ]
    return "\n".join(lines) + "\n"
