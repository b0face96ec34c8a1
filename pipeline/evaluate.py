"""Score a model: fine-tuned on sentence tasks under several seeds, as a masked language model, and by its speed.

1. Check model directory, output directory and arguments; read all data.
2. Task mlm: loss and accuracy on all windows of the shard directory --data, or of each one in --data, of --max-length
   tokens. Task latency: milliseconds of a forward pass at batch 1.
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
from pipeline.evaluation.glue.tasks import SCORED, parse_tasks
from pipeline.launch import add_launcher_arguments, only_rank_zero

OTHERS = ("mlm", "latency")
"""Tasks that need no fine-tuning."""
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def parse_arguments() -> argparse.Namespace:
    """The command line; meanings beyond syntax are checked in `main`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a Hugging Face BERT with tokenizer")
    parser.add_argument("--tasks", required=True, help=f"comma-separated: glue, {', '.join((*SCORED, *OTHERS))}")
    parser.add_argument(
        "--data", required=True, metavar="DIR|hub", help="folder with CoLA, SST-2, ..., and shards for mlm; or 'hub'"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where predictions and results go")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=3.0, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-5, help="peak (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a pair (default: %(default)s)")
    add_launcher_arguments(parser)
    return parser.parse_args()


def parse_seeds(text: str) -> list[int]:
    """The seeds of `--seeds`, each once. Raises `UserError` for anything but whole numbers from 0 to 2^32 - 1."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) < 2**32 for part in parts):
        raise UserError(f"--seeds '{text}': whole numbers from 0 to 4294967295, separated by commas, were expected.")
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
    args = parse_arguments()
    if not only_rank_zero():
        return EXIT_DONE
    use_one_device()
    tasks, seeds = parse_tasks(args.tasks, OTHERS), parse_seeds(args.seeds)
    if args.data != "hub" and not Path(args.data).is_dir():
        raise UserError(f"--data {args.data}: there is no such directory.")

    # The libraries take seconds to import; --help and mistakes in the arguments do not wait for them.
    from pipeline.evaluation import encoder, latency, mlm, table
    from pipeline.evaluation.finetune import Settings
    from pipeline.evaluation.glue import run as glue_run
    from pipeline.evaluation.results import ResultStore

    encoder.silence_libraries()
    encoder.check_directory(args.model)
    fingerprint = encoder.fingerprint(args.model)
    settings = Settings(args.epochs, args.batch_size, args.learning_rate, args.max_length)
    store = ResultStore(args.output, args.model, fingerprint, settings.record())
    data = glue_run.load_all([name for name in tasks if name not in OTHERS], args.data, args.tasks.split(","))
    shards = mlm.find_shards(Path(args.data)) if mlm.TASK in tasks else []
    bert = encoder.load_encoder(args.model)
    settings.check_fits(bert)
    glue_run.begin(data, store)
    for directory in shards:
        mlm.score_masked_lm(args.model, directory, args.max_length, store)
    if latency.TASK in tasks:
        latency.score_latency(bert, args.max_length, store)
    glue_run.run(data, bert, seeds, settings, store)

    average = table.glue_average(store.document["tasks"])
    if average is not None:
        store.document["glue_average"] = average
    store.document["complete"] = True
    store.write()
    print(table.format_table(store.document))
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
