"""The recipe's sections `sources` and `evaluation`: checked, and no part of what a run is."""

import pytest
import yaml

from pipeline.engine.run_directory import record_start, resume_point
from pipeline.errors import UserError
from pipeline.recipe import load_recipe

BASE = "method: scratch\n"
SECTIONS = BASE + "sources: {inputs: 'lines:a.txt', tokenizer: t}\nevaluation: {tasks: rte, data: hub, seeds: '1,2'}\n"


def load(folder, text):
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml", [])


def test_they_are_read(tmp_path):
    recipe = load(tmp_path, SECTIONS)
    assert recipe.sources.specs == ["lines:a.txt"] and recipe.sources.tokenizer == "t"
    assert (recipe.evaluation.tasks, recipe.evaluation.data, recipe.evaluation.seeds) == ("rte", "hub", "1,2")
    assert (
        load(tmp_path, BASE).sources.specs == [] and load(tmp_path, BASE + "evaluation: {}\n").evaluation.tasks is None
    )


@pytest.mark.parametrize(
    "section,message",
    [
        ("sources: {inputs: 5}", "sources.inputs must be FORMAT:PATH"),
        ("sources: {inputs: [a.txt]}", "sources.inputs must be FORMAT:PATH"),
        ("sources: {inputs: []}", "sources.inputs must be FORMAT:PATH"),
        ("sources: {tokenizer: t}", "sources.tokenizer is for sources.inputs"),
        ("sources: {input: 'lines:a'}", "no key sources.input, did you mean sources.inputs"),
        ("evaluation: {tasks: rte}", "evaluation.tasks and evaluation.data go together"),
        ("evaluation: {data: glue}", "evaluation.tasks and evaluation.data go together"),
        ("evaluation: {tasks: rte, data: glue, seeds: '1,x'}", "evaluation.seeds must be whole numbers"),
        ("evaluation: {tasks: [rte], data: glue}", "evaluation.tasks must be text"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, section, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, f"{BASE}{section}\n")


def test_they_make_no_other_recipe_of_a_run(tmp_path):
    run = tmp_path / "run"
    record_start(run, load(tmp_path, SECTIONS), {}, ["train.py"])
    assert not {"sources", "evaluation"} & yaml.safe_load((run / "config.yaml").read_text()).keys()
    assert resume_point(run, load(tmp_path, BASE)) == (None, [])
    with pytest.raises(UserError, match="holds another run"):
        resume_point(run, load(tmp_path, f"{SECTIONS}train: {{seed: 5}}\n"))
