"""Train: compact a teacher (method wid), or what it is compared with (continue, scratch, kd, minilmv2).

    deepspeed pipeline/train.py --deepspeed_config ds_configs/X.json --config recipes/Y.yaml \\
        [--section.key value ...] --output RUN_DIR

1. Read recipe and DeepSpeed configuration; claim the run directory, or find the checkpoint to go on from.
2. Open the shards; build the method of the recipe, and its model.
3. Hand model and optimizer to DeepSpeed; restore the checkpoint, if any.
4. Train, with checkpoints on the way; exit with 0 at the end, with 75 if asked to stop before (RUN_DIR/stopped.json
   then says by what).
"""

import argparse
import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "WARNING")
if os.environ.get("DS_ACCELERATOR") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the deepspeed launcher has written the ranks' numbers there (0.19.8)

from pipeline.engine.stopping import listen

if __name__ == "__main__":
    listen()  # the next lines take seconds, and a signal must not kill a rank that the others wait for

from pipeline.engine.deepspeed_config import check_batch
from pipeline.errors import EXIT_DONE, EXIT_STOPPED, Refusals, run_entry_point
from pipeline.launch import add_launcher_arguments, adopt_launcher_environment, keep_freed_memory
from pipeline.recipe import Recipe, load_recipe
from pipeline.teacher_files import check_target, head_warmup_fault, teacher_has_head


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description="Compact a BERT teacher, or train a BERT by another method, under DeepSpeed.",
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
    keep_freed_memory()
    how, ranks = arguments.deepspeed_config, int(os.environ["WORLD_SIZE"])
    recipe = load_recipe(arguments.config, options, lambda recipe: faults_here(recipe, how, ranks))

    # It takes seconds, and wrong settings are to be said before.
    from pipeline.engine.session import train_with_all_ranks

    finished = train_with_all_ranks(recipe.with_absolute_paths(), how, arguments.output)
    return EXIT_DONE if finished else EXIT_STOPPED


def faults_here(recipe: Recipe, deepspeed_path: Path, ranks: int) -> list[str]:
    """What is wrong with a recipe beside the other settings of this start, said before the seconds of imports."""
    refusals = Refusals()
    with refusals.gathering():
        recipe.data.sources()
    with refusals.gathering():
        recipe.target.parameter_count()
    with refusals.gathering():
        check_batch(deepspeed_path, recipe.train, ranks)
    path = recipe.teacher.path
    if recipe.method == "wid" and path is not None and teacher_has_head(path) is False:
        refusals.sentences += filter(None, [head_warmup_fault(recipe)])
    with refusals.gathering():
        check_target(recipe)
    return refusals.sentences


if __name__ == "__main__":
    run_entry_point(main)
