"""What a run says of its text at the start, and of the warm-up of a new MLM head."""

import pytest

from pipeline.config import DataConfig
from pipeline.data.open import describe_text, open_training_data
from tests.support.models import random_teacher
from tests.support.runs import (
    make_shards,
    make_teacher,
    recipe_values,
    run_train_worker,
    train_command,
    vocabulary_of,
    write_deepspeed,
    write_recipe,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("text")
    return make_shards(directory / "large"), make_shards(directory / "small", words=400)


def described(samples: int, shards, **data) -> tuple[list[str], list[int]]:
    """The sentences, and the windows of each source."""
    opened, heldout, _ = open_training_data(DataConfig(shards=shards, seq_len=16, **data), seed=1)
    return describe_text(opened, heldout, samples), [source.windows for source in opened.sources]


def test_windows_epochs_and_the_share_held_out(shards):
    large, _ = shards
    said, (windows,) = described(900, str(large), heldout_windows=10)
    assert windows == 135
    assert said == [f"text {large}: 135 windows, 10 of them held out (7.4 %); the run makes 7.2 epochs"]


@pytest.mark.parametrize("samples,epochs", [(1, "0.008"), (63, "0.5"), (12_500, "100"), (12_500_000, "100,000")])
def test_epochs_of_short_and_long_runs(shards, samples, epochs):
    said, _ = described(samples, str(shards[0]), heldout_windows=10)
    assert said[0].endswith(f"; the run makes {epochs} epochs")


@pytest.mark.parametrize("held,noted", [(13, False), (14, True), (84, True)])
def test_more_than_a_tenth_held_out_is_noted(shards, held, noted):
    large, _ = shards
    said, _ = described(900, str(large), heldout_windows=held)
    note = (
        f"note: {100 * held / 135:.0f} % of {large} is held out from training: set data.heldout_windows lower, or "
        "data.heldout to another shard directory"
    )
    assert said[1:] == [note] * noted


def test_each_of_several_sources_is_described(shards):
    """The same number of windows is held out of each, which is much of the small one alone."""
    large, small = shards
    sources = [{"path": str(large), "weight": 3}, {"path": str(small), "weight": 1}]
    said, windows = described(4000, sources, heldout_windows=10)
    assert windows == [135, 42]
    assert said == [
        f"text {large} (75.0 % of the samples): 135 windows, 10 of them held out (7.4 %); the run makes 24 epochs",
        f"text {small} (25.0 % of the samples): 42 windows, 10 of them held out (23.8 %); the run makes 31 epochs",
        f"note: 24 % of {small} is held out from training: set data.heldout_windows lower, or data.heldout to another "
        "shard directory",
    ]


@pytest.mark.parametrize("wanted,measured", [(20, 20), (256, 42)])
def test_a_directory_of_held_out_text_takes_nothing_from_the_training_text(shards, wanted, measured):
    large, small = shards
    said, _ = described(1350, str(large), heldout=str(small), heldout_windows=wanted)
    assert said == [
        f"text {large}: 135 windows, none of them held out; the run makes 10 epochs",
        f"held-out text {small}: {measured} of 42 windows are measured",
    ]


def test_a_run_says_them_and_when_a_new_head_has_warmed_up(tmp_path):
    """Step 3 is logged by no run here. A teacher with a head, and a warm-up as long as the run, have no such end."""
    shards = make_shards(tmp_path / "shards")
    random_teacher(vocab=vocabulary_of(shards)).bert.save_pretrained(tmp_path / "headless")
    make_teacher(tmp_path / "whole", vocabulary_of(shards))
    deepspeed = write_deepspeed(tmp_path / "ds.json")
    warmed = {"wid": ("wid", "headless", 3), "continue": ("continue", "headless", 3)}
    warmed |= {"whole": ("continue", "whole", 3), "long": ("continue", "headless", 5)}
    commands = []
    for name, (method, teacher, steps) in warmed.items():
        recipe = recipe_values(
            shards,
            tmp_path / teacher,
            method,
            teacher={"head_warmup_steps": steps},
            target={} if method == "wid" else None,
            compaction={"start_step": 3},
            train={"steps": 5, "log_every": 100, "checkpoint_every": 100},
        )
        inputs = {"recipe": write_recipe(tmp_path / f"{name}.yaml", recipe), "deepspeed": deepspeed}
        commands.append(train_command(inputs, tmp_path / f"run_{name}"))
    said = run_train_worker(tmp_path, *commands).split("watch: tensorboard")
    assert len(said) == 5
    ends = [run.count("step 3: the new MLM head has warmed up, the whole model trains from here on\n") for run in said]
    assert ends == [0, 1, 1, 0, 0] and sum(run.count("warmed up, ") for run in said) == 2
    assert f"\ntext {shards}: 135 windows, 10 of them held out (7.4 %); the run makes 0.16 epochs\n" in said[0]
