"""Errors that one rank meets alone, raised by all of them together.

Where one rank gives up, the others wait for it in the next collective. So it keeps its error, goes on until the ranks
agree, and then all raise it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.engine.distributed import World
from pipeline.errors import UserError


class Faults:
    """The first error that this rank has met since the run began."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._own: UserError | None = None

    @property
    def met(self) -> bool:
        """Whether this rank has met one."""
        return self._own is not None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep an error instead of raising it."""
        try:
            yield
        except UserError as error:
            self._own = self._own or error

    def raise_own(self) -> None:
        """Raise what this rank has met, if anything: for where errors reach the other ranks anyway."""
        if self._own is not None:
            raise self._own

    def raise_together(self) -> None:
        """Raise what any rank has met. All ranks must call."""
        self._world.on_all(self.raise_own)
