"""DeepSpeed configurations: what may stand in them, and one sentence for each way to get them wrong."""

import json

import pytest
from deepspeed import DeepSpeedConfig

from pipeline.config import TrainConfig
from pipeline.engine.deepspeed_config import load_deepspeed_config, precision
from pipeline.errors import UserError
from pipeline.recipe import load_recipe
from tests.support import ROOT
from tests.support.runs import write_deepspeed


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
@pytest.mark.usefixtures("no_fp16")
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
