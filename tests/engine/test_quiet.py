"""What transformers says by itself, every rank for itself, is kept from the start of a training."""

import pytest
from transformers.utils import logging as library_logging

from pipeline.engine import session
from pipeline.recipe import load_recipe
from tests.support.models import random_teacher
from tests.support.runs import prepare, recipe_values, vocabulary_of, write_recipe


@pytest.mark.parametrize("method", ["wid", "continue"])
def test_the_start_of_a_training_says_nothing_by_itself(tmp_path, capfd, method):
    """An encoder alone, of which transformers reports every weight of the head that is missing."""
    inputs = prepare(tmp_path)
    random_teacher(vocab=vocabulary_of(inputs["shards"])).bert.save_pretrained(inputs["teacher"])
    sections = {"teacher": {"head_warmup_steps": 1}, "target": {} if method == "wid" else None}
    values = recipe_values(inputs["shards"], inputs["teacher"], method, **sections)
    recipe = load_recipe(write_recipe(inputs["recipe"], values), [])
    library_logging.set_verbosity_warning()
    library_logging.enable_progress_bar()
    capfd.readouterr()
    found = session.prepare(recipe, inputs["deepspeed"], 1, None)
    assert found.method.head_is_new and capfd.readouterr() == ("", "")
