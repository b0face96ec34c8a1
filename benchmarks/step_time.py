"""What an optimizer step costs: WID as published, composed and narrowed, beside what it competes with.

    python benchmarks/step_time.py --layers 2 --target-hidden 192 --tokens 16384 --json FILE

1. A BERT with random weights, a student of the target width, compactors with random deltas; one process.
2. Check, in fp32: chained and composed give the same logits, and so do composed with closed gates and narrowed.
   The benchmark ends with an error if not.
3. Warm-up, in which the memory is measured; then rounds. Every round times one step of every row, so that the
   machine's drift meets all of them alike.
4. Table and FILE.

A step is forward and backward over all micro-batches, and AdamW (fused, fp32 moments; under bf16 also fp32 master
weights). Batches are random tokens, masked by the project's own masking: k = round(0.15 (n - 2)) of n tokens are
predicted. Dropout is 0.

Rows: `teacher` and `student` are plain masked-LM training; `chained` is WID as published; `composed` is WID before
and `narrowed` after the gates have closed; `kd` is logit distillation and `minilm` MiniLMv2, both into the student.
WID composes once in a step, before its micro-batches. With --compile, masked-LM rows come a second time through
torch.compile (the micro-batches, not the composition); one that compiles again while it is timed ends the benchmark.

With --beside CHECKOUT, the rows of another checkout of this repository take turns with these: before each timed step
one of the same row there, in a process of its own. FILE has their seconds too, and the table has a column more: how
many times as fast as there a row is, the median of pairs, with the range of the pairs.

Columns: tokens/s is the median over rounds (in the file also all times). `times faster than chained` and `times the
student's step` are medians of paired ratios: each is between two steps of one round, so they need not be those of the
tokens/s. `least to most` is the range of the second over rounds; where it holds 1, the rounds do not even agree which
is faster. `counted` is the same ratio in multiply-accumulates.
Peak memory is parameters, gradients, moments, master weights of that row and what its step allocates. Utilisation =
2 x multiply-accumulates of the step (pipeline.cost, no recomputation counted) / (seconds x matrix peak), where the
peak is the best of this run's products of two large square matrices of the same precision.

On CPUs with glibc, run it with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=67108864 in the
environment: otherwise every large tensor is fresh memory from the kernel, and first touching it can cost more than
computing it. With as many threads as cores pin them, on two cores with OMP_NUM_THREADS=2 GOMP_CPU_AFFINITY=0,1:
otherwise two threads may share a core.
"""

import argparse
import json
import statistics
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.beside import Beside
from benchmarks.steps import PRECISIONS, Row, Setting, build_models, make_batches, make_rows, measure, ratios
from pipeline.cost import VARIANTS, Batch, step_macs, trained_parameters
from pipeline.environment import measured, require_compiler
from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.files import write_atomically
from pipeline.launch import positive_int
from pipeline.records import markdown_table
from pipeline.shapes import BertShape, predicted_positions, resolve_target


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    for name, default, meaning in (
        ("layers", 12, "layers of teacher and student"),
        ("hidden", 768, "width of the teacher"),
        ("heads", 12, "attention heads of teacher and student"),
        ("intermediate", None, "FFN width of the teacher (default: 4 x hidden)"),
        ("vocab-size", 30522, "tokens in the vocabulary"),
        ("target-hidden", 192, "width of the student, a multiple of the heads"),
        ("tokens", 16384, "tokens per step"),
        ("seq-len", 128, "tokens per sequence"),
        ("micro-tokens", None, "tokens per micro-batch (default: all of the step's)"),
        ("rounds", 3, "timed steps of every row"),
    ):
        said = meaning if "default" in meaning else f"{meaning} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=positive_int, default=default, help=said)
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=VARIANTS, metavar="ROW", help="all by default"
    )
    parser.add_argument("--compile", action="store_true", help="rows through torch.compile as well")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout to take turns with")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    return parser.parse_args()


def read_setting(arguments: argparse.Namespace) -> Setting:
    """Check what fits together.

    Raises:
        UserError: sizes that are no BERT, numbers of tokens that do not divide, or no GPU or compiler where one is
            asked for.
    """
    hidden, seq_len = arguments.hidden, arguments.seq_len
    micro_tokens = arguments.micro_tokens or arguments.tokens
    if seq_len < 8 or micro_tokens % seq_len or arguments.tokens % micro_tokens:
        raise UserError(
            f"--tokens {arguments.tokens} must be a multiple of --micro-tokens {micro_tokens}, and that of --seq-len "
            f"{seq_len}, which is at least 8"
        )
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here")
    if arguments.beside and not (arguments.beside / "benchmarks" / "step_time.py").is_file():
        raise UserError(f"--beside {arguments.beside}: that is no checkout of this repository")
    if arguments.compile:
        require_compiler("--compile", arguments.device)
    teacher = BertShape(
        layers=arguments.layers,
        hidden=hidden,
        heads=arguments.heads,
        intermediate=arguments.intermediate or 4 * hidden,
        vocab_size=arguments.vocab_size,
        positions=max(512, seq_len),
    )
    student = resolve_target(teacher, "dim", hidden=arguments.target_hidden)
    windows, micro_batches = arguments.tokens // seq_len, arguments.tokens // micro_tokens
    batch = Batch(windows, seq_len, predicted_positions(seq_len, 0.15))
    return Setting(teacher, student, batch, arguments.device, arguments.precision, micro_batches)


