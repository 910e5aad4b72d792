"""Two processes that stay: started once, in one process group, they run the jobs of all tests that need two.

To start a process, import PyTorch and Lightning in it and let it find the other one takes longer than most jobs. A job
is a function at the top of a module that both processes can import. Both call it with the same arguments, at the same
time; which of the two it runs on, ``torch.distributed`` says. Lightning, too, finds itself started from outside.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

#: After so long a process gives up waiting for the other one. No job takes as long on the busiest machine; what does is
#: a pair that has lost step, which then ends with an error that says so.
PATIENCE = timedelta(minutes=5)


class JobFailed(Exception):
    """A job did not come through.

    Attributes:
        tracebacks: Of each process, by rank; empty where the job came through.
    """

    def __init__(self, tracebacks: list[str]) -> None:
        told = [f"on process {rank}:\n{text}" for rank, text in enumerate(tracebacks) if text]
        super().__init__("the job failed " + "\n".join(told))
        self.tracebacks = tracebacks


class Pair:
    """Two processes that run jobs together; they start with the first job.

    A job that fails ends its process, as an error would end a script: the other one, where it waits for it, fails as
    well and at once. So the pair is gone after that, and the next job starts a fresh one. A job that leaves the two
    out of step without failing is followed by :meth:`close`.

    Args:
        folder: A folder in which the processes find each other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.starts = folder, 0
        self.processes: list[Any] = []
        self.ends: list[Connection] = []

    def run(self, job: Callable[..., Any], *given: Any, **options: Any) -> list[Any]:
        """What the job returns on each process, by rank."""
        try:
            if not self.processes:
                self._start()
            message = pickle.dumps((job, given, options))
            for end in self.ends:
                end.send_bytes(message)
            results, tracebacks = zip(*(self._answer(rank) for rank in range(2)), strict=True)
            if any(tracebacks):
                raise JobFailed(list(tracebacks))
        except BaseException:
            # Also where a test is interrupted: an answer that was not waited for must not be the next job's.
            self.close()
            raise
        return list(results)

    def close(self) -> None:
        """End both processes, whatever they do; the next job starts a fresh pair."""
        for process, end in zip(self.processes, self.ends, strict=True):
            process.kill()
            process.join()
            end.close()
        self.processes, self.ends = [], []

    def _start(self) -> None:
        self.starts += 1
        # Spawned: a fork would take along what the tests have done to their own process.
        context = multiprocessing.get_context("spawn")
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, theirs, self.folder / f"{self.starts}"), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.ends.append(ours)

    def _answer(self, rank: int) -> tuple[Any, str]:
        try:
            return pickle.loads(self.ends[rank].recv_bytes())
        except EOFError:
            self.processes[rank].join()
            return None, f"the process ended with exit code {self.processes[rank].exitcode}"


def serve(rank: int, end: Connection, meeting: Path) -> None:
    """Be one process of a pair: run what comes in, and answer with what it returns or its traceback."""
    # Ctrl-C in a terminal is sent to this process too. It ends with the tests, however they end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}  # by these Lightning knows that it need start nothing
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=PATIENCE)
    while True:
        message = end.recv_bytes()
        try:
            job, given, options = pickle.loads(message)
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002
            random.seed(0)
            # Pickled here by value: the pipe's own way would share the memory of tensors with a process that may end.
            answer = pickle.dumps((job(*given, **options), ""))
        except BaseException:
            end.send_bytes(pickle.dumps((None, traceback.format_exc())))
            # Without any further word to the other process, which may be waiting for one.
            os._exit(1)
        end.send_bytes(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
