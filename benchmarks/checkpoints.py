"""How long a run of BERT-base's size stands still while it writes a checkpoint.

    python benchmarks/checkpoints.py --text SPEC... --tokenizer DIR --output DIR --json FILE

1. A BERT of BERT-base's shape with random weights; shards of the text's beginning.
2. Four steps of a compacted run on one rank, with a checkpoint after each, at full width; a second run is narrow from
   its second step on. The run directory lies on the disk that --output is on.
3. The seconds of writing the last one, its size, and the seconds between checkpoints that keep them under 5 %.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from transformers import BertConfig, BertForMaskedLM

from benchmarks.trainings import beginning
from pipeline.environment import measured
from pipeline.errors import EXIT_DONE, run_entry_point
from pipeline.files import write_atomically
from pipeline.records import markdown_table
from pipeline.stages import StageRunner, cpu_precision, shards_stage, train_stage

STEPS = 4
WIDTHS = {"full width": STEPS - 1, "narrowed": 0}
"""At which step the gates begin to close; a step later the run is narrow, if it still goes on."""
SHARE = 0.05


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, metavar="SPEC", help="a megabyte of text or more, FORMAT:PATH")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="as for build_shards.py")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="teacher, shards, runs")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    return parser.parse_args()


def measure(run: Path) -> dict[str, float]:
    """Seconds and size of the last checkpoint of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    checkpoint = run / "checkpoints" / f"step_{STEPS}"
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    # A checkpoint is counted in the step logged after it: the last of them here is that of step 3, the first that
    # deletes another one.
    return {"seconds": lines[-1]["time_ms"]["checkpoint"] / 1e3, "gigabytes": size / 1e9}


def main() -> int:
    arguments = parse_arguments()
    head = measured(not_measured="GPUs, several ranks, other disks")
    output = arguments.output.resolve()
    runner = StageRunner(output / "logs", ranks=1)
    text, shards, teacher = output / "text.txt", output / "shards", output / "teacher"
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(text, ("\n".join(beginning(arguments.text, 1e6)) + "\n").encode())
    runner.run([shards_stage("shards", [f"lines:{text}"], arguments.tokenizer.resolve(), shards, workers=1)])
    manifest = json.loads((shards / "manifest.json").read_text())
    torch.manual_seed(1)
    BertForMaskedLM(BertConfig(vocab_size=manifest["vocab_size"])).save_pretrained(teacher)
    deepspeed = f"ds_configs/demo_cpu_{cpu_precision()}.json"
    rows: dict[str, Any] = {}
    for name, start in WIDTHS.items():
        run = output / "runs" / name.replace(" ", "_")
        data = ("--teacher.path", teacher, "--data.shards", shards, "--data.heldout_windows", 2)
        schedule = ("--compaction.start_step", start, "--compaction.increments", 1, "--compaction.decay_steps", 1)
        schedule = (*schedule, "--compaction.selection", "norm")
        length = ("--train.steps", STEPS, "--train.checkpoint_every", 1, "--train.log_every", 1)
        batch = ("--train.global_batch", 32, "--data.seq_len", 16)
        options = (*data, *schedule, *length, *batch)
        runner.run([train_stage(name, "recipes/fast_bert_base_to_11m.yaml", deepspeed, run, *options)])
        rows[name] = measure(run)
    write_atomically(arguments.json, (json.dumps({**head, "rows": rows}, indent=1) + "\n").encode())
    lines = []
    for name, row in rows.items():
        apart = row["seconds"] * (1 / SHARE - 1)
        lines.append([name, f"{row['gigabytes']:.2f}", f"{row['seconds']:.1f}", f"{apart:.0f}"])
    print(markdown_table(["", "GB", "seconds", f"seconds apart for {SHARE:.0%}"], lines))
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
