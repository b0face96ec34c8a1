"""Train: compact a teacher (method wid), train one on (continue), or pre-train a BERT from a shape (scratch).

    deepspeed pipeline/train.py --deepspeed_config ds_configs/X.json --config recipes/Y.yaml \\
        [--section.key value ...] --output RUN_DIR

1. Read recipe and DeepSpeed configuration; claim the run directory, or find the checkpoint to go on from.
2. Open the shards; build the model.
3. Hand model and optimizer to DeepSpeed; restore the checkpoint, if any.
4. Train, with checkpoints on the way; exit with 0 at the end, with 75 if asked to stop before (RUN_DIR/stopped.json
   then says by what).
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "WARNING")
if os.environ.get("DS_ACCELERATOR") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the deepspeed launcher has written the ranks' numbers there (0.19.8)

from pipeline.engine.stopping import ignore, listen

if __name__ == "__main__":
    listen()  # the next lines take seconds, and a signal must not kill a rank that the others wait for

from pipeline.config import Recipe, load_recipe
from pipeline.engine.deepspeed_config import check_batch
from pipeline.errors import EXIT_DONE, EXIT_STOPPED, Refusals, run_entry_point
from pipeline.launch import add_launcher_arguments, adopt_launcher_environment

if TYPE_CHECKING:  # these take seconds to import, and wrong arguments are to be said before
    from pipeline.data.loader import HeldOutData, TrainingData
    from pipeline.engine.checkpoint import Checkpoint
    from pipeline.engine.distributed import World
    from pipeline.engine.watch import Watch
    from pipeline.models import BuiltModel


@dataclass
class Inputs:
    """What a run starts from."""

    deepspeed_config: dict[str, Any]
    data: "TrainingData"
    heldout: "HeldOutData"
    built: "BuiltModel"
    checkpoint: "Checkpoint | None"


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
    arguments, options = parse_arguments()
    adopt_launcher_environment()
    recipe = load_recipe(arguments.config, options, lambda recipe: faults_here(recipe, arguments.deepspeed_config))
    recipe = recipe.with_absolute_paths()

    from pipeline.engine import distributed
    from pipeline.engine.watch import STARTUP_MINUTES

    # The watch ends a job that hangs, and says where; this is for what happens before it is there.
    world = distributed.start(timeout_minutes=max(STARTUP_MINUTES, 2 * recipe.train.hang_minutes))
    finished = train(recipe, arguments, world)
    ignore()
    distributed.stop()
    return EXIT_DONE if finished else EXIT_STOPPED


def faults_here(recipe: Recipe, deepspeed_path: Path) -> list[str]:
    """What is wrong with a recipe beside the other settings of this start, said before the seconds of imports."""
    refusals = Refusals()
    with refusals.gathering():
        recipe.data.sources()
    with refusals.gathering():
        recipe.target.parameter_count()
    with refusals.gathering():
        check_batch(deepspeed_path, recipe.train, int(os.environ["WORLD_SIZE"]))
    return refusals.sentences


def train(recipe: Recipe, arguments: argparse.Namespace, world: "World") -> bool:
    """Run the recipe; True if it was trained to its end."""
    from pipeline.data.open import describe_text
    from pipeline.engine.run_directory import DirectoryLock, record_start, resume_point
    from pipeline.engine.watch import Watch

    directory = arguments.output
    with DirectoryLock(directory) as lock:
        checkpoint_path, faults = world.on_main(lambda: resume_point(directory, recipe, lock))
        inputs = world.together(lambda: prepare(recipe, arguments.deepspeed_config, world.size, checkpoint_path))
        world.on_main(lambda: record_start(directory, recipe, inputs.deepspeed_config, sys.argv, lock))
        with Watch(directory, world, recipe.train.hang_minutes) as watch:
            text = describe_text(inputs.data, inputs.heldout, recipe.train.steps * recipe.train.global_batch)
            return run(recipe, inputs, directory, world, watch, [*faults, *inputs.built.notices, *text])


def run(recipe: Recipe, inputs: Inputs, directory: Path, world: "World", watch: "Watch", notices: list[str]) -> bool:
    """Train, and say what happens; True if the end was reached."""
    from pipeline.engine.run_log import RunLog
    from pipeline.engine.trainer import Trainer

    first_step = inputs.checkpoint.step if inputs.checkpoint else 0
    log = world.together(lambda: RunLog(directory, first_step, recipe.train) if world.is_main else None)
    if log:
        for sentence in notices:
            log.say(sentence)
        log.say(f"watch: tensorboard --logdir {directory}")
    trainer = Trainer(
        inputs.deepspeed_config, recipe, inputs.built, inputs.data, inputs.heldout, world, directory, log, watch
    )
    if inputs.checkpoint:
        trainer.resume(inputs.checkpoint)
        inputs.checkpoint = None  # it maps files that are to be deleted one day
        if log:
            log.say(f"resumed from {directory / 'checkpoints' / f'step_{first_step}'}")
    finished = trainer.run()
    reason = trainer.stop.settle(trainer.step, finished)

    def say_farewell() -> None:
        if log:
            log.say(f"checkpoints took {100 * trainer.checkpoint_share():.1f} % of the time")
            if finished:
                log.say(f"done: python pipeline/fold.py --run {directory} --output STUDENT_DIR")
            else:
                written = "checkpoint written" if trainer.saved == trainer.step else "no step taken yet"
                log.say(f"stopped on request at step {trainer.step}, {written} ({reason})")
            log.close()

    world.together(say_farewell)
    return finished


def prepare(recipe: Recipe, deepspeed_path: Path, ranks: int, checkpoint_path: Path | None) -> Inputs:
    """Everything that can be wrong with what a run reads: DeepSpeed configuration, data, model, checkpoint.

    Every rank reads for itself, and none communicates.
    """
    from pipeline.compaction.model import CompactedBert
    from pipeline.data.open import open_training_data
    from pipeline.engine.checkpoint import read_checkpoint
    from pipeline.engine.compaction import load_replay
    from pipeline.engine.deepspeed_config import load_deepspeed_config
    from pipeline.engine.restore import check_same_shards, check_same_vocabulary, restored_model
    from pipeline.teachers import quiet_transformers

    quiet_transformers()
    deepspeed_config = load_deepspeed_config(deepspeed_path, recipe.train, ranks)
    data, heldout, manifest = open_training_data(recipe.data, recipe.train.seed)
    checkpoint = read_checkpoint(checkpoint_path) if checkpoint_path else None
    if checkpoint:
        check_same_vocabulary(data.sources[0].directory, manifest, checkpoint)
        check_same_shards(data, heldout, checkpoint)
        built = restored_model(recipe, checkpoint)
    else:
        built = new_model(recipe, data, manifest.vocab_size)
    if recipe.compaction.replay and isinstance(built.module, CompactedBert):
        load_replay(recipe.compaction.replay, built.module.groups, recipe.compaction.increments)
    return Inputs(deepspeed_config, data, heldout, built, checkpoint)


def new_model(recipe: Recipe, data: "TrainingData", vocab_size: int) -> "BuiltModel":
    """The model that a new run starts from. Its teacher, if it has one, must have the tokenizer of the shards."""
    from pipeline.data.agreement import check_same_tokenizer
    from pipeline.data.cooccurrence import count_tokens
    from pipeline.data.manifest import TOKENIZER_NAME
    from pipeline.data.vocabulary import load_tokenizer
    from pipeline.models import PlainBert, build_model, start_from_counts

    if recipe.teacher.path is not None:
        shards = recipe.data.sources()[0][0]
        check_same_tokenizer(recipe.teacher.path, shards, load_tokenizer(shards / TOKENIZER_NAME))
    built = build_model(recipe, vocab_size)
    if recipe.train.embedding_init == "ppmi" and isinstance(built.module, PlainBert):
        start_from_counts(built.module, count_tokens(data.sources[0]))
    return built


if __name__ == "__main__":
    run_entry_point(main)
