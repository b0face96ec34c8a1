"""Recipes and DeepSpeed configurations: what they mean, and one sentence for each way to get them wrong."""

import copy
import json

import pytest
import yaml
from deepspeed import DeepSpeedConfig

from pipeline.compaction.groups import build_groups
from pipeline.config import Recipe, TargetConfig, TrainConfig, load_recipe
from pipeline.engine.compaction import load_replay
from pipeline.engine.deepspeed_config import load_deepspeed_config, precision
from pipeline.errors import UserError
from pipeline.shapes import BertShape
from tests.support import ROOT
from tests.support.runs import recipe_values, write_deepspeed

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
        ("--train.dropout=1", r"train.dropout must lie in \[0, 1\)"),
        ("--train.seed=-1", "train.seed must be a whole number from 0"),
        ("--train.seed=99999999999999999999", "train.seed must be a whole number from 0"),
        ("--teacher.head_warmup_steps=-1", "teacher.head_warmup_steps must not be negative"),
        ("--data.seq_len=4", "data.seq_len must be at least 8"),
        ("--data.mask_fraction=0.01", "leaves nothing to predict"),
        ("--data.mask_fraction=1", "must lie between 0 and 1"),
        ("--data.heldout_windows=0", "data.heldout_windows must be at least 1"),
        ("--target.hidden=0", "target.hidden must be at least 1"),
        ("--target.layers=2", "target.layers is for method scratch"),
        ("--teacher.path=null", "method wid needs a teacher"),
        ("--method=scratch", "method scratch takes no teacher"),
        ("--method=continue", "method continue keeps the teacher's shape"),
        ("--train.embedding_init=ppmi", "train.embedding_init is for method scratch"),
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


# DeepSpeed's own file


def deepspeed(tmp_path, ranks: int = 1, batch: int = 4, **changes):
    path = write_deepspeed(tmp_path / "ds.json", **changes)
    return load_deepspeed_config(path, TrainConfig(global_batch=batch), ranks)


