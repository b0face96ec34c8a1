"""How the cost of a step grows with width, depth, tokens per step and ranks.

    python benchmarks/scaling.py --json FILE --plot FILE.png

1. Sweeps over width, depth and tokens per step around one setting: multiply-accumulates of a step of WID as published
   (chained), composed and narrowed, as multiples of the step of the student (a quarter of the width). Where the
   chained step is no more than --measure-up-to, the steps are timed as well, as in step_time.py.
2. Ranks, modelled only, for BERT-base to the 11M student at the published 960 x 128 tokens per step, one micro-batch
   per rank: multiply-accumulates of one rank (the tokens are shared, but every rank composes for itself), and what
   each rank sends per step under every ZeRO stage (`pipeline.cost.sent_elements`; bf16, two bytes a number).
3. FILE and a plot: lines are counted, points are measured.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullLocator

from benchmarks.steps import PRECISIONS, Setting, build_models, make_batches, make_rows, measure, ratios
from pipeline.cost import Batch, Variant, sent_elements, step_macs, trained_parameters
from pipeline.environment import measured
from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.files import write_atomically, writing
from pipeline.launch import positive_int
from pipeline.shapes import BertShape, resolve_target

FORMS: tuple[Variant, ...] = ("chained", "composed", "narrowed")
COLOURS = {"chained": "C3", "composed": "C0", "narrowed": "C2", "student": "0.4"}
HEAD_SIZE, VOCABULARY, SEQ_LEN, PREDICTED = 64, 30522, 128, 19
WIDTH, DEPTH, TOKENS = 256, 2, 4096
"""The setting around which the sweeps go: small enough that processors can measure it."""
WIDTHS = (64, 128, 256, 512, 768, 1536)
DEPTHS = (1, 2, 4, 6, 12, 24)
STEP_TOKENS = (1024, 2048, 4096, 8192, 16384, 65536, 262144)
RANKS = (1, 2, 4, 8, 16, 32, 64)
GLOBAL_WINDOWS = 960
BYTES = 2
"""Of a bf16 number."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the timed steps")
    said = "largest chained step to time, in 10^9 multiply-accumulates (default: %(default)s)"
    parser.add_argument("--measure-up-to", type=float, default=200.0, metavar="N", help=said)
    parser.add_argument(
        "--rounds", type=positive_int, default=3, help="timed steps of every form (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    parser.add_argument("--plot", type=Path, required=True, metavar="FILE", help="where the picture goes")
    return parser.parse_args()


def shapes(hidden: int, layers: int) -> tuple[BertShape, BertShape]:
    """A BERT with heads of 64, and its student of a quarter of the width."""
    teacher = BertShape(layers, hidden, hidden // HEAD_SIZE, 4 * hidden, VOCABULARY)
    return teacher, resolve_target(teacher, "dim", hidden=hidden // 4)


@dataclass(frozen=True)
class Point:
    """One setting of a sweep."""

    sweep: str
    hidden: int = WIDTH
    layers: int = DEPTH
    tokens: int = TOKENS

    @property
    def where(self) -> int:
        """Its place on the axis of its sweep."""
        return {"width": self.hidden, "depth": self.layers, "tokens": self.tokens}[self.sweep]

    def macs(self, variant: Variant) -> int:
        teacher, student = shapes(self.hidden, self.layers)
        return step_macs(variant, teacher, student, Batch(self.tokens // SEQ_LEN, SEQ_LEN, PREDICTED))

    def counted(self) -> dict[str, float]:
        """Multiples of the student's step, by form."""
        return {form: self.macs(form) / self.macs("student") for form in FORMS}

    def timed(self, device: str, precision: str, rounds: int) -> dict[str, float]:
        """The same in seconds, medians over rounds."""
        teacher, student = shapes(self.hidden, self.layers)
        batch = Batch(self.tokens // SEQ_LEN, SEQ_LEN, PREDICTED)
        setting = Setting(teacher, student, batch, device, precision)
        batches = make_batches(setting)
        ids, positions, labels = (tensor[:4] for tensor in batches[0])
        rows = make_rows(setting, build_models(setting, (ids, positions, labels)), (*FORMS, "student"))
        measure(setting, rows, batches, rounds)
        return {form: statistics.median(ratios(rows[form], rows["student"])) for form in FORMS}


def sweeps() -> Iterator[Point]:
    yield from (Point("width", hidden=hidden) for hidden in WIDTHS)
    yield from (Point("depth", layers=layers) for layers in DEPTHS)
    yield from (Point("tokens", tokens=tokens) for tokens in STEP_TOKENS)


def ranks_row(ranks: int) -> dict[str, Any]:
    """What one of `ranks` ranks computes and sends in a step of BERT-base on its way to 192 dimensions."""
    teacher, student = shapes(768, 12)
    batch = Batch(GLOBAL_WINDOWS // ranks, SEQ_LEN, PREDICTED)
    row: dict[str, Any] = {"macs": {}, "sent_bytes": {}}
    variants: tuple[Variant, ...] = (*FORMS, "student")
    for variant in variants:
        parameters = trained_parameters(variant, teacher, student)
        row["macs"][variant] = step_macs(variant, teacher, student, batch)
        row["sent_bytes"][variant] = [BYTES * sent_elements(parameters, stage, ranks) for stage in range(4)]
    return row


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """The picture: three sweeps above, ranks and the legend below."""
    figure, axes = plt.subplot_mosaic([["width", "depth", "tokens"], ["macs", "sent", "key"]], figsize=(13, 7.5))
    titles = {
        "width": (f"Width of the teacher\n({DEPTH} layers, {TOKENS:,} tokens per step)", "hidden dimensions"),
        "depth": (f"Depth\n(hidden {WIDTH}, {TOKENS:,} tokens per step)", "layers"),
        "tokens": (f"Tokens per step\n({DEPTH} layers, hidden {WIDTH})", "tokens per step"),
    }
    for sweep, (title, label) in titles.items():
        draw_sweep(axes[sweep], [row for row in rows.values() if row["sweep"] == sweep], title, label)
    draw_ranks(axes["macs"], axes["sent"], [row for row in rows.values() if row["sweep"] == "ranks"])
    handles = [plt.Line2D([], [], color=colour, label=name) for name, colour in COLOURS.items()]
    handles.append(plt.Line2D([], [], color="black", label="counted"))
    handles.append(plt.Line2D([], [], color="black", marker="o", linestyle="none", label="measured"))
    handles.append(plt.Line2D([], [], color="black", linestyle="--", label="ZeRO stages 1 to 3 (solid: stage 0)"))
    axes["key"].legend(handles=handles, loc="center", fontsize=10)
    axes["key"].axis("off")
    figure.tight_layout()
    with writing(path):
        figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_sweep(axis: Axes, rows: list[dict[str, Any]], title: str, label: str) -> None:
    """Counted and measured multiples of the student's step."""
    for form in FORMS:
        axis.plot([row["where"] for row in rows], [row["counted"][form] for row in rows], color=COLOURS[form])
        timed = [row for row in rows if "measured" in row]
        points = [row["measured"][form] for row in timed]
        axis.plot([row["where"] for row in timed], points, color=COLOURS[form], marker="o", linestyle="none")
    axis.axhline(1.0, color=COLOURS["student"])
    axis.set_ylabel("times the student's step")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())
    finish(axis, [row["where"] for row in rows], title, label)


def draw_ranks(computed: Axes, sent: Axes, rows: list[dict[str, Any]]) -> None:
    """What one rank computes, and what it sends."""
    ranks = [row["where"] for row in rows]
    for variant, colour in COLOURS.items():
        computed.plot(ranks, [row["macs"][variant] for row in rows], color=colour)
        if variant == "chained":
            continue  # as many parameters as composed
        for stage, line in ((0, "-"), (1, "--")):
            values = [row["sent_bytes"][variant][stage] for row in rows[1:]]
            sent.plot(ranks[1:], values, color=colour, linestyle=line)
    computed.set_ylabel("multiply-accumulates per step and rank")
    sent.set_ylabel("bytes sent per step and rank (bf16)")
    scale = f"{GLOBAL_WINDOWS * SEQ_LEN:,} tokens per step"
    finish(computed, ranks, f"Ranks: computing\n(BERT-base to 192, {scale})", "ranks")
    finish(sent, ranks[1:], "Ranks: communication\n(chained sends as much as composed)", "ranks")
    for axis in (computed, sent):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))


def finish(axis: Axes, places: list[int], title: str, label: str) -> None:
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(places))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(places, [str(place) if place % 1024 else f"{place // 1024}k" for place in places])
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(label)
    axis.grid(alpha=0.3, which="both")


def main() -> int:
    arguments = parse_arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here")
    head = measured(not_measured="ranks, and steps above --measure-up-to: counted only")
    rows: dict[str, dict[str, Any]] = {}
    for point in sweeps():
        row: dict[str, Any] = {"sweep": point.sweep, "where": point.where, "counted": point.counted()}
        if point.macs("chained") <= arguments.measure_up_to * 1e9:
            row["measured"] = point.timed(arguments.device, arguments.precision, arguments.rounds)
        rows[f"{point.sweep} {point.where}"] = row
        print(f"{point.sweep} {point.where}: {row['counted']} {row.get('measured', 'not measured')}", flush=True)
    for ranks in RANKS:
        rows[f"ranks {ranks}"] = {"sweep": "ranks", "where": ranks, **ranks_row(ranks)}
    head |= {"device": arguments.device, "precision": arguments.precision}
    head |= {"measure_up_to_gmacs": arguments.measure_up_to}
    write_atomically(arguments.json, (json.dumps({**head, "rows": rows}, indent=1) + "\n").encode())
    draw(rows, arguments.plot)
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
