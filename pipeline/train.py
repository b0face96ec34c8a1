"""Train: compact a teacher (method wid), train one on (continue), or pre-train a BERT from a shape (scratch).

    deepspeed pipeline/train.py --deepspeed_config ds_configs/X.json --config recipes/Y.yaml \\
        [--section.key value ...] --output RUN_DIR

1. Read recipe and DeepSpeed configuration; claim the run directory, or find the checkpoint to go on from.
2. Open the shards; build the model.
3. Hand model and optimizer to DeepSpeed; restore the checkpoint, if any.
4. Train, with checkpoints on the way; exit with 0 at the end, with 75 if asked to stop before.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "WARNING")

from pipeline.config import Recipe, load_recipe
from pipeline.errors import EXIT_DONE, EXIT_STOPPED, run_entry_point
from pipeline.launch import add_launcher_arguments


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description="Compact a BERT teacher, or pre-train a BERT from a shape, under DeepSpeed.",
        epilog="Every recipe key can be given as --section.key value, for example --train.steps 1000.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, help="recipe (YAML): what is trained")
    parser.add_argument("--deepspeed_config", type=Path, required=True, help="DeepSpeed JSON: how it runs")
    parser.add_argument("--output", type=Path, required=True, help="run directory; an interrupted run goes on in it")
    add_launcher_arguments(parser)
    return parser.parse_known_args()


def main() -> int:
    arguments, overrides = parse_arguments()
    recipe = load_recipe(arguments.config, overrides).with_absolute_paths()

    from pipeline.engine import distributed

    world = distributed.start()
    finished = train(recipe, arguments, world)
    distributed.stop()
    return EXIT_DONE if finished else EXIT_STOPPED


def train(recipe: Recipe, arguments: argparse.Namespace, world: Any) -> bool:
    """Run the recipe; True if it was trained to its end."""
    from pipeline.engine.run_directory import record_start, resume_point
    from pipeline.engine.run_log import RunLog
    from pipeline.engine.trainer import Trainer

    directory = arguments.output
    checkpoint_path, faults = world.on_main(lambda: resume_point(directory, recipe))
    deepspeed_config, data, heldout, built, checkpoint = world.together(
        lambda: prepare(recipe, arguments.deepspeed_config, world.size, checkpoint_path)
    )
    first_step = checkpoint.step if checkpoint else 0

    world.on_main(lambda: record_start(directory, recipe, deepspeed_config, sys.argv))
    log = RunLog(directory, first_step, recipe.train.steps) if world.is_main else None
    if log:
        for sentence in [*faults, *built.notices]:
            log.say(sentence)
        log.say(f"watch: tensorboard --logdir {directory}")
    trainer = Trainer(deepspeed_config, recipe, built, data, heldout, world, directory, log)
    if checkpoint:
        trainer.resume(checkpoint)
    if log and checkpoint:
        log.say(f"resumed from {checkpoint_path}")
    finished = trainer.run()
    if log:
        next_command = f"python pipeline/fold.py --run {directory} --output STUDENT_DIR"
        log.say(
            f"done: {next_command}" if finished else f"stopped on request at step {trainer.step}, checkpoint written"
        )
        log.close()
    return finished


def prepare(recipe: Recipe, deepspeed_path: Path, ranks: int, checkpoint_path: Path | None) -> tuple[Any, ...]:
    """Everything that can be wrong with what a run reads: DeepSpeed configuration, data, model, checkpoint.

    Every rank reads for itself, and none communicates.
    """
    from pipeline.data.cooccurrence import count_tokens
    from pipeline.data.manifest import TOKENIZER_NAME
    from pipeline.data.open import open_training_data
    from pipeline.data.vocabulary import load_tokenizer
    from pipeline.engine.checkpoint import load_checkpoint
    from pipeline.engine.deepspeed_config import load_deepspeed_config
    from pipeline.engine.restore import restore_model
    from pipeline.models import PlainBert, build_model, check_same_tokenizer, start_from_counts

    deepspeed_config = load_deepspeed_config(deepspeed_path, recipe.train, ranks)
    data, heldout, manifest = open_training_data(recipe.data, recipe.train.seed)
    if recipe.teacher.path is not None:
        shards = recipe.data.sources()[0][0]
        check_same_tokenizer(recipe.teacher.path, shards, load_tokenizer(shards / TOKENIZER_NAME))
    built = build_model(recipe, manifest.vocab_size)
    if recipe.train.embedding_init == "ppmi" and not checkpoint_path and isinstance(built.module, PlainBert):
        start_from_counts(built.module, count_tokens(data.sources[0]))
    checkpoint = load_checkpoint(checkpoint_path) if checkpoint_path else None
    if checkpoint:
        restore_model(built.module, recipe, checkpoint)
        built.head_is_new = checkpoint.trainer["head_is_new"]
    return deepspeed_config, data, heldout, built, checkpoint


if __name__ == "__main__":
    run_entry_point(main)
