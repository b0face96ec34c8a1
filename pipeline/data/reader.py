"""The reader process of a rank: reads and masks micro-batches into shared memory until its rank is gone.

    python pipeline/data/reader.py SOCKET MEMORY JOB      three open file descriptors, from `ahead.ProcessReader`

It imports numpy and no torch: it is there in a fifth of a second and takes little memory. Signals that reach every
process of a job are for the rank to answer, which has this process started with those held off.
"""

import pickle
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)


def main(connection: socket.socket, memory: int, job: int) -> None:
    """Fill slots until the other side of the connection is closed; say why, if that is not the reason."""
    with open(job, "rb") as stream:
        sys.path[:] = pickle.load(stream)  # the rank's own: what it imports from there lies there for the next line too
        try:
            fill_slots(connection, memory, pickle.load(stream))
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            tell(connection, error)


def fill_slots(connection: socket.socket, memory: int, job: tuple[Any, ...]) -> None:
    """Read micro-batch after micro-batch, each into the next slot as soon as that is free.

    Args:
        connection: to the rank.
        memory: file descriptor, see `slots`.
        job: training data, the first step, the rank's share, and the shapes of the arrays in a slot.
    """
    from pipeline.data.loader import micro_batches
    from pipeline.data.slots import FREE, READY, SLOTS, open_slots

    data, first_step, share, shapes = job
    slots, free = open_slots(memory, shapes), SLOTS
    for number, batch in enumerate(micro_batches(data, first_step, share)):
        if not free:
            said = connection.recv(4096)
            if not said:
                return
            free = said.count(FREE)
        for name, array in slots[number % SLOTS].items():
            array[...] = getattr(batch, name)
        connection.sendall(READY)
        free -= 1


def tell(connection: socket.socket, error: Exception) -> None:
    """Hand an error over to the rank, behind the micro-batches before it."""
    from pipeline.data.slots import FAILED
    from pipeline.errors import UserError

    known = isinstance(error, UserError)
    message = error if known else RuntimeError(f"the reader process failed:\n{traceback.format_exc()}")
    connection.sendall(FAILED + pickle.dumps(message))


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
