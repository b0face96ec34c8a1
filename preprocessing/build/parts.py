"""Parts of a build: the first pass of every N-th task, on any machine, without a word to the others.

A merge then does what is left, on all tasks. `--part 2/4` reads the tasks 1, 5, 9 and so on, counted from 0.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Part `number`, from 1, of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, task: int) -> bool:
        """Whether the task is of this part."""
        return part_number(task, self.count) == self.number


def part_number(task: int, count: int) -> int:
    """Which of `count` parts a task is of, from 1."""
    return task % count + 1


def part_option(text: str) -> Part:
    """Type of the argparse option I/N."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with whole numbers, I from 1 to N, as in 1/4 to 4/4")
    return Part(int(number), int(count))


def listed_numbers(numbers: Iterable[int]) -> str:
    """Whole numbers as a job array takes them: 1-3,7."""
    runs = list[list[int]]()
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