def test_batch_sizes_are_completed_from_the_recipe(tmp_path):
    config = deepspeed(tmp_path, batch=12)
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (12, 6)
    assert config.get("zero_optimization", {}).get("stage", 0) == 0 and precision(config) == "fp32"
    assert precision(deepspeed(tmp_path, bf16={"enabled": True})) == "bf16"
    assert deepspeed(tmp_path, gradient_accumulation_steps=2, train_batch_size=4)["train_batch_size"] == 4


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"train_micro_batch_size_per_gpu": "auto"}, "set train_micro_batch_size_per_gpu"),
        ({"train_micro_batch_size_per_gpu": True}, "set train_micro_batch_size_per_gpu"),
        ({"train_micro_batch_size_per_gpu": 0}, "set train_micro_batch_size_per_gpu"),
        ({"train_micro_batch_size_per_gpu": 3}, "4 is not a multiple of .* 3 x 1 ranks: 2 would do$"),
        ({"train_micro_batch_size_per_gpu": 10**18}, "4 is not a multiple of .* x 1 ranks: 4 would do$"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4, but the recipe and 1 ranks make it 2"),
        ({"train_batch_size": 32}, "train_batch_size is 32, but the recipe"),
        ({"optimizer": {"type": "Adam"}}, "optimizer belongs to the recipe"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler belongs to the recipe"),
        ({"gradient_cliping": 1.0}, "unknown key gradient_cliping; known are"),
        ({"zero_optimization": {"stage": 4}}, "stage must be 0, 1, 2 or 3, not 4"),
        ({"zero_optimization": {"stage": "2"}}, "stage must be 0, 1, 2 or 3, not '2'"),
        ({"zero_optimization": {"stage": None}}, "stage must be 0, 1, 2 or 3, not None"),
        ({"zero_optimization": 2}, "zero_optimization must be a section with keys, not 2"),
        ({"zero_optimization": {"stage": 1, "overlap_com": True}}, "DeepSpeed refuses the key overlap_com"),
        ({"zero_optimization": None}, "zero_optimization must be a section with keys, not None"),
        ({"bf16": True}, "bf16 must be a section with keys, not True"),
        ({"bf16": {"enabled": "auto"}}, "bf16.enabled must be true or false, not 'auto'"),
        ({"bf16": {"enabled": "no"}}, "bf16.enabled must be true or false, not 'no'"),
        ({"bf16": {"enabled": True, "check_grad_overflow": False}}, "check_grad_overflow must stay on"),
        ({"bf16": {"enabled": True, "check_grad_overflow": 0}}, "check_grad_overflow must be true or false, not 0"),
        ({"bf16": {"bf16_optimizer_states": False}}, "unknown key bf16.bf16_optimizer_states; known are check_grad"),
        ({"fp16": {"auto_cast": True}}, "fp16.auto_cast must be false .true is not supported., not True"),
        ({"prescale_gradients": True}, "prescale_gradients must be false"),
        ({"steps_per_print": "often"}, "steps_per_print must be a whole number from 1, not 'often'"),
        ({"fp16": {"fp16_master_weights_and_grads": False}}, "unknown key fp16.fp16_master_weights_and_grads"),
        ({"fp16": {"initial_scale_power": 2000}}, "initial_scale_power must be a whole number from 0 to 32, not 2000"),
        ({"fp16": {"loss_scale": 10**400}}, "fp16.loss_scale must be a number from 0, not 1000"),
        ({"fp16": {"loss_scale": float("inf")}}, "fp16.loss_scale must be a number from 0, not inf"),
        ({"fp16": {"loss_scale_window": 0}}, "fp16.loss_scale_window must be a whole number from 1, not 0"),
        ({"fp16": {"hysteresis": -1}}, "fp16.hysteresis must be a whole number from 1, not -1"),
        ({"fp16": {"enabled": True}}, "fp16 does not run on this machine's cpu"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "cannot be simultaneously enabled"),
        ({"gradient_clipping": "x"}, "gradient_clipping must be a number from 0, not 'x'"),
        ({"gradient_clipping": -1}, "gradient_clipping must be a number from 0, not -1"),
        ({"gradient_clipping": None}, "gradient_clipping must be a number from 0, not None"),
        ({"gradient_clipping": True}, "gradient_clipping must be a number from 0, not True"),
        ({"gradient_clipping": float("nan")}, "gradient_clipping must be a number from 0, not nan"),
        ({"communication_data_type": 16}, "communication_data_type must be fp32, bf16 or fp16, not 16"),
        ({"communication_data_type": "int8"}, "communication_data_type must be fp32, bf16 or fp16, not 'int8'"),
        ({"wall_clock_breakdown": "yes"}, "wall_clock_breakdown must be true or false, not 'yes'"),
        ({"flops_profiler": {"foo": 1}}, "unknown key flops_profiler.foo; known are detailed, enabled, profile_step"),
        ({"flops_profiler": {"profile_step": "2"}}, "profile_step must be a whole number from 1, not '2'"),
        ({"train_batch_size": 4.0}, "train_batch_size is 4.0, but the recipe"),
        ({"gradient_accumulation_steps": True}, "gradient_accumulation_steps is True, but the recipe"),
        ({"zero_optimization.stage": 2}, "unknown key zero_optimization.stage; known are bf16, "),
    ],
)
def test_deepspeed_configurations_that_cannot_run(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as refused:
        deepspeed(tmp_path, **changes)
    assert str(tmp_path / "ds.json") in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "key",
    [
        "activation_checkpointing",
        "comms_logger",
        "compression_training",
        "data_efficiency",
        "dump_state",
        "gradient_predivide_factor",
        "timers",
    ],
)
def test_sections_of_deepspeed_that_do_nothing_here_are_unknown(tmp_path, key):
    for value in ({}, {"enabled": True}, True, "yes", 0):
        with pytest.raises(UserError, match=f"unknown key {key}; known are bf16, "):
            deepspeed(tmp_path, **{key: value})


