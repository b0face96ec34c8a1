"""What the jobs of a run will read from the Hugging Face hub, downloaded beforehand: compute nodes may be offline.

Names of the hub become local directories in the site's cache. Nothing else is done on the submitting host.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, first_line
from pipeline.recipe import Recipe

HUB = "hub"
_MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_PICKLED = "pytorch_model*.bin*"
"""Taken only where there is no safetensors file."""


def hub_variables(cache: Path) -> dict[str, str]:
    """Environment in which the hub's libraries keep what they download in the site's cache."""
    return {"HF_HUB_CACHE": str(cache / "hub"), "HF_DATASETS_CACHE": str(cache / "datasets")}


@dataclass(frozen=True)
class Fetcher:
    """Turns names into local paths.

    Attributes:
        cache: the site's.
        download: without, a name of the hub stays as it is.
    """

    cache: Path
    download: bool = True

    def would_fetch(self, name: str | None) -> bool:
        """Whether a tokenizer or a SPEC is not here but on the hub."""
        form, colon, path = str(name).partition(":")
        return form == HUB and not os.path.isdir(path.partition("?")[0]) if colon else not os.path.exists(str(name))

    def model(self, name: str, what: str) -> str:
        """The directory of a teacher or a tokenizer; `what` it is, for messages.

        Raises:
            UserError: it is neither here nor on the hub.
        """
        if os.path.exists(name):
            return os.path.abspath(name)
        if name.count("/") > 1 or name.startswith((".", "/", "~")):
            raise UserError(f"{what} {name} does not exist: name a directory, or a model of the hub")
        if not self.download:
            return name
        try:
            return self._model(name)
        except Exception as error:  # the hub's library and those below it raise whatever they like
            raise UserError(f"{what} {name} cannot be fetched: {first_line(error)}") from error

    def _model(self, name: str) -> str:
        os.environ |= hub_variables(self.cache)
        from huggingface_hub import snapshot_download

        print(f"fetching {name}", flush=True)
        path = snapshot_download(name, allow_patterns=_MODEL_FILES, cache_dir=self.cache / "hub")
        if not any(Path(path).glob("*.safetensors")):
            path = snapshot_download(name, allow_patterns=[*_MODEL_FILES, _PICKLED], cache_dir=self.cache / "hub")
        return path

    def source(self, spec: str) -> str:
        """A SPEC whose text is here, with an absolute path.

        Raises:
            UserError: it names a data set that cannot be fetched.
        """
        form, _, path = spec.partition(":")
        name, mark, query = path.partition("?")
        if form != HUB:
            return f"{form}:{os.path.abspath(path)}"
        if os.path.isdir(name):
            return f"{HUB}:{os.path.abspath(name)}{mark}{query}"
        if not self.download:
            return spec
        try:
            return f"hub:{self._data_set(name, query)}"
        except Exception as error:
            raise UserError(f"data set {spec} cannot be fetched: {first_line(error)}") from error

    def _data_set(self, name: str, query: str) -> str:
        """The local snapshot of a data set's files, with the options that still mean something."""
        from urllib.parse import parse_qsl, urlencode

        os.environ |= hub_variables(self.cache)
        from datasets import load_dataset_builder
        from huggingface_hub import snapshot_download

        print(f"fetching {name}", flush=True)
        options = dict(parse_qsl(query))
        revision = options.pop("revision", None)
        builder: Any = load_dataset_builder(name, options.get("config"), revision=revision)
        # hub files are written hf://datasets/NAME@REVISION/FILE; other configurations' files stay where they are.
        listed = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
        wanted = [file.split("@", 1)[1].split("/", 1)[1] for file in listed if "@" in file]
        patterns = [*wanted, "README.md"] if wanted else None
        path = snapshot_download(
            name, repo_type="dataset", revision=revision, allow_patterns=patterns, cache_dir=self.cache / "hub"
        )
        return f"{path}?{urlencode(options)}" if options else path

    def tasks(self, tasks: str, data: str) -> str:
        """Where the rows of tasks lie, for `--data`: a directory as an absolute path, or `hub`.

        Raises:
            UserError: the directory does not exist, or the hub does not hand a task over.
        """
        if data != HUB:
            if not os.path.isdir(data):
                raise UserError(f"evaluation.data {data}: there is no such directory")
            return os.path.abspath(data)
        if self.download:
            os.environ |= hub_variables(self.cache)
            print(f"fetching the rows of {tasks}", flush=True)
            _keep_rows([name.strip() for name in tasks.split(",")])
        return HUB


def _keep_rows(names: list[str]) -> None:
    """Have the hub's library keep the rows that evaluate.py will ask it for."""
    from pipeline.evaluation.glue.load import load_task
    from pipeline.evaluation.glue.run import Glue
    from pipeline.evaluation.glue.tasks import GLUE_TASKS, trained_tasks
    from pipeline.evaluation.squad.load import load_squad
    from pipeline.evaluation.squad.questions import VERSIONS

    for task in trained_tasks([name for name in names if name in Glue.names]):
        load_task(GLUE_TASKS[task], HUB)
    for version in (VERSIONS[name] for name in names if name in VERSIONS):
        load_squad(version, HUB)


def fetched(recipe: Recipe, fetcher: Fetcher) -> Recipe:
    """The recipe with local, absolute paths for all that it names.

    Raises:
        UserError: something is not there and cannot be fetched.
    """
    recipe = recipe.with_absolute_paths()
    if recipe.teacher.path is not None:
        recipe.teacher.path = fetcher.model(recipe.teacher.path, "teacher")
    if recipe.sources.specs:
        tokenizer = recipe.sources.tokenizer
        if tokenizer is None and recipe.teacher.path is None:
            raise UserError("sources.tokenizer is missing, and there is no teacher to take one from")
        recipe.sources.tokenizer = fetcher.model(tokenizer, "tokenizer") if tokenizer else recipe.teacher.path
        recipe.sources.inputs = [fetcher.source(spec) for spec in recipe.sources.specs]
    if recipe.evaluation.tasks and recipe.evaluation.data:
        recipe.evaluation.data = fetcher.tasks(recipe.evaluation.tasks, recipe.evaluation.data)
    return recipe
