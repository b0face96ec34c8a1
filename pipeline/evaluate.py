"""Score a model: fine-tuned on sentence tasks under several seeds, as a masked language model, and by its speed.

1. Read arguments, model and all data, and check that everything fits, the output directory included.
2. Task latency: milliseconds of a forward pass at batch 1. Task mlm: loss and accuracy on all windows of the shard
   directory --data, or of each one in --data, of --max-length tokens. Task attention: on the same text, how far the
   attention of every head is from --teacher's, beside --controls; also in `attention.json` and `attention.png`.
3. Every GLUE task and seed: a new pooler and classifier on the encoder, fine-tuning, predictions on the dev set. SQuAD
   1.1 and 2.0: the same with a new span head on windows of the context.
4. `results.json` with mean, standard deviation and every seed; a table at the end. With --predict-test, the zip that
   the GLUE server takes, by the models of the first seed.

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
from pipeline.evaluation.glue.run import Glue
from pipeline.evaluation.glue.tasks import WITH_WNLI
from pipeline.evaluation.results import ResultStore
from pipeline.evaluation.squad.run import LONGEST as SQUAD_LENGTH
from pipeline.evaluation.table import format_table
from pipeline.evaluation.task import PAIR_LENGTH, AskedSettings, Request
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
        "--data",
        required=True,
        metavar="DIR|hub",
        help="folder with CoLA, SST-2, ..., squad, and shards for mlm; or 'hub'",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where predictions and results go")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated (default: %(default)s)")
    parser.add_argument("--epochs", type=float, help="(default: by task, 3 to 10)")
    parser.add_argument("--batch-size", type=int, help="sequences (default: 32)")
    parser.add_argument("--learning-rate", type=float, help="peak (default: by task and width, 3e-5 to 2e-4)")
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


def make_request(arguments: argparse.Namespace) -> Request:
    """What the command line asks of the tasks."""
    length = PAIR_LENGTH if arguments.max_length is None else arguments.max_length
    return Request(
        model=arguments.model,
        data=arguments.data,
        seeds=parse_seeds(arguments.seeds),
        settings=AskedSettings(arguments.epochs, arguments.batch_size, arguments.learning_rate, length),
        max_length=arguments.max_length,
        keep_models=arguments.keep_models or arguments.predict_test,
        predict_test=arguments.predict_test,
        teacher=arguments.teacher,
        controls=arguments.controls,
    )


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
    request = make_request(arguments)
    tasks = make_tasks(arguments.tasks, request)
    glue = next((task for task in tasks if isinstance(task, Glue)), None)
    if request.predict_test and glue is None:
        raise UserError("--predict-test: there is no task of GLUE in --tasks")
    if arguments.data != "hub" and not Path(arguments.data).is_dir():
        raise UserError(f"--data {arguments.data}: there is no such directory")

    # The libraries take seconds to import; --help and mistakes in the arguments do not wait for them.
    from pipeline.evaluation.encoder import fingerprint, load_encoder
    from pipeline.reporting.attention import draw_attention

    model = load_encoder(arguments.model)
    store = ResultStore(arguments.output, arguments.model, fingerprint(arguments.model), request.settings.record())
    if request.max_length is not None or not all(task.own_length for task in tasks):
        request.settings.check_fits(model.config.max_position_embeddings)
    for task in tasks:
        task.check(model, store)
    store.open()
    for task in reversed(tasks):
        task.run(model, store)
    store.finish(glue_average(store), glue_average(store, WITH_WNLI))
    if any("attention" in task.asked for task in tasks):
        draw_attention(arguments.output)
    print(format_table(store))
    if glue:
        glue.check_labels(store)
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