@pytest.mark.parametrize(
    "stage,key,value,message",
    [
        (1, "reduce_bucket_size", "big", "reduce_bucket_size must be a whole number from 1, not 'big'"),
        (1, "allgather_bucket_size", 0, "allgather_bucket_size must be a whole number from 1, not 0"),
        (1, "reduce_bucket_size", 2.5, "reduce_bucket_size must be a whole number from 1, not 2.5"),
        (1, "overlap_comm", "auto", "overlap_comm must be true or false, not 'auto'"),
        (1, "compute_grad_norm", False, "compute_grad_norm must stay on"),
        (1, "compute_grad_norm", 0, "compute_grad_norm must be true or false, not 0"),
        (3, "mics_shard_size", 2, "DeepSpeed refuses .*: MiCS ZeRO-3 sharding has been removed"),
        (3, "zero_quantized_weights", True, "unknown key zero_optimization.zero_quantized_weights; known are allg"),
        (3, "zero_quantized_nontrainable_weights", True, "unknown key"),
        (3, "zero_quantized_gradients", True, "unknown key"),
        (2, "zero_hpz_partition_size", 2, "unknown key"),
        (2, "round_robin_gradients", True, "must be false"),
        (2, "zenflow", {"topk_ratio": 0.1}, "unknown key"),
        (1, "legacy_stage1", True, "unknown key"),
        (1, "cpu_offload", True, "unknown key"),
        (3, "leaf_module", {"classes": ["Linear"]}, "unknown key"),
        (3, "prefetch_bucket_size", 1, "unknown key"),
        (2, "stage3_prefetch_bucket_size", 5, "stage3_prefetch_bucket_size needs stage 3$"),
        (2, "sub_group_size", 5, "sub_group_size needs stage 3$"),
        (2, "offload_param", {"device": "cpu"}, "offload_param needs stage 3$"),
        (0, "offload_optimizer", {"device": "cpu"}, "offload_optimizer needs stage 1 or more$"),
        (1, "offload_optimizer", None, "offload_optimizer must be a section with keys, not None"),
        (1, "offload_optimizer", {"device": "auto"}, "offload_optimizer.device must be cpu or none .*, not 'auto'"),
        (3, "offload_param", {"device": "nvme"}, r"must be cpu or none \(offloading to nvme is not supported\), not"),
        (
            3,
            "offload_optimizer",
            {"device": "cpu", "ratio": 0.5},
            "unknown key zero_optimization.offload_optimizer.ratio",
        ),
        (3, "offload_optimizer", {"device": "cpu", "super_offload": True}, "unknown key .*; known are device, pin_mem"),
    ],
)
def test_zero_keys_that_this_trainer_does_not_keep_its_promises_under(tmp_path, stage, key, value, message):
    with pytest.raises(UserError, match=message) as refused:
        deepspeed(tmp_path, zero_optimization={"stage": stage, key: value})
    assert key in str(refused.value) and "\n" not in str(refused.value)


def test_zero_keys_that_change_speed_and_memory_alone(tmp_path):
    """Also with sizes as DeepSpeed's documentation writes them."""
    speed = {"overlap_comm": True, "contiguous_gradients": False, "reduce_scatter": False, "reduce_bucket_size": 5e8}
    memory = {"stage3_max_live_parameters": 1e9, "stage3_prefetch_bucket_size": 0, "sub_group_size": 1e9}
    for stage, keys in ((1, speed), (2, speed), (3, speed | memory)):
        config = deepspeed(tmp_path, zero_optimization={"stage": stage, **keys})
        assert config["zero_optimization"] == {"stage": stage, **keys}


def test_what_stands_in_most_examples_is_taken(tmp_path):
    """And changes nothing."""
    zero = {"stage": 3, "allgather_partitions": True, "allgather_bucket_size": 2e8, "overlap_comm": True}
    zero |= {"reduce_scatter": True, "reduce_bucket_size": 2e8, "contiguous_gradients": True}
    zero |= {"stage3_gather_16bit_weights_on_model_save": True, "round_robin_gradients": False}
    changes = {"zero_optimization": zero, "steps_per_print": 2000, "wall_clock_breakdown": False}
    changes |= {"gradient_clipping": 1.0, "prescale_gradients": False}
    changes |= {"fp16": {"enabled": False, "auto_cast": False, "loss_scale": 0, "min_loss_scale": 1}}
    config = deepspeed(tmp_path, **changes, bf16={"enabled": True})
    assert precision(config) == "bf16" and config.items() >= changes.items()


def test_deepspeed_does_not_wait_for_the_device_to_measure_throughput(tmp_path):
    """Its timer would, in every forward pass and step. DeepSpeed ignores the key if it is not what it reads."""
    config = deepspeed(tmp_path)
    assert DeepSpeedConfig(config).timers_config.enabled is False
    del config["timers"]
    assert DeepSpeedConfig(config).timers_config.enabled is True


def test_compiling_is_refused_where_it_does_not_work(tmp_path, monkeypatch):
    wanted = TrainConfig(global_batch=4, compile=True)
    path = write_deepspeed(tmp_path / "ds.json", zero_optimization={"stage": 3})
    with pytest.raises(UserError, match=r"does not go with ZeRO stage 3, .*; use stage 0, 1 or 2$"):
        load_deepspeed_config(path, wanted, 1)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"^train\.compile needs a C\+\+ compiler"):
        load_deepspeed_config(write_deepspeed(tmp_path / "ds.json"), wanted, 1)


def test_a_global_batch_that_no_micro_batch_fits_gets_no_advice(tmp_path):
    path = write_deepspeed(tmp_path / "ds.json")
    with pytest.raises(UserError, match=r"4 is not a multiple of .* 2 x 3 ranks$"):
        load_deepspeed_config(path, TrainConfig(global_batch=4), 3)


