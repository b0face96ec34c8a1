"""Parts of the benchmarks that compare trainings which decide what is compared; they themselves run for hours."""

import json
from pathlib import Path

import pytest

from benchmarks import first_comparison, narrowed_or_folded
from benchmarks.trainings import BATCH, beginning, best_of, deepspeed_config
from pipeline.errors import DataError
from pipeline.recipe import load_recipe
from tests.support import ROOT


def test_a_source_gives_its_beginning_and_no_less(tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"document number {i:03}\n" for i in range(100)))
    lines = list(beginning(f"lines:{text}", 200))
    assert lines == [f"document number {i:03}" for i in range(10)]
    with pytest.raises(DataError, match=r"and 1\.0 MB are wanted"):
        list(beginning(f"lines:{text}", 1e6))


def test_the_best_rate_of_the_first_seed_runs_again_under_the_others():
    losses = {(1e-3, 1): 3.0, (2e-3, 1): 2.0, (4e-3, 1): 2.5, (2e-3, 2): 2.2, (2e-3, 3): 2.4}
    row = best_of((1e-3, 2e-3, 4e-3), lambda rate, seed: {"loss": losses[rate, seed], "accuracy": 0.5})
    assert row["rate"] == 2e-3 and [run["loss"] for run in row["tried"]] == [3.0, 2.0, 2.5]
    assert [run["seed"] for run in row["runs"]] == [1, 2, 3] and row["loss"]["mean"] == pytest.approx(2.2)
    assert row["loss"]["std"] == pytest.approx(0.2) and row["accuracy"]["std"] == 0


@pytest.mark.parametrize("cpu,ranks", [(True, 1), (True, 2), (False, 1)])
def test_the_micro_batches_of_every_device_divide_the_recipes(cpu, ranks):
    config = json.loads((ROOT / "ds_configs" / f"{deepspeed_config(cpu)}.json").read_text())
    for recipe in {*(variant.recipe for variant in first_comparison.VARIANTS), "continued"}:
        train = load_recipe(ROOT / "recipes" / f"demo_{recipe}.yaml", []).train
        assert train.global_batch == BATCH
        assert BATCH % (config["train_micro_batch_size_per_gpu"] * ranks) == 0


@pytest.mark.parametrize("variant", first_comparison.VARIANTS, ids=lambda v: v.name)
def test_every_variant_is_a_recipe_of_three_rates_that_differs_in_what_its_name_says(variant):
    assert len(set(variant.rates)) == 3
    options = [option.format(rate="0.01") for option in variant.options]
    recipe = load_recipe(ROOT / "recipes" / f"demo_{variant.recipe}.yaml", options)
    assert recipe.train.lr == 0.01
    if recipe.method == "wid":
        assert recipe.train.compactor_lr == (0.0 if variant.name == "slice" else 1e-3)
        assert recipe.compaction.decay == ("penalty" if "penalty" in variant.name else "anneal")
        assert recipe.compaction.selection == ("norm" if "norm" in variant.name else "taylor")
    # All see the same tokens and end with the same shape.
    student = load_recipe(ROOT / "recipes" / "demo_student.yaml", [])
    assert recipe.target.hidden == student.target.hidden and recipe.target.head_size == student.target.head_size
    assert recipe.data.seq_len == student.data.seq_len and recipe.train.global_batch == student.train.global_batch


def test_the_table_shows_mean_deviation_and_glue():
    glue = {"sst2": {"data": "full", "accuracy": {"mean": 0.8123, "std": 0.004, "seeds": {}}}}
    rows = {
        "teacher": {"loss": {"mean": 3.0, "std": 0.0}, "accuracy": {"mean": 0.4, "std": 0.0}, "glue": glue},
        "slice": {"rate": 1e-3, "loss": {"mean": 3.5, "std": 0.01}, "accuracy": {"mean": 0.3, "std": 0.0}},
    }
    lines = first_comparison.table(rows).splitlines()
    assert len(lines) == 4 and "0.812 ± 0.004" in lines[2] and "3.500 ± 0.010" in lines[3] and "0.001" in lines[3]


@pytest.mark.parametrize("benchmark", [first_comparison, narrowed_or_folded])
def test_the_document_shows_the_tables_of_the_results(benchmark):
    document = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    results = list((ROOT / "benchmarks" / "results").glob(f"*_{benchmark.__name__.rpartition('.')[2]}.json"))
    assert results
    for path in results:
        table = benchmark.table(json.loads(path.read_text(encoding="utf-8"))["rows"])
        assert path.name in document and table.strip() in document