def summarise(
    setting: Setting, rows: dict[str, Row], peak: float, beside: dict[str, list[float]]
) -> dict[str, dict[str, Any]]:
    """What the file says of every row; `beside` are the seconds of another checkout, by row."""
    summary: dict[str, dict[str, Any]] = {}
    batch = setting.batch
    for name, row in rows.items():
        macs = step_macs(row.variant, setting.teacher, setting.student, batch)
        seconds = statistics.median(row.seconds)
        faster = ratios(rows["chained"], row) if "chained" in rows else None
        times = ratios(row, rows["student"]) if "student" in rows else None
        summary[name] = {
            "tokens_per_s": batch.tokens / seconds,
            "tokens_per_s_range": [batch.tokens / max(row.seconds), batch.tokens / min(row.seconds)],
            "times_faster_than_chained": statistics.median(faster) if faster else None,
            "times_student_step": statistics.median(times) if times else None,
            "times_student_step_range": [min(times), max(times)] if times else None,
            "peak_bytes": row.peak,
            "utilisation": 2 * macs / seconds / peak,
            "macs_per_step": macs,
            "trained_parameters": trained_parameters(row.variant, setting.teacher, setting.student),
            "seconds": row.seconds,
        }
        if name in beside:
            pairs = [there / here for there, here in zip(beside[name], row.seconds, strict=True)]
            summary[name]["beside_seconds"] = beside[name]
            summary[name]["times_as_fast_as_beside"] = statistics.median(pairs)
            summary[name]["times_as_fast_as_beside_range"] = [min(pairs), max(pairs)]
    return summary


def table(summary: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""

    def ratio(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    header = ["step", "tokens/s", "slowest to fastest", "times faster than chained"]
    header += ["times the student's step", "least to most", "counted", "peak GB", "utilisation"]
    compared = any("beside_seconds" in row for row in summary.values())
    header += ["times as fast as beside"] * compared
    lines = []
    for name, row in summary.items():
        low, high = row["tokens_per_s_range"]
        cells = [f"{row['tokens_per_s']:,.0f}", f"{low:,.0f} to {high:,.0f}"]
        cells += [ratio(row["times_faster_than_chained"]), ratio(row["times_student_step"])]
        cells.append(" to ".join(map(ratio, row["times_student_step_range"] or ())))
        cells.append(ratio(row["macs_per_step"] / summary["student"]["macs_per_step"]) if "student" in summary else "")
        cells += [f"{row['peak_bytes'] / 1e9:.2f}", f"{100 * row['utilisation']:.0f} %"]
        if "beside_seconds" in row:
            least, most = map(ratio, row["times_as_fast_as_beside_range"])
            cells.append(f"{ratio(row['times_as_fast_as_beside'])} ({least} to {most})")
        else:
            cells += [""] * compared
        lines.append([name, *cells])
    return markdown_table(header, lines)


def without(options: list[str], *names: str) -> list[str]:
    """A command line without some options and their values."""
    left, words = [], iter(options)
    for word in words:
        if word in names:
            next(words, None)
        elif not word.startswith(tuple(f"{name}=" for name in names)):
            left.append(word)
    return left


def main() -> int:
    arguments = parse_arguments()
    setting = read_setting(arguments)
    head = measured(not_measured="several ranks, other devices and precisions")
    batches = make_batches(setting)
    check = tuple(tensor[:4] for tensor in batches[0])
    rows = make_rows(setting, build_models(setting, check), arguments.variants, arguments.compile)
    options = without(sys.argv[1:], "--beside", "--json")
    with Beside(arguments.beside, options) if arguments.beside else nullcontext() as beside:
        peak = measure(setting, rows, batches, arguments.rounds, *([beside.step] if beside else []))
    summary = summarise(setting, rows, peak, beside.seconds if beside else {})
    print(f"teacher: {setting.teacher}")
    print(f"student: {setting.student}")
    print(
        f"{setting.batch.tokens:,} tokens per step in {setting.micro_batches} micro-batches of sequences of "
        f"{setting.batch.seq_len}, {setting.precision}, matrix peak {peak / 1e12:.3g} TFLOP/s"
    )
    print(table(summary))
    if arguments.json:
        head |= {"threads": torch.get_num_threads(), "setting": asdict(setting), "matrix_peak_flops": peak}
        head |= {"beside": beside.commit} if beside else {}
        write_atomically(arguments.json, (json.dumps({**head, "rows": summary}, indent=1) + "\n").encode())
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
