"""What only a GPU can answer, in one go: sections that fail one by one, written down as they end.

    python benchmarks/gpu.py --json FILE [--only SECTION,...]

1. `capture`: a micro-step recorded as a CUDA graph against the same one as it is: loss and gradients, in every form
   of the model, with and without dropout, with and without documents apart.
2. `loss`: the gradients of the decoder's loss in half precision against float64, at fp16's loss scales.
3. `skip`: the trainer under ZeRO 0 to 3, one gradient made non-finite at full width and one after narrowing: parameters
   and moments must stay as they were, and the training go on.
4. `zero`: the trainer under ZeRO 0 to 3, bf16 and fp16: trains, narrows, resumes, folds, and on which device.
5. `steps` and `steps_double`: step times as of step_time.py, for 61,440 and 122,880 tokens; student and narrowed a
   second time with the micro-step recorded.
6. `trainer`: tokens/s of real runs of a teacher of BERT-base's shape at full width, closing and narrowed, and the share
   of the time that waits for data, for two sizes of the micro-batch.
7. `profile`: kernels of one step of student and narrowed, as tables in a text file beside FILE.
8. `compiled`: whether torch.compile still helps once the micro-step is recorded.
9. `trainer_compiled` and `zero_compiled`: the trainer's speed and losses with train.compile and without, and whether a
   compiled run resumes bit for bit.

FILE is written anew after each section. Each says whether what it is about `holds`. One that raises has its `error`
there and the others run; the exit code is 1 unless all hold. On an H200 the sections up to `profile` took four minutes,
`compiled` and `trainer_compiled` four more. Nothing is fetched: teachers and shards are made up.

--cpu rehearses everything with tiny shapes in a few seconds. A CPU records nothing, so `capture` then compares a
step with itself, and fp16 is left out; the result says both.
"""

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import gpu_loss, gpu_runs, gpu_steps
from benchmarks.gpu_steps import GPU, REHEARSAL, Result, Scale
from pipeline.environment import measured
from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.files import temporary_folder, write_atomically

SECTIONS: dict[str, Callable[[Scale, Result, Path], bool]] = {
    "capture": gpu_steps.capture,
    "loss": gpu_loss.loss,
    "skip": gpu_runs.skip,
    "zero": gpu_runs.zero,
    "steps": gpu_steps.steps,
    "steps_double": gpu_steps.steps_double,
    "trainer": gpu_runs.trainer,
    "profile": gpu_steps.profile,
    "compiled": gpu_steps.compiled,
    "trainer_compiled": gpu_runs.trainer_compiled,
    "zero_compiled": gpu_runs.zero_compiled,
}
"""Each fills in its part of the results as it goes and returns whether what it checks holds. The folder is for its
files and goes away afterwards."""
EXIT_FAILED = 1


def section_names(text: str) -> list[str]:
    """Type of `--only`."""
    names = text.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(SECTIONS)}")
    return names


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    parser.add_argument("--only", type=section_names, default=list(SECTIONS), metavar="SECTION,...")
    parser.add_argument("--cpu", action="store_true", help="rehearse with tiny shapes, without a GPU")
    return parser.parse_args()


def run_section(name: str, scale: Scale, folder: Path) -> Result:
    """What a section found; what it had found before it failed, and the error."""
    print(f"\n== {name}", flush=True)
    result: Result = {"holds": False}
    began = time.monotonic()
    try:
        result["holds"] = SECTIONS[name](scale, result, folder)
    except Exception as error:
        traceback.print_exc()
        result["error"] = f"{type(error).__name__}: {error}"[:4000]
    result["took_seconds"] = round(time.monotonic() - began, 1)
    print(f"{name} {'holds' if result['holds'] else 'DOES NOT HOLD'}, {result['took_seconds']} s", flush=True)
    gc.collect()
    if scale.device == "cuda":
        torch.cuda.empty_cache()
    return result


def main() -> int:
    arguments = parse_arguments()
    if not arguments.cpu and not torch.cuda.is_available():
        raise UserError("torch finds no GPU here: give --cpu to rehearse without one")
    scale = REHEARSAL if arguments.cpu else GPU
    head = measured(not_measured="several GPUs, other shapes" if not arguments.cpu else "GPUs: this is a rehearsal")
    sections: dict[str, Any] = {}
    profile = arguments.json.with_name(f"{arguments.json.stem}_profile.txt")
    for name in arguments.only:
        with temporary_folder() as folder:
            sections[name] = run_section(name, scale, folder)
            if (text := folder / gpu_steps.PROFILE).is_file():
                write_atomically(profile, text.read_bytes())
        results = {**head, "device": scale.device, "sections": sections}
        write_atomically(arguments.json, (json.dumps(results, indent=1) + "\n").encode())
    return EXIT_DONE if all(result["holds"] for result in sections.values()) else EXIT_FAILED


if __name__ == "__main__":
    run_entry_point(main)
