"""Micro-batches read ahead by a thread and by a process: the same ones, and a clean end of either side."""

import os
import pickle
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.data import ahead
from pipeline.data.ahead import ProcessReader, ThreadReader, collate, read_ahead
from pipeline.data.loader import Masking, Share, TrainingData, micro_batches
from pipeline.data.slots import SLOTS
from pipeline.errors import EXIT_HUNG, DataError, LostError
from tests.support import ROOT
from tests.support.windows import documents, open_source

SHARE = Share(24, 6, rank=1, ranks=2)
SEQ_LEN = 16


@pytest.fixture
def data(tmp_path) -> TrainingData:
    sources = [
        open_source(tmp_path / name, {"a": documents(i), "b": documents(i + 5)}, SEQ_LEN) for i, name in enumerate("xy")
    ]
    return TrainingData(sources, [3, 1], Masking(seed=4))


def ended(pid: int) -> bool:
    """Whether there is no such process any more, or its parent alone still asks for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_what_is_read_ahead_is_what_is_to_be_read(data, kind):
    """More than there are slots, taken at once and with pauses, from two steps on."""
    for first_step, with_documents in ((0, True), (300_000, False)):
        expected = micro_batches(data, first_step, SHARE)
        names = {"input_ids", "positions", "labels"} | ({"documents"} if with_documents else set())
        with read_ahead(data, first_step, SHARE, with_documents, kind) as batches:
            for number, (batch, plain) in enumerate(zip(islice(batches, 5 * SLOTS), expected, strict=False)):
                assert batch.keys() == names
                for name, tensor in batch.items():
                    assert tensor.dtype == torch.int64 and tensor.tolist() == getattr(plain, name).tolist()
                    assert tensor.is_pinned() == torch.cuda.is_available()
                if number == 2 * SLOTS:
                    time.sleep(0.1)  # the reader fills what it may, and no slot more
                    assert batch["labels"].tolist() == plain.labels.tolist()


def test_a_gpu_is_fed_by_a_process_and_a_cpu_by_a_thread(data, monkeypatch):
    for gpu, expected in ((False, ThreadReader), (True, ProcessReader)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        monkeypatch.setattr(ProcessReader, "_pin", lambda self: False)
        with read_ahead(data, 0, SHARE, False) as batches:
            assert type(batches) is expected


def test_the_process_is_light_and_leaves_nothing(data):
    before = sorted(os.listdir("/proc/self/fd"))
    with ProcessReader(data, 0, SHARE, False) as batches:
        next(batches)
        process = batches._process
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
        assert "numpy" in mapped and "torch" not in mapped
        assert "/memfd:micro-batches (deleted)" in mapped  # no name under /dev/shm that could stay
    assert process.returncode == -signal.SIGKILL and ended(process.pid)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_signals_to_every_process_of_a_job_are_for_the_rank(data):
    """At any moment, also before the process has come to its first line."""
    handler = signal.getsignal(signal.SIGTERM)
    with ProcessReader(data, 0, SHARE, False) as batches:
        for moment in ("at once", "while it reads"):
            for number in (
                signal.SIGINT,
                signal.SIGTERM,
                signal.SIGHUP,
                signal.SIGQUIT,
                signal.SIGUSR1,
                signal.SIGUSR2,
            ):
                os.kill(batches._process.pid, number)
            assert len([next(batches) for _ in range(2 * SLOTS)]) == 2 * SLOTS, moment
    # The rank's own are what they were.
    assert signal.getsignal(signal.SIGTERM) is handler and not signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_damage_is_said_in_its_turn(tmp_path, kind):
    """What was read before is handed out first, whoever is ahead; and the sentence is one and the same."""
    source = open_source(tmp_path, {"a": documents(1), "b": documents(2)}, SEQ_LEN)
    data = TrainingData([source], [1], Masking(seed=4))
    _, _, windows = data.locate(np.arange(60, 66))
    good = set(data.locate(np.arange(60))[2].tolist())
    bad = next(window for window in windows.tolist() if window not in good)
    with open(tmp_path / "a.bin", "r+b") as stream:
        position = bad * (SEQ_LEN - 2)
        stream.seek(2 * (position - sum(np.cumsum([len(d) + 1 for d in documents(1)]) <= position)))
        stream.write(b"\xff\xff" * (SEQ_LEN - 2))
    data = pickle.loads(pickle.dumps(data))  # opened anew, as the file is now
    with read_ahead(data, 0, Share(6, 6, 0, 1), False, kind) as batches:
        for _ in range(10):
            next(batches)
        for _ in range(2):  # and again, if it is asked again
            with pytest.raises(
                DataError, match=r"a\.bin: byte \d+: expected a token id below the vocabulary size 1000"
            ):
                next(batches)


def test_a_defect_of_the_reader_keeps_its_traceback(data):
    data = TrainingData(data.sources, [3, 1], masking=Masking(seed="no number"))
    sentence = r"(?s)^the reader process failed:\nTraceback .*in hash_bits"
    with ProcessReader(data, 0, SHARE, False) as batches, pytest.raises(RuntimeError, match=sentence):
        next(batches)


def test_a_reader_that_is_killed_is_told_in_one_sentence(data):
    with ProcessReader(data, 0, SHARE, False) as batches:
        next(batches)
        wait_for(lambda: batches._listen() or batches._ready >= SLOTS - 1)
        os.kill(batches._process.pid, signal.SIGKILL)
        for _ in range(SLOTS - 1):  # what it had read is as good as ever
            next(batches)
        with pytest.raises(LostError) as lost:
            next(batches)
    assert lost.value.exit_code == EXIT_HUNG and "\n" not in str(lost.value)
    assert "the reader process of rank 1 is lost (SIGKILL): the machine may have run out of memory" in str(lost.value)


def test_a_shard_that_is_cut_short_while_it_is_read_ends_the_reader_alone(data):
    with ProcessReader(data, 0, SHARE, False) as batches:
        next(batches)
        for path in data.sources[0].directory.glob("*.bin"):
            os.truncate(path, 0)
        with pytest.raises(LostError, match=r"lost \(SIGBUS\): a shard may have been cut short"):
            for _ in range(100):
                next(batches)


def test_a_reader_that_cannot_be_started_is_told_with_the_first_micro_batch(data, monkeypatch):
    def no_memory(name):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "memfd_create", no_memory)
    sentence = r"^rank 1 cannot start its reader process: Cannot allocate memory; set data\.reader to thread$"
    with ProcessReader(data, 0, SHARE, False) as batches, pytest.raises(LostError, match=sentence):
        next(batches)


RANK = """
import pickle, sys, time
sys.path[0] = sys.argv[1]
from pipeline.data.ahead import ProcessReader
job = pickle.load(open(sys.argv[2], "rb"))
reading, starting = ProcessReader(*job, False), None
next(reading)
starting = ProcessReader(*job, False)
print(reading._process.pid, starting._process.pid, flush=True)
if sys.argv[3] == "interrupted":
    raise KeyboardInterrupt
