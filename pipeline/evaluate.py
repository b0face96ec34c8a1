"""Score a model: fine-tuned on sentence tasks under several seeds, as a masked language model, and by its speed.

1. Read arguments, model and all data, and check that everything fits, the output directory included.
2. Task latency: milliseconds of a forward pass at batch 1. Task mlm: loss and accuracy on all windows of the shard
   directory --data, or of each one in --data, of --max-length tokens. Task attention: on the same text, how far the
   attention of every head is from --teacher's, beside --controls; also in `attention.json` and `attention.png`.
3. Every GLUE task and seed: a new pooler and classifier on the encoder, fine-tuning, predictions on the dev set.
4. `results.json` with mean, standard deviation and every seed; a table at the end.

Started again, it goes on where it stopped. It uses one device; under a launcher only rank 0 works.
"""

import argparse
import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.evaluation.glue.average import glue_average
from pipeline.evaluation.results import ResultStore
from pipeline.evaluation.table import format_table
from pipeline.evaluation.task import Request, Settings
from pipeline.evaluation.tasks import NAMES, make_tasks
from pipeline.launch import add_launcher_arguments, only_rank_zero

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What tells the libraries that there are other processes, besides those with a launcher's own prefix."""


def parse_arguments() -> argparse.Namespace:
    """The command line; meanings beyond syntax are checked in `main`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a Hugging Face BERT with tokenizer")
    parser.add_argument("--tasks", required=True, help=f"comma-separated: {', '.join(NAMES)}")
    parser.add_argument(
        "--data", required=True, metavar="DIR|hub", help="folder with CoLA, SST-2, ..., and shards for mlm; or 'hub'"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where predictions and results go")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=3.0, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-5, help="peak (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a pair (default: %(default)s)")
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


def use_one_device() -> None:
    """Hide launchers and all GPUs but the first from the libraries, which would otherwise spread out by themselves."""
    for name in list(os.environ):
        if name in LAUNCHER_VARIABLES or name.startswith(("MASTER_", "OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_")):
            del os.environ[name]
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what makes cuBLAS deterministic, read at its start


def main() -> int:
    """Run the stage; returns the exit code."""
    arguments = parse_arguments()
    if not only_rank_zero():
        return EXIT_DONE
    use_one_device()
    settings = Settings(arguments.epochs, arguments.batch_size, arguments.learning_rate, arguments.max_length)
    seeds = parse_seeds(arguments.seeds)
    request = Request(arguments.model, arguments.data, seeds, settings, arguments.teacher, arguments.controls)
    tasks = make_tasks(arguments.tasks, request)
    if arguments.data != "hub" and not Path(arguments.data).is_dir():
        raise UserError(f"--data {arguments.data}: there is no such directory")

    # The libraries take seconds to import; --help and mistakes in the arguments do not wait for them.
    from pipeline.evaluation.encoder import fingerprint, load_encoder
    from pipeline.reporting.attention import draw_attention

    model = load_encoder(arguments.model)
    store = ResultStore(arguments.output, arguments.model, fingerprint(arguments.model), settings.record())
    settings.check_fits(model.config.max_position_embeddings)
    for task in tasks:
        task.check(model, store)
    store.open()
    for task in reversed(tasks):
        task.run(model, store)
    store.finish(glue_average(store))
    if any("attention" in task.asked for task in tasks):
        draw_attention(arguments.output)
    print(format_table(store))
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
