"""How far a run on the cluster is: a table of its stages, and what went wrong in a sentence each.

    python slurm/status.py RUN [--watch] [--json]

It reads what the stages wrote and asks SLURM second, so it works without accounting, and also when SLURM is down.
"""

import argparse
import json
import sys
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.recipe import load_recipe
from slurm import scheduler
from slurm.chain import make_chain
from slurm.progress import Observer, Row
from slurm.record import read_record
from slurm.resources import load_site

SECONDS = 10
"""Between two tables of --watch; controllers do not like to be asked more often."""
ENDINGS = ("done", "failed", "stopped", "pre-empted", "not run", "not submitted")
"""States in which nothing happens any more by itself."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How far the stages of a run are, and what went wrong.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of slurm/submit.py")
    parser.add_argument("--watch", action="store_true", help=f"again every {SECONDS} s, to the end")
    parser.add_argument("--json", action="store_true", help="a list of objects instead of the table")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    while True:
        rows, notice = look(arguments.run.absolute())
        print(json.dumps([row.to_dict() for row in rows]) if arguments.json else table(rows), flush=True)
        if notice:
            print(f"note: {notice}", file=sys.stderr, flush=True)
        if not arguments.watch or all(row.state.startswith((*ENDINGS, "left out")) for row in rows):
            return EXIT_DONE
        time.sleep(SECONDS)
        if not arguments.json:
            print("", flush=True)


def look(run: Path) -> tuple[list[Row], str]:
    """The rows of a run, and what kept SLURM from being asked."""
    record = read_record(run)
    recipe, site = load_recipe(record.folder / "recipe.yaml", []), load_site(record.folder / "site.yaml")
    notice = ""
    try:
        states = scheduler.states(job.number for job in record.jobs if job.number)
    except UserError as error:
        states, notice = [], f"{error}; this is what files say"
    observer = Observer(record, {state.number: state for state in states}, scheduler.remembered, not notice)
    return list(observer.rows(make_chain(run, recipe, site))), notice


def table(rows: list[Row]) -> str:
    """The rows below each other, with what went wrong and the log under the stage that it is of."""
    header = ("stage", "jobs", "state", "started", "step", "loss", "tokens/s", "left")
    cells = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    for row in reversed(rows):
        place = rows.index(row) + 2
        below = [f"    {text}" for text in (row.problem, row.log if row.state != "done" else "") if text]
        lines[place:place] = below
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    step = "" if row.step is None else f"{row.step:,} of {row.steps:,}"
    loss = "" if row.loss is None else f"{row.loss:.4f}"
    speed = "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}"
    minutes = None if row.left is None else round(row.left / 60)
    left = "" if minutes is None else f"{minutes // 60}:{minutes % 60:02d} h"
    return row.stage, row.jobs, row.state, row.start, step, loss, speed, left


if __name__ == "__main__":
    run_entry_point(main)
