"""The stages of a run on a cluster, in the order in which they follow each other, and which of them are done."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.manifest import MANIFEST_NAME, tokenizer_fingerprint
from pipeline.files import sha256_of
from pipeline.recipe import Recipe
from pipeline.stages import (
    Stage,
    evaluate_stage,
    fold_stage,
    report_stage,
    shards_stage,
    train_stage,
    verify_stage,
)
from preprocessing.build.plan import source_hash
from preprocessing.readers.specs import expand_specs
from slurm.record import FOLDER, Record
from slurm.resources import STAGES, Resources, Site

STUDENT, EVALUATION, REPORT = "student", "evaluation", "report"
"""What the stages after training leave in the run directory."""


@dataclass(frozen=True)
class Link:
    """A stage of the chain: one job, or an array of them.

    Attributes:
        name: one of `STAGES`.
        stages: run one after another in the job.
        resources: of the job.
    """

    name: str
    stages: tuple[Stage, ...]
    resources: Resources

    @property
    def work(self) -> str:
        """A hash of what is run."""
        commands = [list(stage.command) for stage in self.stages]
        return hashlib.sha256(json.dumps([commands, self.resources.array]).encode()).hexdigest()[:16]

    def done(self, record: Record) -> bool:
        """Whether nothing is left to do: by what it leaves, or by what its jobs said at their end."""
        if not any(stage.always for stage in self.stages):
            return all(stage.done for stage in self.stages)
        jobs = record.latest(self.name)
        return bool(jobs) and all(
            job.work == self.work and record.succeeded(job, task) for job in jobs for task in range(1, job.array + 1)
        )


@dataclass(frozen=True)
class Chain:
    """All that a recipe asks for.

    Attributes:
        recipe: as the jobs read it, with local paths only.
        links: in order.
        left_out: why a stage is not among them, by its name.
    """

    recipe: Recipe
    links: tuple[Link, ...]
    left_out: dict[str, str]


def make_chain(run: Path, recipe: Recipe, site: Site) -> Chain:
    """The chain of a run.

    Args:
        run: the run directory.
        recipe: with local paths; where it has sources, their shards take the place of `data.shards`.
        site: what every stage gets.
    """
    left_out = dict[str, str]()
    if not recipe.sources.specs:
        left_out |= dict.fromkeys(("shards", "merge"), "the recipe has no section sources")
    elif site.shards.array == 1:
        left_out["merge"] = "one job makes the shards"
    if recipe.evaluation.tasks is None:
        left_out["evaluate"] = "the recipe has no section evaluation"
    stages = _stages(run, recipe, site, left_out)
    links = tuple(Link(name, stages[name], site.of(name)) for name in STAGES if name in stages)
    return Chain(recipe, links, left_out)


def _stages(run: Path, recipe: Recipe, site: Site, left_out: dict[str, str]) -> dict[str, tuple[Stage, ...]]:
    """The commands of every stage that is not left out."""
    found, student = dict[str, tuple[Stage, ...]](), run / STUDENT
    if "shards" not in left_out:
        shards = (recipe.sources.specs, Path(str(recipe.sources.tokenizer)), Path(recipe.data.shards), site.shards.cpus)
        found["shards"] = (shards_stage("shards", *shards),)
    if "merge" not in left_out:
        found["merge"] = (shards_stage("merge", *shards[:3], site.merge.cpus, "--merge"),)
    found["verify"] = tuple(verify_stage("verify", directory) for directory in read_directories(recipe))
    files = (str(run / FOLDER / "recipe.yaml"), str(run / FOLDER / "ds_config.json"))
    found["train"] = (train_stage("train", *files, run, resolved=recipe),)
    found["fold"] = (fold_stage("fold", run, student),)
    reported = [run]
    if recipe.evaluation.tasks is not None:
        found["evaluate"] = (_evaluation(run, recipe, site.evaluate),)
        reported.append(run / EVALUATION)
    found["report"] = (report_stage("report", reported, run / REPORT),)
    return found


def _evaluation(run: Path, recipe: Recipe, resources: Resources) -> Stage:
    asked = recipe.evaluation
    options: list[object] = ["--seeds", asked.seeds, "--threads", resources.cpus]
    if recipe.teacher.path and "attention" in str(asked.tasks).split(","):
        options += ["--teacher", recipe.teacher.path]
    data = Path(str(asked.data))
    return evaluate_stage("evaluate", run / STUDENT, str(asked.tasks), data, run / EVALUATION, *options)


def read_directories(recipe: Recipe) -> Iterator[Path]:
    """The shard directories that training reads."""
    yield from (path for path, _ in recipe.data.sources())
    if recipe.data.heldout is not None:
        yield Path(recipe.data.heldout)


def shards_directory(recipe: Recipe, cache: Path) -> Path:
    """Where the shards of a recipe's sources lie: named after what decides their content.

    Raises:
        UserError: a source does not exist.
    """
    tokenizer = Path(str(recipe.sources.tokenizer))
    known = sha256_of(tokenizer) if tokenizer.is_file() else tokenizer_fingerprint(tokenizer)
    return cache / "shards" / source_hash(expand_specs(recipe.sources.specs), known)[:16]


def has_shards(directory: Path) -> bool:
    """Whether a build is finished there."""
    return (directory / MANIFEST_NAME).is_file()
