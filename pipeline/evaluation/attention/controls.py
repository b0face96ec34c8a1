"""The models that a student's attention is compared with besides its teacher: `--controls scratch=DIR,slice=DIR`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError, UserError
from pipeline.evaluation.attention.conditions import SCRATCH, SLICE

if TYPE_CHECKING:
    from pipeline.evaluation.attention.forward import Looker
    from pipeline.evaluation.encoder import Encoder

FOLD = "fold.json"


def parse_controls(text: str) -> dict[str, Path]:
    """The directories of `--controls`, by the name of the control.

    Raises:
        UserError: that is no list of known controls, each once.
    """
    found: dict[str, Path] = {}
    for part in filter(None, text.split(",")):
        name, _, directory = part.strip().partition("=")
        if name not in (SCRATCH, SLICE) or not directory or name in found:
            raise UserError(f"--controls '{text}': {SCRATCH}=DIR, {SLICE}=DIR or both, with a comma, were expected")
        found[name] = Path(directory)
    for name, path in found.items():
        if not path.is_dir():
            raise UserError(f"--controls {name}={path}: there is no such directory")
    return found


def rebuild_slice(directory: Path, teacher: "Encoder") -> "Looker":
    """What the student in `directory` would be if nothing had been trained.

    Raises:
        DataError: its fold.json does not say what it kept, or that is no student of this teacher.
    """
    import torch
    from transformers import BertForMaskedLM

    from pipeline.compaction.slice import slice_teacher
    from pipeline.evaluation.attention.forward import Looker

    target, strategy, kept = _read_fold(directory / FOLD)
    with torch.random.fork_rng(devices=[]):  # the library draws weights before these take their place
        whole = BertForMaskedLM(teacher.config)
        whole.bert.load_state_dict(teacher.weights)
        try:
            sliced = slice_teacher(
                whole, target["hidden"], target["heads"], target["intermediate"], strategy, kept
            ).float()
        except UserError as error:
            raise DataError(f"{directory / FOLD}: it does not fit the teacher: {error}") from error
    return Looker(sliced.config, sliced.bert.state_dict())


def _read_fold(path: Path) -> tuple[dict[str, int], Any, dict[str, list[int]]]:
    """Target, strategy and kept dimensions of a student, which need not fit each other yet."""
    try:
        details = json.loads(path.read_text(encoding="utf-8"))
        target, strategy, kept = details["target"], details["strategy"], details["kept"]
        sizes = [target[name] for name in ("hidden", "heads", "intermediate")]
        numbers = [index for group in kept.values() for index in group]
        if strategy in ("dim", "head") and min(sizes) > 0 and all(type(n) is int for n in (*sizes, *numbers)):
            return target, strategy, kept
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(f"{path}: kept, strategy and target of a WID student were expected; fold it again")
