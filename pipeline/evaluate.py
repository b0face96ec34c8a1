"""Score a model: fine-tuned on sentence tasks under several seeds, as a masked language model, and by its speed.

1. Read arguments, model and all data, and check that everything fits, the output directory included. What is to be done
   is a list of items: task latency, each shard directory of task mlm, task attention, and every fine-tuning on a task
   of GLUE or on SQuAD under one seed, at one point of a --grid. `--list` prints it.
2. Do the items that are not done, and no other process is at: all, a part (`--items I/N`), or the share of this rank
   under srun, torchrun, mpirun or deepspeed; in `--jobs` processes. Each keeps its record in `items/`.
3. After each one `results.json` is made anew from all records: mean, standard deviation and every seed.
4. Print a table when all is done. With --predict-test, the last item is the zip that the GLUE server takes.

Started again, it goes on where it stopped. Any number of processes may write to one output directory.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.evaluation.glue.run import Glue
from pipeline.evaluation.items import WHOLE, Item, Part
from pipeline.evaluation.squad.run import LONGEST as SQUAD_LENGTH
from pipeline.evaluation.table import format_table
from pipeline.evaluation.task import PAIR_LENGTH, AskedSettings, Request
from pipeline.evaluation.tasks import NAMES
from pipeline.evaluation.work import Work, clock, run_all
from pipeline.launch import add_launcher_arguments, find_ranks, positive_int

Number = TypeVar("Number", int, float)
LAUNCHER_VARIABLES = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What tells the libraries that there are other processes, besides those with a launcher's own prefix. RANK alone does
not, and by it a mistake that all ranks make is said once."""
GPUS = Path("/proc/driver/nvidia/gpus")
"""Where Linux lists NVIDIA's, one folder each; torch would take seconds to count them."""


def parse_arguments() -> argparse.Namespace:
    """The command line; meanings beyond syntax are checked in `main`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a Hugging Face BERT with tokenizer")
    parser.add_argument("--tasks", required=True, help=f"comma-separated: {', '.join(NAMES)}")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR|hub",
        help="folder with CoLA, SST-2, ..., squad, and shards for mlm; or 'hub'",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where predictions and results go")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated (default: %(default)s)")
    parser.add_argument("--epochs", type=float, help="(default: by task, 3 to 10)")
    parser.add_argument("--batch-size", help="sequences (default: 32)")
    parser.add_argument("--learning-rate", help="peak (default: by task and width, 3e-5 to 3e-4)")
    parser.add_argument(
        "--grid",
        choices=("split", "dev"),
        help="try all of --learning-rate x --batch-size, which may be lists, and take the best on a tenth of the "
        "training rows, held out, or on the dev rows",
    )
    parser.add_argument("--bf16", action="store_true", help="fine-tune in bf16, where the device computes in it")
    parser.add_argument("--threads", type=positive_int, default=1, help="of every item on a CPU (default: %(default)s)")
    parser.add_argument("--jobs", type=positive_int, default=1, help="items at a time (default: %(default)s)")
    parser.add_argument("--items", default="1/1", metavar="I/N", help="do only the I-th of N parts of the list")
    parser.add_argument("--list", action="store_true", help="print the items of the list (or part), and do nothing")
    parser.add_argument(
        "--max-length", type=int, help=f"tokens of a pair or a window (default: {PAIR_LENGTH}; squad: {SQUAD_LENGTH})"
    )
    parser.add_argument("--keep-models", action="store_true", help="keep fine-tuned models in models/TASK_SEED/")
    parser.add_argument(
        "--predict-test", action="store_true", help="write submission.zip for the GLUE server; keeps models, too"
    )
    parser.add_argument("--teacher", type=Path, metavar="DIR", help="the model that task attention compares with")
    parser.add_argument(
        "--controls",
        default="",
        metavar="scratch=DIR,slice=DIR",
        help="for task attention: a model trained from scratch, and a student whose untrained slice is rebuilt",
    )
    add_launcher_arguments(parser)
    return parser.parse_args()


def parse_seeds(text: str) -> list[int]:
    """The seeds of `--seeds`, each once.

    Raises:
        UserError: they are anything but whole numbers from 0 to 2^32 - 1.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) < 2**32 for part in parts):
        raise UserError(f"--seeds '{text}': whole numbers from 0 to 4294967295, separated by commas, were expected")
    return list(dict.fromkeys(int(part) for part in parts))


