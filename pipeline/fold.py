"""Fold: multiply compactors and weights of a finished run into an ordinary small BERT.

    python pipeline/fold.py --run RUN_DIR --output STUDENT_DIR

1. Read the newest complete checkpoint, or that of --step: fp32 masters, whatever the run's precision and ZeRO stage.
2. Fold in float64.
3. Measure the difference in logits on windows of the run's held-out text; refuse a student that is not the model.
4. Write what `save_pretrained` writes, the tokenizer, a model card and `fold.json`.

A run of method scratch or continue has nothing to fold; its model is written the same way.
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.launch import add_launcher_arguments, only_rank_zero, positive_int


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

    from pipeline.engine.student import fold_run

    fold_run(arguments.run, arguments.output, arguments.shards, arguments.step)
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
