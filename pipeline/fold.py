"""Fold: multiply compactors and weights of a finished run into an ordinary small BERT.

    python pipeline/fold.py --run RUN_DIR --output STUDENT_DIR

1. Read the newest complete checkpoint, or that of --step: fp32 masters, whatever the run's precision and ZeRO stage.
2. Fold in float64.
3. Measure the difference in logits on windows of the run's held-out text; refuse a student that is not the model.
4. Write what `save_pretrained` writes, the tokenizer, a model card and `fold.json`.

A run of method scratch or continue has nothing to fold; its model is written the same way.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.launch import add_launcher_arguments, only_rank_zero, positive_int

FORMAT = "wid-fold-1"
WINDOWS_COMPARED = 16


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fold a finished run into a student that any tool loads.")
    parser.add_argument("--run", type=Path, required=True, help="run directory of pipeline/train.py")
    parser.add_argument("--output", type=Path, required=True, help="directory of the student; must not exist yet")
    parser.add_argument("--step", type=positive_int, help="fold the checkpoint of this step, not the newest")
    parser.add_argument("--shards", type=Path, help="shard directory, if the run's own has moved")
    add_launcher_arguments(parser)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if not only_rank_zero():
        return EXIT_DONE
    if arguments.output.exists() and (not arguments.output.is_dir() or any(arguments.output.iterdir())):
        raise UserError(f"{arguments.output} exists and is not an empty directory: choose another --output")
    fold_run(arguments.run, arguments.output, arguments.shards, arguments.step)
    return EXIT_DONE


def fold_run(run: Path, output: Path, shards: Path | None = None, step: int | None = None) -> None:
    """Fold the newest checkpoint of `run`, or that of `step`, into the directory `output`.

    Raises:
        UserError: no usable checkpoint, an unfinished schedule, or logits that differ by more than the limits.
    """
    import torch

    from pipeline.compaction.fold import compare, fold
    from pipeline.compaction.model import CompactedBert
    from pipeline.config import load_recipe
    from pipeline.data.manifest import TOKENIZER_NAME
    from pipeline.data.open import open_training_data
    from pipeline.data.vocabulary import load_tokenizer
    from pipeline.engine.checkpoint import load_checkpoint, require_checkpoint
    from pipeline.engine.restore import restore_model
    from pipeline.models import rebuild_model

    path, faults = require_checkpoint(run, step)
    for fault in faults:
        print(f"note: {fault}; folding {path.name}")
    recipe = load_recipe(run / "config.yaml", _data_overrides(shards) if shards else [])
    checkpoint = load_checkpoint(path)
    directory = recipe.data.sources()[0][0]
    _, heldout, manifest = open_training_data(recipe.data, recipe.train.seed)
    if manifest.vocab_size != checkpoint.bert_config["vocab_size"]:
        raise UserError(
            f"{directory} has a vocabulary of {manifest.vocab_size} and the run one of "
            f"{checkpoint.bert_config['vocab_size']}: these are not the shards it was trained on"
        )
    model = rebuild_model(recipe, checkpoint.bert_config)
    restore_model(model, recipe, checkpoint)
    batches = [torch.from_numpy(batch.input_ids) for batch, _ in heldout.batches(min(8, WINDOWS_COMPARED))]
    batches = batches[: WINDOWS_COMPARED // 8]

    details: dict[str, Any] = {
        "format": FORMAT,
        "method": recipe.method,
        "source_run": str(run),
        "step": checkpoint.step,
        "trained_seq_len": recipe.data.seq_len,
        "tokens": checkpoint.step * recipe.train.global_batch * recipe.data.seq_len,
    }
    if isinstance(model, CompactedBert):
        student = fold(model.eval())
        report = compare(model, student, batches)
        details |= {"strategy": recipe.compaction.strategy, **report.to_dict()}
        if not report.passes:
            raise UserError(f"the folded student is not the trained model, nothing is written: {report.to_dict()}")
    else:
        student = model.bert
    write_student(student.float(), load_tokenizer(directory / TOKENIZER_NAME), details, output)


def _data_overrides(shards: Path) -> list[str]:
    """Recipe keys that point to moved shards; quoted, since a path may look like anything in YAML."""
    return [f"--data.shards={json.dumps(str(shards))}", "--data.heldout="]


def write_student(student: Any, tokenizer: Any, details: dict[str, Any], output: Path) -> None:
    """Write the student under a temporary name and rename it; print what it is."""
    from pipeline.compaction.model import shape_of
    from pipeline.data.tokenizer_files import write_tokenizer
    from pipeline.files import open_to_others, writing

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
            (temporary / "fold.json").write_text(json.dumps(details, indent=1) + "\n", encoding="utf-8")
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


def model_card(details: dict[str, Any]) -> str:
    """The student's README.md."""
    target = details["target"]
    origin = {
        "wid": "Weight-Inherited Distillation (WID)",
        "continue": "further pre-training",
        "scratch": "pre-training from scratch",
    }[details["method"]]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "---",
        f"# BERT, {target['parameters'] / 1e6:.1f}M parameters, by {origin}",
        "",
        f"{target['layers']} layers, hidden {target['hidden']}, {target['heads']} heads, intermediate "
        f"{target['intermediate']}. Trained for {details['step']:,} steps ({details['tokens']:,} tokens) on sequences "
        f"of {details['trained_seq_len']} tokens with masked-language modelling only.",
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


if __name__ == "__main__":
    run_entry_point(main)