def parse_numbers(option: str, text: str | None, kind: type[Number]) -> tuple[Number, ...] | None:
    """The numbers of an option that may be a list; None where it is not given.

    Raises:
        UserError: they are no numbers of this kind.
    """
    try:
        return None if text is None else tuple(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError:
        expected = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{option} '{text}': {expected} were expected, several of them with commas") from None


def make_request(arguments: argparse.Namespace) -> Request:
    """What the command line asks of the tasks."""
    if arguments.grid and (arguments.keep_models or arguments.predict_test):
        raise UserError(
            "--grid keeps no models: give --keep-models or --predict-test with the chosen settings, in another --output"
        )
    settings = AskedSettings(
        arguments.epochs,
        parse_numbers("--batch-size", arguments.batch_size, int),
        parse_numbers("--learning-rate", arguments.learning_rate, float),
        PAIR_LENGTH if arguments.max_length is None else arguments.max_length,
        "bf16" if arguments.bf16 else "fp32",
        arguments.threads,
        arguments.grid,
    )
    return Request(
        model=arguments.model,
        data=arguments.data,
        output=arguments.output,
        seeds=parse_seeds(arguments.seeds),
        settings=settings,
        max_length=arguments.max_length,
        keep_models=arguments.keep_models or arguments.predict_test,
        predict_test=arguments.predict_test,
        teacher=arguments.teacher,
        controls=arguments.controls,
    )


def use_one_device(local_rank: int) -> None:
    """Hide launchers and all GPUs but one from the libraries, which would otherwise spread out by themselves."""
    for name in list(os.environ):
        if name in LAUNCHER_VARIABLES or name.startswith(("MASTER_", "OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_")):
            del os.environ[name]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # SLURM may show each rank its own one alone. Where there are more ranks than GPUs, they share them.
    count = len(list(GPUS.iterdir())) if GPUS.is_dir() else 0
    gpus = visible.split(",") if visible is not None else [str(number) for number in range(count or 1)]
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local_rank % len(gpus)]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what makes cuBLAS deterministic, read at its start


def main() -> int:
    """Run the stage; returns the exit code."""
    arguments = parse_arguments()
    rank, ranks, local_rank = find_ranks()
    use_one_device(local_rank)
    request = make_request(arguments)
    part = Part.parse(arguments.items).within(rank, ranks)
    if arguments.data != "hub" and not Path(arguments.data).is_dir():
        raise UserError(f"--data {arguments.data}: there is no such directory")

    work = Work(arguments.tasks, request)
    items = part.of(work.items)
    if arguments.list:
        show(work, items)
        return EXIT_DONE
    work.open()
    announce(work, items, arguments.jobs)
    run_all(work, items, arguments.jobs)
    if any(item.task == "attention" and work.store.is_done(item) for item in items):
        from pipeline.reporting.attention import draw_attention

        draw_attention(arguments.output)
    if part == WHOLE or work.store.complete:
        print(format_table(work.store))
    if work.store.undone:
        print(f"not done, by whoever asked for it: {', '.join(work.store.undone)} ({arguments.output}/items)")
    for task in work.tasks:
        if isinstance(task, Glue):
            task.check_labels(work.store)
    return EXIT_DONE


def show(work: Work, items: Sequence[Item]) -> None:
    """Print the list: number, name and whether it is done."""
    for number, item in enumerate(items, 1):
        print(f"{number:>4}  {item.name}  {'done' if work.store.is_done(item) else 'to do'}")


def announce(work: Work, items: Sequence[Item], jobs: int) -> None:
    """Say what is to be done, and how long it will take."""
    left = [item for item in items if not work.store.is_done(item)]
    if left:
        seconds = sum(map(work.store.estimate, left)) / min(jobs, len(left))
        print(f"{len(left)} of {len(items)} items to do, about {clock(seconds)} with --jobs {jobs}", flush=True)


if __name__ == "__main__":
    run_entry_point(main)
