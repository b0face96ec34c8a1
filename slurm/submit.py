"""From a recipe to a chain of jobs: text to shards, training, the student, its scores, a report.

    python slurm/submit.py RECIPE --run DIR [--deepspeed_config FILE] [--site FILE] [--from STAGE] [--dry-run]

1. Read recipe and site file; refuse what cannot work, and code that no commit holds.
2. Fetch teacher, tokenizer and data sets that are names of the hub: jobs run without a network.
3. Write RUN/slurm: the recipe with local paths, the DeepSpeed file, a batch file for each stage. SLURM looks at them.
4. Queue what is not done, each stage behind the one before it.

The recipe's sections `sources` and `evaluation` say what is sharded and scored. Shards lie in the site's cache, where
runs with the same text and tokenizer share them. Called again, it goes on where a run stopped.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import yaml

from pipeline.errors import EXIT_DONE, run_entry_point
from pipeline.files import write_atomically, writing
from pipeline.recipe import Recipe, load_recipe
from pipeline.stages import ROOT
from slurm import checks
from slurm.chain import Chain, make_chain, shards_directory
from slurm.fetch import Fetcher, fetched
from slurm.queueing import Submission
from slurm.record import Record, locked, read_record
from slurm.resources import STAGES, Site, load_site


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="recipe (YAML): what is trained")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory, on the shared disk")
    deepspeed = ROOT / "ds_configs" / "zero1_bf16.json"
    parser.add_argument(
        "--deepspeed_config", type=Path, default=deepspeed, metavar="FILE", help="(default: ds_configs/zero1_bf16.json)"
    )
    site = ROOT / "slurm" / "site.yaml"
    parser.add_argument("--site", type=Path, default=site, metavar="FILE", help="(default: slurm/site.yaml)")
    parser.add_argument("--from", dest="first", choices=STAGES, help="queue this stage and all behind it, done or not")
    parser.add_argument("--dry-run", action="store_true", help="print the batch files; fetch, write and queue nothing")
    parser.add_argument("--allow-dirty", action="store_true", help="submit code with uncommitted changes")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    site = load_site(arguments.site)
    recipe = load_recipe(
        arguments.recipe, [], lambda recipe: checks.recipe_faults(recipe, arguments.deepspeed_config, site.train)
    )
    revision, changes = checks.code_revision()
    if not arguments.allow_dirty:
        checks.refuse_changes(changes)
    run, cache = arguments.run.absolute(), Path(str(site.cache)).absolute()
    checks.refuse_path(run)
    if arguments.dry_run:
        chain = plan(run, recipe, site, Fetcher(cache, download=False))
        show(Submission(read_record(run, must_exist=False), chain, site, cache), arguments.first)
        return EXIT_DONE
    with writing(run):
        for folder in ("logs", "states"):
            (run / "slurm" / folder).mkdir(parents=True, exist_ok=True)
    with locked(run / "slurm" / "lock", f"another submit.py is at work on {run}: wait for its end"):
        record = read_record(run, must_exist=False)
        checks.refuse_jobs(record)
        chain = plan(run, recipe, site, Fetcher(cache))
        checks.refuse_another_recipe(run, chain.recipe)
        checks.refuse_full_disks(run, chain.recipe)
        write_files(record, chain, arguments, changes)
        Submission(record, chain, site, cache, revision + ("-dirty" if changes else "")).queue(arguments.first)
    print(f"watch it: python slurm/status.py {arguments.run}")
    return EXIT_DONE


def plan(run: Path, recipe: Recipe, site: Site, fetcher: Fetcher) -> Chain:
    """The chain of a recipe, with what it names on the hub fetched."""
    local = fetched(recipe, fetcher)
    if local.sources.specs:
        here = fetcher.download or not any(map(fetcher.would_fetch, (local.sources.tokenizer, *local.sources.specs)))
        # Without a download, what decides the folder's name may not be here.
        local.data.shards = str(shards_directory(local, fetcher.cache) if here else fetcher.cache / "shards" / "HASH")
    return make_chain(run, local, site)


def show(submission: Submission, first: str | None) -> None:
    """Print the batch files that would be queued."""
    for link in submission.links(first):
        print(f"==> {submission.record.batch_file(link.name)}\n{submission.batch_file(link)}")
    submission.say_what_is_left_out(first)


def write_files(record: Record, chain: Chain, arguments: argparse.Namespace, changes: str) -> None:
    """Everything that a job reads of the user's files, as it is now."""
    recipe = yaml.safe_dump(dataclasses.asdict(chain.recipe), sort_keys=False)
    write_atomically(record.folder / "recipe.yaml", recipe.encode())
    for name, path in (("ds_config.json", arguments.deepspeed_config), ("site.yaml", arguments.site)):
        write_atomically(record.folder / name, path.read_bytes())
    if changes:
        write_atomically(record.folder / "changes.diff", checks.code_changes().encode())


if __name__ == "__main__":
    run_entry_point(main)
