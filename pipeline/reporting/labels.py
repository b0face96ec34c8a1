"""Where the names of points go in a chart: beside them, and over no other name, point or bar if there is room."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GAP, STEP = 8.0, 4.0
"""Between a point and its name, and between places that are tried, in points."""
WEIGHTS = {"name": 1000.0, "outside": 1000.0, "mark": 20.0, "other side": 4.0}
"""How many points of distance it is worth not to do this."""


@dataclass(frozen=True)
class Box:
    """Its corners, in points."""

    left: float
    low: float
    right: float
    high: float

    def overlaps(self, other: "Box") -> bool:
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high

    def within(self, other: "Box") -> bool:
        return (
            self.left >= other.left and self.right <= other.right and self.low >= other.low and self.high <= other.high
        )


def place(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    height: float,
    marks: Sequence[Box],
    inside: Box,
) -> list[Box]:
    """A box for the name of every point.

    Args:
        points: x and y, in points as everything here.
        widths: of the names.
        height: of all of them.
        marks: what is drawn and had better not be covered.
        inside: where they have to stay.
    """
    placed: dict[int, Box] = {}
    # From the outside in: names at the edges have fewer places to go to.
    middle = (inside.low + inside.high) / 2
    for n in sorted(range(len(points)), key=lambda n: -abs(points[n][1] - middle)):

        def cost(place: tuple[float, Box]) -> float:
            moved, box = place
            found = sum(WEIGHTS["name"] for other in placed.values() if box.overlaps(other))
            found += sum(WEIGHTS["mark"] for mark in marks if box.overlaps(mark))
            return moved + found + (0.0 if box.within(inside) else WEIGHTS["outside"])

        placed[n] = min(_places(*points[n], widths[n], height, inside), key=cost)[1]
    return [placed[n] for n in range(len(points))]


def _places(x: float, y: float, width: float, height: float, inside: Box) -> Iterator[tuple[float, Box]]:
    """Boxes that are tried for one name, each with how far from the best place it is."""
    rightward = x < (inside.left + inside.right) / 2
    for step in range(int((inside.high - inside.low) / STEP) + 1):
        for up in {step * STEP, -step * STEP}:
            for right in (True, False):
                left = x + GAP if right else x - GAP - width
                aside = 0.0 if right == rightward else WEIGHTS["other side"]
                yield step * STEP + aside, Box(left, y + up - height / 2, left + width, y + up + height / 2)
