"""Export: ONNX files of a student for services, in fp32 and int8, let through by a gate.

    python pipeline/export.py --model DIR --output DIR [--int8] [--data SPEC] [--task NAME --task-data DIR]

1. Read the model: a student or teacher with its MLM head, or a classifier that evaluate.py --keep-models kept.
2. Write it as ONNX. The logits must agree with PyTorch's on real text of several lengths and batch sizes.
3. With --int8, write an 8-bit version. It may lose --int8-margin of the masked-LM loss on the text, or of --task's
   metrics on the dev set; one that loses more is not written, and the exit code is 2.
4. Measure latency and size of all versions, and of --teacher.
5. Write `export.json` and a model card with these numbers. The directory appears whole.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.evaluation.glue.load import load_task
from pipeline.evaluation.glue.tasks import GLUE_TASKS
from pipeline.launch import add_launcher_arguments, only_rank_zero

PROSE = Path(__file__).resolve().parent.parent / "demo" / "prose.txt"
LIBRARIES = ("onnx", "onnxruntime", "onnxscript")


def parse_arguments() -> argparse.Namespace:
    """The command line; meanings beyond syntax are checked in `check_arguments`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a student, or a kept classifier")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="must not exist yet, or be empty")
    parser.add_argument("--int8", action="store_true", help="write an 8-bit version as well")
    parser.add_argument("--data", metavar="SPEC", help="text as FORMAT:PATH (default: the project's own prose)")
    parser.add_argument("--task", metavar="NAME", help=f"measure a classifier by: {', '.join(GLUE_TASKS)}")
    parser.add_argument("--task-data", metavar="DIR|hub", help="folder with CoLA, SST-2, ...; or 'hub'")
    parser.add_argument(
        "--int8-margin",
        type=float,
        metavar="X",
        help="what 8 bits may cost: points of a metric (default: 1), or nats of masked-LM loss (default: 0.05)",
    )
    parser.add_argument("--teacher", type=Path, metavar="DIR", help="a model to compare the latency with")
    add_launcher_arguments(parser)
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what cannot work, before anything is loaded.

    Raises:
        UserError: options that do not fit together, an output directory in use, or a library that is not installed.
    """
    if arguments.output.exists() and (not arguments.output.is_dir() or any(arguments.output.iterdir())):
        raise UserError(f"{arguments.output} exists and is not an empty directory: choose another --output")
    if (arguments.task is None) != (arguments.task_data is None):
        raise UserError("--task and --task-data belong together: give both or neither")
    if arguments.task is not None and arguments.task not in GLUE_TASKS:
        raise UserError(f"--task '{arguments.task}': there is no such task; there are {', '.join(GLUE_TASKS)}")
    if arguments.int8_margin is not None and not (arguments.int8 and 0 <= arguments.int8_margin < float("inf")):
        raise UserError("--int8-margin needs --int8 and a number of at least 0")
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"exporting needs {missing[0]}, which is not installed: pip install '.[deploy]'")


def main() -> int:
    """Run the stage; returns the exit code."""
    arguments = parse_arguments()
    if not only_rank_zero():
        return EXIT_DONE
    check_arguments(arguments)
    task = load_task(GLUE_TASKS[arguments.task], arguments.task_data) if arguments.task else None

    # The libraries take seconds to import; --help and mistakes in the arguments do not wait for them.
    from pipeline.deploy.run import Request, export_model
    from preprocessing.readers.specs import read_documents

    documents = read_documents([arguments.data or f"lines:{PROSE}"])
    export_model(
        Request(
            model=arguments.model,
            output=arguments.output,
            int8=arguments.int8,
            texts=(document.text for document in documents),
            source=arguments.data or "the project's own prose",
            task=task,
            margin=arguments.int8_margin,
            teacher=arguments.teacher,
        )
    )
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
