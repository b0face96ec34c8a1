"""One start of a run, from its recipe to the end of the training or to a stop.

1. The ranks join, and rank 0 claims the run directory, or finds the checkpoint to go on from.
2. Every rank opens the shards and builds the method and its model; what is wrong on any of them ends all with one
   sentence.
3. The trainer gets model and optimizer into DeepSpeed, restores the checkpoint, if any, and trains.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.agreement import check_same_tokenizer
from pipeline.data.loader import HeldOutData, TrainingData
from pipeline.data.manifest import TOKENIZER_NAME
from pipeline.data.open import describe_text, open_training_data
from pipeline.data.vocabulary import load_tokenizer
from pipeline.engine import distributed
from pipeline.engine.checkpoint import Checkpoint, read_checkpoint
from pipeline.engine.deepspeed_config import load_deepspeed_config
from pipeline.engine.distributed import World
from pipeline.engine.restore import check_same_shards, check_same_vocabulary, restored_method
from pipeline.engine.run_directory import DirectoryLock, record_start, resume_point
from pipeline.engine.run_log import RunLog
from pipeline.engine.stopping import ignore
from pipeline.engine.trainer import Trainer
from pipeline.engine.watch import STARTUP_MINUTES, Watch
from pipeline.errors import UserError
from pipeline.methods import METHODS
from pipeline.methods.method import Method
from pipeline.recipe import Recipe
from pipeline.teachers import quiet_transformers


@dataclass
class Inputs:
    """What a run starts from."""

    deepspeed_config: dict[str, Any]
    data: TrainingData
    heldout: HeldOutData
    method: Method
    checkpoint: Checkpoint | None


def train_with_all_ranks(recipe: Recipe, deepspeed_path: Path, directory: Path) -> bool:
    """Join the other ranks, train, and leave together; True if the recipe was trained to its end."""
    # The watch ends a job that hangs, and says where; this is for what happens before it is there.
    world = distributed.start(timeout_minutes=max(STARTUP_MINUTES, 2 * recipe.train.hang_minutes))
    finished = train(recipe, deepspeed_path, directory, world)
    ignore()
    distributed.stop()
    return finished


def train(recipe: Recipe, deepspeed_path: Path, directory: Path, world: World) -> bool:
    """Run the recipe; True if it was trained to its end."""
    with DirectoryLock(directory) as lock:
        checkpoint_path, faults = world.on_main(lambda: resume_point(directory, recipe, lock))
        inputs = world.on_all(lambda: prepare(recipe, deepspeed_path, world.size, checkpoint_path))
        check_same_on_all(inputs.method, recipe, world)
        world.on_main(lambda: record_start(directory, recipe, inputs.deepspeed_config, sys.argv, lock))
        with Watch(directory, world, recipe.train.hang_minutes) as watch:
            text = describe_text(inputs.data, inputs.heldout, recipe.train.steps * recipe.train.global_batch)
            notices = [*faults, *inputs.method.notices, *inputs.method.describe(), *text]
            return run(recipe, inputs, directory, world, watch, notices)


def check_same_on_all(method: Method, recipe: Recipe, world: World) -> None:
    """Refuse a teacher that is not the same for all ranks: one that stays beside the model would go unnoticed.

    Raises:
        UserError: on all ranks.
    """
    facts = world.gather(method.facts())
    if other := [rank for rank, found in enumerate(facts) if found != facts[0]]:
        raise world.said_once(
            UserError(
                f"rank {other[0]} has read another teacher from {recipe.teacher.path} than rank 0: let the path mean "
                "the same files on all nodes"
            )
        )


def run(recipe: Recipe, inputs: Inputs, directory: Path, world: World, watch: Watch, notices: list[str]) -> bool:
    """Train, and say what happens; True if the end was reached."""
    first_step = inputs.checkpoint.step if inputs.checkpoint else 0
    log = world.on_all(lambda: RunLog(directory, first_step, recipe.train) if world.is_main else None)
    if log:
        for sentence in notices:
            log.say(sentence)
        log.say(f"watch: tensorboard --logdir {directory}")
    trainer = Trainer(
        inputs.deepspeed_config, recipe, inputs.method, inputs.data, inputs.heldout, world, directory, log, watch
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

    world.on_all(say_farewell)
    return finished


def prepare(recipe: Recipe, deepspeed_path: Path, ranks: int, checkpoint_path: Path | None) -> Inputs:
    """Everything that can be wrong with what a run reads: DeepSpeed configuration, data, model, checkpoint.

    Every rank reads for itself, and none communicates.
    """
    quiet_transformers()
    deepspeed_config = load_deepspeed_config(deepspeed_path, recipe.train, ranks)
    data, heldout, manifest = open_training_data(recipe.data, recipe.train.seed)
    checkpoint = read_checkpoint(checkpoint_path) if checkpoint_path else None
    if checkpoint:
        check_same_vocabulary(data.sources[0].directory, manifest, checkpoint)
        check_same_shards(data, heldout, checkpoint)
        method = restored_method(recipe, checkpoint)
    else:
        method = new_method(recipe, data, manifest.vocab_size)
    method.get_ready()
    return Inputs(deepspeed_config, data, heldout, method, checkpoint)


def new_method(recipe: Recipe, data: TrainingData, vocab_size: int) -> Method:
    """The method of a new run. Its teacher, if it has one, must have the tokenizer of the shards."""
    if recipe.teacher.path is not None:
        shards = recipe.data.sources()[0][0]
        check_same_tokenizer(recipe.teacher.path, shards, load_tokenizer(shards / TOKENIZER_NAME))
    return METHODS[recipe.method].build(recipe, data, vocab_size)
