"""What composing costs beside one micro-batch, forward and backward.

    python benchmarks/composition_share.py --form narrowed --windows 8 60 120 --json FILE

BERT-base's width (768/3072) on its way to 192, 2 layers, sequences of 128, fp32, one thread. Every round composes
all matrices, runs a micro-batch with what came out, and sends the gradients back through the composition. Seconds are
of processor time, so that other work on the machine counts little; the shares are medians over rounds.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.steps import Setting, close_gates, make_batches, micro_step_of, named, random_bert
from pipeline.compaction.fold import open_indices
from pipeline.compaction.model import CompactedBert
from pipeline.cost import TRAINING, Batch, Variant, composition_macs, step_macs
from pipeline.environment import measured
from pipeline.errors import EXIT_DONE, run_entry_point
from pipeline.files import write_atomically
from pipeline.launch import positive_int
from pipeline.models.loss import masked_lm_of
from pipeline.records import markdown_table
from pipeline.shapes import BertShape, resolve_target

FORMS: tuple[Variant, ...] = ("composed", "narrowed")


def setting_of(windows: int) -> Setting:
    teacher = BertShape(2, 768, 12, 3072, 30522)
    return Setting(teacher, resolve_target(teacher, "dim", hidden=192), Batch(windows, 128, 19), "cpu", "fp32")


def build(form: Variant) -> CompactedBert:
    setting = setting_of(1)
    model = CompactedBert(random_bert(setting.teacher, "cpu"), setting.student, "dim")
    if form == "narrowed":
        close_gates(model)
        model.narrow(open_indices(model.gates))
    return model


def counted_share(form: Variant, setting: Setting) -> float:
    """Of the multiply-accumulates of a micro-batch."""
    kept = setting.student if form == "narrowed" else setting.teacher
    composing = TRAINING * composition_macs(setting.teacher, kept)
    return composing / step_macs(form, setting.teacher, setting.student, setting.batch)


def time_one(model: CompactedBert, setting: Setting) -> tuple[float, float]:
    """Processor seconds of one composition and of the rest of a micro-batch."""
    (batch,) = make_batches(setting)
    micro_step = micro_step_of(setting, masked_lm_of(model.form, training=True))
    began = time.process_time()
    micro_step.begin(model())
    composed = time.process_time()
    micro_step.run(named(batch), seed=1)
    done = time.process_time()
    micro_step.carried_loss().backward()
    ended = time.process_time()
    model.zero_grad()
    return composed - began + ended - done, done - composed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=FORMS, default="narrowed")
    parser.add_argument("--windows", nargs="+", type=positive_int, default=[8, 60, 120], help="sizes of micro-batches")
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    head = measured(not_measured="GPUs, bf16, several threads, 12 layers")
    model = build(arguments.form)
    time_one(model, setting_of(1))
    settings = {windows: setting_of(windows) for windows in arguments.windows}
    seconds: dict[int, list[tuple[float, float]]] = {windows: [] for windows in settings}
    for _ in range(arguments.rounds):
        for windows, setting in settings.items():
            seconds[windows].append(time_one(model, setting))
    rows: dict[str, dict[str, Any]] = {}
    for windows, pairs in seconds.items():
        share = statistics.median(composing / (composing + rest) for composing, rest in pairs)
        counted = counted_share(arguments.form, settings[windows])
        rows[f"{arguments.form}_{windows}"] = {"counted_share": counted, "measured_share": share, "seconds": pairs}
    cells = [[name, f"{row['counted_share']:.2f}", f"{row['measured_share']:.2f}"] for name, row in rows.items()]
    print(markdown_table(["micro-batch", "share, counted", "share, measured"], cells))
    if arguments.json:
        write_atomically(arguments.json, (json.dumps({**head, "rows": rows}, indent=1) + "\n").encode())
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
