"""Recorded choices that a run repeats."""

import json

import pytest

from pipeline.compaction.groups import build_groups
from pipeline.errors import UserError
from pipeline.methods.replay import load_replay
from pipeline.shapes import BertShape

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
