"""Recipes: what they mean, and one sentence for each way to get them wrong."""

import copy

import pytest
import yaml

from pipeline.config import TargetConfig, TrainConfig
from pipeline.errors import UserError
from pipeline.recipe import Recipe, load_recipe
from tests.support import ROOT
from tests.support.runs import recipe_values

BASIC = recipe_values(ROOT / "shards", ROOT / "teacher")


def load(tmp_path, content=None, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content or BASIC))
    return load_recipe(path, list(overrides))


def changed(section: str, **values) -> dict:
    content = copy.deepcopy(BASIC)
    content[section] = {**content.get(section, {}), **values}
    return content


def test_defaults_are_the_published_recipe(tmp_path):
    recipe = load(tmp_path, {"teacher": {"path": "bert-base-uncased"}, "data": {"shards": "x"}})
    train, compaction = recipe.train, recipe.compaction
    assert recipe.method == "wid" and recipe.data.seq_len == 128 and recipe.data.mask_fraction == 0.15
    assert (train.steps, train.global_batch, train.lr, train.compactor_lr) == (400_000, 960, 1e-6, 5e-5)
    assert (train.warmup, train.weight_decay, train.dropout) == (0.01, 0.01, 0.1)
    assert (compaction.increments, compaction.interval_steps) == (16, 500)


def test_overrides_of_both_forms_win_over_the_file_in_order(tmp_path):
    options = ["--train.steps", "9", "--train.lr=2e-5", "--train.steps=11", "--method", "wid", "--data.whole_word=true"]
    recipe = load(tmp_path, None, *options, "--target.intermediate=null", "--compaction.selection", "random")
    assert (recipe.train.steps, recipe.train.lr, recipe.data.whole_word) == (11, 2e-5, True)
    assert recipe.target.intermediate is None and recipe.compaction.selection == "random"
    assert recipe.train.global_batch == BASIC["train"]["global_batch"]
    weighted = load(tmp_path, None, "--data.shards=[{path: a, weight: 2}, {path: b, weight: 1}]").data.sources()
    assert [(str(path), weight) for path, weight in weighted] == [("a", 2.0), ("b", 1.0)]


def test_an_override_fills_a_section_that_is_absent_or_empty(tmp_path):
    for text in ("method: scratch\n", "method: scratch\ntrain:\n"):
        assert load(tmp_path, text, "--train.steps", "7").train.steps == 7


def test_a_checkpoint_after_every_twentieth_of_the_steps_is_the_default():
    assert TrainConfig(steps=400_000).checkpoint_interval == 20_000
    assert TrainConfig(steps=3).checkpoint_interval == 1
    assert TrainConfig(steps=100, checkpoint_every=40, keep_every=80).checkpoint_interval == 40
    with pytest.raises(UserError, match=r"train\.keep_every 12 is not a multiple of train\.checkpoint_every 5"):
        TrainConfig(steps=100, keep_every=12)


def test_numbers_as_yaml_reads_them(tmp_path):
    recipe = load(tmp_path, "method: scratch\ntrain: {lr: 1e-4, weight_decay: 0, dropout: '0.2', steps: 1_000}\n")
    assert recipe.train.lr == 1e-4 and recipe.train.weight_decay == 0.0 and recipe.train.dropout == 0.2
    assert type(recipe.train.weight_decay) is float and recipe.train.steps == 1000


@pytest.mark.parametrize(
    "override,message",
    [
        ("--train.setps=3", "there is no key train.setps, did you mean train.steps"),
        ("--trian.steps=3", "there is no key trian, did you mean train"),
        ("--train.zzzzz=3", "there is no key train.zzzzz; known are steps, global_batch"),
        ("--train.steps=many", "train.steps must be a whole number, not 'many'"),
        ("--train.steps=1.5", "train.steps must be a whole number"),
        ("--train.steps=true", "train.steps must be a whole number"),
        ("--train.steps=", "train.steps must be a whole number, not None"),
        ("--train.lr=fast", "train.lr must be a number"),
        ("--train.lr=true", "train.lr must be a number"),
        ("--train.lr=.nan", "train.lr must be a finite number"),
        ("--train.lr=inf", "train.lr must be a finite number"),
        ("--data.whole_word=1", "data.whole_word must be true or false"),
        ("--teacher.path=[a]", "teacher.path must be text"),
        ("--method=magic", "method must be one of wid, continue, scratch"),
        ("--compaction.decay=slow", "compaction.decay must be one of anneal, penalty"),
        ("--train=3", "train must be a section with keys, not 3"),
        ("--train=0", "train must be a section with keys, not 0"),
        ("--train.steps.more=3", "steps is no section"),
        ("--train.steps={", "--train.steps: '{' is no YAML value"),
        ("--train.steps", "--train.steps needs a value"),
        ("train.steps=3", "unexpected argument 'train.steps=3'"),
        ("--train.steps=0", "train.steps must be at least 1"),
        ("--train.lr=-1", "train.lr must not be negative"),
        ("--train.cuda_graph=on", "train.cuda_graph must be one of auto, off, not True"),
        ("--train.dropout=1", r"train.dropout must lie in \[0, 1\)"),
        ("--train.seed=-1", "train.seed must be a whole number from 0"),
        ("--train.seed=99999999999999999999", "train.seed must be a whole number from 0"),
        ("--teacher.head_warmup_steps=-1", "teacher.head_warmup_steps must not be negative"),
        ("--data.seq_len=4", "data.seq_len must be at least 8"),
        ("--data.mask_fraction=0.01", "leaves nothing to predict"),
        ("--data.mask_fraction=1", "must lie between 0 and 1"),
        ("--data.heldout_windows=0", "data.heldout_windows must be at least 1"),
        ("--target.hidden=0", "target.hidden must be at least 1"),
        ("--target.layers=2", "target.layers is for a new BERT"),
        ("--teacher.path=null", "method wid needs a teacher"),
        ("--method=scratch", "method scratch takes no teacher"),
        ("--method=continue", "method continue keeps the teacher's shape"),
        ("--train.embedding_init=ppmi", "train.embedding_init is for a new BERT"),
        ("--compaction.increments=9", "narrowing schedule ends at step 10, after train.steps 4"),
        ("--compaction.start_step=0", "taylor needs statistics first"),
        ("--compaction.start_step=-1", "must not be negative"),
        ("--compaction.decay_steps=0", "compaction.decay_steps must be at least 1"),
    ],
)
def test_wrong_keys_types_and_combinations_are_one_sentence(tmp_path, override, message):
    with pytest.raises(UserError, match=message) as refused:
        load(tmp_path, None, override)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("written", ["off", "'off'", "false"])
