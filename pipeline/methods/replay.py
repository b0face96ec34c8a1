"""The choices of an earlier run, to be repeated."""

from pathlib import Path

import torch

from pipeline.compaction.groups import Group
from pipeline.errors import UserError
from pipeline.records import read_json_lines


def load_replay(path: str, groups: dict[str, Group], increments: int) -> dict[int, dict[str, list[int]]]:
    """The choices in a `selection.jsonl`: increment -> group -> dimensions.

    Raises:
        UserError: the file is missing or no such record, or it was recorded for other groups or increments.
    """
    if not Path(path).is_file():
        raise UserError(f"compaction.replay {path} does not exist")
    choices: dict[int, dict[str, list[int]]] = {}
    try:
        for line in read_json_lines(Path(path)):
            choices.setdefault(line["increment"], {})[line["group"]] = line["retired"]
        retired = {name: [i for choice in choices.values() for i in choice[name]] for name in groups}
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"compaction.replay {path} is no whole selection.jsonl of this teacher: {error!r}") from error
    if choices.keys() != set(range(1, increments + 1)):
        raise UserError(
            f"compaction.replay {path} records {len(choices)} increments and compaction.increments is {increments}"
        )
    for name, group in groups.items():
        if not _reaches_target(group, retired[name]):
            raise UserError(
                f"compaction.replay {path} retires {len(set(retired[name]))} of {group.size} dimensions of {name}, "
                f"which does not lead to {group.target_size}: it was recorded for another teacher, target or strategy"
            )
    return choices


def _reaches_target(group: Group, retired: list[int]) -> bool:
    """Whether retiring these leaves what the student needs: the quota of every block, in whole units."""
    if len(set(retired)) != len(retired) or any(not 0 <= index < group.size for index in retired):
        return False
    gone = torch.zeros(group.size, dtype=torch.bool)
    gone[retired] = True
    units = gone.reshape(group.blocks, -1, group.unit)
    whole = bool((units.all(-1) == units.any(-1)).all())
    return whole and bool((units.all(-1).sum(1) == group.units_to_retire).all())
