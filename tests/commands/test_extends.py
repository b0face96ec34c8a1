"""Recipes that extend others: values below values, and a sentence for each way to get it wrong."""

import pytest

from pipeline.errors import UserError
from pipeline.recipe import load_recipe


def write(path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_own_values_win_key_by_key_through_two_files(tmp_path):
    write(tmp_path / "base.yaml", "method: scratch\ntrain: {steps: 10, lr: 1e-3, seed: 4}\ntarget: {layers: 3}\n")
    write(tmp_path / "sub" / "middle.yaml", "extends: ../base.yaml\ntrain: {steps: 20, lr: 2e-3}\n")
    last = write(tmp_path / "sub" / "last.yaml", "extends: middle.yaml\ntrain: {steps: 30}\n")
    recipe = load_recipe(last, ["--train.seed", "5"])
    assert (recipe.train.steps, recipe.train.lr, recipe.train.seed) == (30, 2e-3, 5)
    assert recipe.method == "scratch" and recipe.target.layers == 3


def test_a_list_or_an_empty_section_is_taken_as_a_whole(tmp_path):
    write(tmp_path / "base.yaml", "method: scratch\ndata: {shards: [{path: a, weight: 1}, {path: b, weight: 2}]}\n")
    own = write(tmp_path / "own.yaml", "extends: base.yaml\ndata: {shards: [{path: c, weight: 3}]}\ntrain:\n")
    recipe = load_recipe(own, [])
    assert [str(path) for path, _ in recipe.data.sources()] == ["c"]
    assert recipe.train.steps == 400_000


@pytest.mark.parametrize(
    "base,own,message",
    [
        ("extends: own.yaml\n", "extends: base.yaml\n", "extends own.yaml, which extends it in turn"),
        ("method: scratch\n", "extends: own.yaml\n", "extends own.yaml, which extends it in turn"),
        ("method: scratch\n", "extends: other.yaml\n", r"other.yaml cannot be read: No such file"),
        ("- 1\n", "extends: base.yaml\n", r"base.yaml must hold sections"),
        ("a: [\n", "extends: base.yaml\n", r"base.yaml is no YAML"),
        ("method: scratch\n", "extends: [base.yaml]\n", "extends must name one file"),
        ("method: scratch\ntrain: {stesp: 3}\n", "extends: base.yaml\n", "did you mean train.steps"),
    ],
)
def test_what_cannot_be_extended(tmp_path, base, own, message):
    write(tmp_path / "base.yaml", base)
    with pytest.raises(UserError, match=message):
        load_recipe(write(tmp_path / "own.yaml", own), [])
