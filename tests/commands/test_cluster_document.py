"""docs/cluster.md: its commands are the README's, and what it names is there."""

import re

from slurm.resources import STAGES
from tests.commands.test_readme import README, commands
from tests.support import ROOT

TEXT = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def test_the_commands_are_those_of_the_readme():
    section = README.split("## On a SLURM cluster")[1].split("\n## ")[0]
    assert commands(TEXT) == commands(section) and len(re.findall(r"# [1-6]\. ", section)) == 6


def test_every_stage_and_option_is_there():
    table = TEXT.split("## What happens")[1]
    assert [stage for stage in STAGES if f"| {stage} |" not in table] == []
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "slurm").iterdir() if path.is_file())
    assert [option for option in re.findall(r"`(--[a-z_-]+)", TEXT) if option not in sources] == []


def test_every_configuration_is_there():
    named = re.findall(r"`((?:zero|demo|offload)_?\w*(?:\.json|\*))`", TEXT)
    assert len(named) > 5
    assert [name for name in named if not any(ROOT.glob(f"ds_configs/{name.removesuffix('*')}*"))] == []