def test_off_is_a_word_and_no_truth(tmp_path, written):
    """YAML reads it as false, and writes the word in quotation marks."""
    recipe = load(tmp_path, None, f"--train.cuda_graph={written}")
    assert recipe.train.cuda_graph == "off" and load(tmp_path, None).train.cuda_graph == "auto"
    assert yaml.safe_load(yaml.safe_dump(recipe.to_dict()))["train"]["cuda_graph"] == "off"


@pytest.mark.parametrize(
    "content,message",
    [
        (b"- a\n- b\n", "must hold sections"),
        (b"train: {steps: [\n", "is no YAML"),
        (b"\xff\xfe\x00", "byte 0 is no UTF-8 text"),
        (b"1: 2\n", "there is no key 1"),
        (None, "cannot be read: No such file"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        load_recipe(path, [])
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path, [])


@pytest.mark.parametrize(
    "shards",
    [5, [], {"path": "a"}, [{"path": "a"}], [{"path": "a", "weight": 0}], ["a"], [{"path": "a", "weight": ".nan"}]],
)
def test_data_sources_of_another_form(tmp_path, shards):
    with pytest.raises(UserError, match=r"data\.shards must be a directory or a list"):
        load(tmp_path, changed("data", shards=shards)).data.sources()


def test_a_recipe_without_data_says_so(tmp_path):
    with pytest.raises(UserError, match=r"names no data: set data\.shards"):
        load(tmp_path, "method: scratch\n").data.sources()


@pytest.mark.parametrize(
    "text,count",
    [
        ("11M", 11e6),
        ("11.5m", 11.5e6),
        ("500k", 5e5),
        (" 1B ", 1e9),
        (12345, 12345),
        ("1e6", 1e6),
        (2.5e6, 2.5e6),
        (None, None),
    ],
)
def test_parameter_counts(text, count):
    assert TargetConfig(params=text).parameter_count() == count


@pytest.mark.parametrize("text", ["many", "M", "", "-3M", 0, "11MM", "nan", "inf", "1e999", [1], "11 M B"])
def test_parameter_counts_that_are_none(text):
    with pytest.raises(UserError, match="must be a number such as 11M"):
        TargetConfig(params=text).parameter_count()


def test_a_recorded_recipe_is_read_back_as_it_was(tmp_path):
    recipe = load(
        tmp_path, None, "--train.lr=1e-7", "--target.params=11M", "--target.hidden=null", "--target.head_size=null"
    )
    assert load(tmp_path, yaml.safe_dump(recipe.to_dict())) == recipe


def test_paths_become_absolute_and_hub_names_stay(tmp_path, monkeypatch):
    """A run is resumed and folded from any working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").mkdir()
    relative = load(
        tmp_path, None, "--data.shards=s", "--data.heldout=h", "--teacher.path=teacher", "--compaction.replay=r"
    )
    recipe = relative.with_absolute_paths()
    found = recipe.data.shards, recipe.data.heldout, recipe.teacher.path, recipe.compaction.replay
    assert found == tuple(str(tmp_path / name) for name in ("s", "h", "teacher", "r"))
    assert relative.data.shards == "s"
    monkeypatch.chdir("/")
    assert recipe.with_absolute_paths() == recipe
    hub = load(
        tmp_path, None, "--teacher.path=google/bert", "--data.shards=[{path: s, weight: 1}]"
    ).with_absolute_paths()
    assert hub.teacher.path == "google/bert" and hub.data.shards == [{"path": "/s", "weight": 1.0}]


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/**/*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    fill = {"teacher.path": "teacher", "data.shards": "shards"}
    content = yaml.safe_load(path.read_text())
    needed = [key for key in fill if not (content.get(key.split(".")[0]) or {}).get(key.split(".")[1])]
    needed = [key for key in needed if key != "teacher.path" or content.get("method", "wid") == "wid"]
    recipe = load_recipe(path, [f"--{key}={fill[key]}" for key in needed])
    recipe.data.sources()
    recipe.target.parameter_count()