@pytest.mark.parametrize(
    "content,message",
    [
        (b"{", "is no JSON: line 1"),
        (b"[]", "must be a JSON object"),
        (b"\xff", "no UTF-8"),
        (b'{"bf16": {"enabled": true, "enabled": false}}', "enabled is there twice in one section"),
    ],
)
def test_files_that_are_no_deepspeed_configuration(tmp_path, content, message):
    (tmp_path / "ds.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_deepspeed_config(tmp_path / "ds.json", TrainConfig(), 1)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_deepspeed_config(tmp_path / "missing.json", TrainConfig(), 1)


@pytest.mark.parametrize("path", sorted(ROOT.glob("ds_configs/*.json")), ids=lambda path: path.stem)
def test_shipped_deepspeed_configurations_say_what_their_names_say(tmp_path, path):
    content = json.loads(path.read_text())
    if path.stem.startswith("zero"):
        stage, kind = path.stem.removeprefix("zero").split("_")
        assert (content["zero_optimization"]["stage"], precision(content)) == (int(stage), kind)
    if precision(content) == "fp16":
        return
    if path.stem.startswith("demo"):
        load_deepspeed_config(path, load_recipe(ROOT / "recipes" / "demo_student.yaml", []).train, 1)
        return
    # As few compositions as eight ranks allow: one micro-batch each, and eight on one rank alone.
    assert load_deepspeed_config(path, TrainConfig(), 1)["gradient_accumulation_steps"] == 8


# Replay of recorded choices

TEACHER = BertShape(1, 24, 3, 96, 61)
GROUPS = build_groups(TEACHER, BertShape(1, 12, 3, 48, 61), "dim")


def record(groups=GROUPS, increments: int = 2) -> list[dict]:
    """The first dimensions of each block, in equal parts per increment."""
    lines = []
    for increment in range(1, increments + 1):
        for name, group in groups.items():
            block, lost = group.size // group.blocks, group.units_to_retire * group.unit
            part = range(lost * (increment - 1) // increments, lost * increment // increments)
            retired = [b * block + i for b in range(group.blocks) for i in part]
            lines.append({"step": increment, "increment": increment, "group": name, "retired": retired, "scores": []})
    return lines


def write_record(path, lines) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_recorded_choices_are_read_back(tmp_path):
    choices = load_replay(write_record(tmp_path / "s.jsonl", record()), GROUPS, 2)
    assert choices[1]["attention.0"] == [0, 1, 8, 9, 16, 17] and choices[2]["attention.0"] == [2, 3, 10, 11, 18, 19]


def test_records_that_do_not_lead_to_this_target_are_refused(tmp_path):
    path = tmp_path / "s.jsonl"
    with pytest.raises(UserError, match="does not exist"):
        load_replay(str(path), GROUPS, 2)
    with pytest.raises(UserError, match=r"records 2 increments and compaction\.increments is 3"):
        load_replay(write_record(path, record()), GROUPS, 3)
    with pytest.raises(UserError, match="records 1 increments"):
        load_replay(write_record(path, record()[:3]), GROUPS, 2)
    wider = build_groups(TEACHER, BertShape(1, 15, 3, 48, 61), "dim")
    with pytest.raises(UserError, match="retires 12 of 24 dimensions of residual, which does not lead to 15"):
        load_replay(write_record(path, record()), wider, 2)
    deeper = build_groups(BertShape(2, 24, 3, 96, 61), BertShape(2, 12, 3, 48, 61), "dim")
    with pytest.raises(UserError, match=r"no whole selection\.jsonl of this teacher"):
        load_replay(write_record(path, record()), deeper, 2)
    for content in ("3\n", '{"step": 1}\n', '{"increment": 1, "group": "residual", "retired": 5}\n'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"no whole selection\.jsonl"):
            load_replay(str(path), GROUPS, 2)


def test_whole_heads_recorded_under_the_other_strategy_are_refused(tmp_path):
    """The same number of dimensions, but not the same number in each head."""
    teacher = BertShape(1, 32, 4, 128, 61)
    dim = build_groups(teacher, BertShape(1, 16, 4, 64, 61), "dim")
    head = build_groups(teacher, BertShape(1, 16, 2, 64, 61), "head")
    for recorded, wanted in ((head, dim), (dim, head)):
        path = write_record(tmp_path / "s.jsonl", record(recorded, 1))
        load_replay(path, recorded, 1)
        with pytest.raises(UserError, match=r"attention\.0.*another teacher, target or strategy"):
            load_replay(path, wanted, 1)
