"""Whether a student's attention is closer to its teacher's than that of a model that never saw the teacher."""

import math
from collections.abc import Mapping

from pipeline.evaluation.attention.conditions import SCRATCH, SLICE, STUDENT, TEACHER
from pipeline.evaluation.attention.observe import NO_SPECIAL, Condition

NOISE = 2.0
"""Standard errors, over windows, that a difference must exceed."""


def no_verdict(conditions: Mapping[str, Condition]) -> str | None:
    """Why nothing can be concluded, in a sentence; None if something can."""
    if SCRATCH not in conditions:
        return "no verdict: it takes a model that was trained from scratch (--controls scratch=DIR)"
    student, scratch = conditions[STUDENT], conditions[SCRATCH]
    itself = conditions[TEACHER].by_window("js").max()
    if itself > 0:
        return f"no verdict: the teacher differs from itself by {itself:.1e} where 0 was expected"
    pairs, others = len(student.pairs[0]), len(scratch.pairs[0])
    if pairs != others:
        return f"no verdict: {pairs} pairs of heads of the student, {others} of the scratch control, are not comparable"
    if len(student.by_window("js")) < 2:
        return "no verdict: one window is too little text"
    return None


def conclude(conditions: Mapping[str, Condition]) -> str:
    """The verdict in a sentence: with and without [CLS] and [SEP] must agree, each beyond the noise."""
    differences = {metric: _difference(conditions, metric) for metric in ("js", f"js{NO_SPECIAL}")}
    beyond = {math.copysign(1, mean) if abs(mean) > NOISE * error else 0 for mean, error in differences.values()}
    words = {1: "closer to the teacher than", -1: "farther from the teacher than"}
    word = words.get(int(beyond.pop()), "not clearly apart from") if len(beyond) == 1 else "not clearly apart from"
    shown = []
    for metric, (mean, error) in differences.items():
        ours, scratch = (conditions[name].means()[metric] for name in (STUDENT, SCRATCH))
        shown.append(f"{metric} {ours:.4f} against {scratch:.4f} ({mean:+.4f} ± {error:.4f})")
    windows = len(conditions[STUDENT].by_window("js"))
    if SLICE in conditions:
        shown.append(f"the untrained slice has js {conditions[SLICE].means()['js']:.4f}")
    return f"{word} the scratch control over {windows} windows: {', '.join(shown)}"


def _difference(conditions: Mapping[str, Condition], metric: str) -> tuple[float, float]:
    """By how much the scratch control is farther from the teacher, mean and standard error over the same windows."""
    difference = conditions[SCRATCH].by_window(metric) - conditions[STUDENT].by_window(metric)
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))
