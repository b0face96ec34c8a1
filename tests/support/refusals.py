"""Commands that must end with one sentence, and recipes to make them."""

import os
from pathlib import Path

import yaml

from tests.support.runs import run_main


def rewrite(inputs: dict[str, Path], **sections: dict) -> None:
    values = yaml.safe_load(inputs["recipe"].read_text())
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    inputs["recipe"].write_text(yaml.safe_dump(values))


def refused(monkeypatch, main, arguments, code: int, *parts: str) -> None:
    """The command ends with `code` and exactly one sentence on stderr, which holds the parts."""
    found, _, err = run_main(monkeypatch, main, *arguments)
    assert_one_sentence(found, err, code, *parts)


def assert_one_sentence(found: int, err: str, code: int, *parts: str) -> None:
    assert found == code, err
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert all(part in err for part in parts), err


def clean_environment() -> dict[str, str]:
    """Without the variables that train.main set in this process."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    }