time.sleep(600)
"""


@pytest.mark.parametrize("end", ["killed", "interrupted"])
def test_no_reader_outlives_its_rank(data, tmp_path, end):
    """One that reads and one that only starts; with nobody left to close them."""
    (tmp_path / "job").write_bytes(pickle.dumps((data, 0, SHARE)))
    command = [sys.executable, "-c", RANK, str(ROOT), str(tmp_path / "job"), end]
    rank = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    readers = [int(pid) for pid in rank.stdout.readline().split()]
    if end == "killed":
        rank.kill()
    _, said = rank.communicate(timeout=60)  # which also waits for the readers to let go of stderr
    wait_for(lambda: all(map(ended, readers)))
    assert len(readers) == 2 and "resource_tracker" not in said
    assert said.count("Traceback") == (end == "interrupted")


def test_a_slot_is_given_back_when_its_copies_are_done(data, monkeypatch):
    """Pinned memory without a GPU: events that are done when the test says so."""
    events = []

    def event():
        events.append(SimpleNamespace(done=False, record=lambda: None))
        events[-1].query = lambda own=events[-1]: own.done
        events[-1].synchronize = lambda own=events[-1]: setattr(own, "done", True)
        return events[-1]

    monkeypatch.setattr(ProcessReader, "_pin", lambda self: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", event)
    batches, plain = ProcessReader(data, 0, SHARE, False), micro_batches(data, 0, SHARE)
    held = []
    for number in range(SLOTS - 1):
        held.append((next(batches), next(plain)))
        assert len(batches._copying) == number and not any(made.done for made in events)
    time.sleep(0.2)  # for the reader, which has one slot left
    assert all(batch["labels"].tolist() == want.labels.tolist() for batch, want in held)
    next(batches)  # one too many on their way: the oldest is waited for, and it alone
    assert [made.done for made in events] == [True] + [False] * (SLOTS - 2)
    events[1].done = True
    next(batches)
    assert [made.done for made in events[:3]] == [True, True, False] and len(batches._copying) == SLOTS - 2
    batches._pinned = False  # nothing was registered
    batches.close()


def test_thread_and_process_hold_tensors_alike(data):
    batch = next(micro_batches(data, 0, SHARE))
    assert collate(batch, documents=True)["documents"].tolist() == batch.documents.tolist()
    assert list(collate(batch, documents=False)) == list(ahead.slot_shapes(data, 6, documents=False))
