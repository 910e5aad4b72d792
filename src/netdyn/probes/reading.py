"""Read a data set as its loader does, in a worker process: the training's own data set does not notice."""

from __future__ import annotations

import multiprocessing
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset, default_collate

from netdyn._utils.checks import warn
from netdyn._utils.trees import tensors
from netdyn._utils.user_code import explained
from netdyn.isolation.isolated import restored, rng_restored, shadowed
from netdyn.probes.unpacking import detached_copy
from netdyn.probes.unrestorable import (
    around_methods,
    instead_of_reading,
    shared_tensors,
    warn_of_shared,
    warn_of_unrestorable,
)

T = TypeVar("T")

#: Seconds after which a worker that training itself would not use counts as stuck: a fork can inherit a held lock.
PATIENCE = 60
_END = object()


class WorkerError(RuntimeError):
    """A data set could not be read in a worker process."""


def read(loader: DataLoader[Any], chosen: Sequence[Any] | None, seed: int, use: Callable[[Iterator[Any]], T]) -> T:
    """What ``use`` makes of a data set's batches: of the ``chosen`` indices, each a batch, or of a stream (None).

    The loader itself is not iterated: this would draw random numbers, advance its generator and might reset its
    workers. Another loader reads its data set in one worker process, with its ``collate_fn`` and ``worker_init_fn``.
    Where this is not possible, a copy of the data set is read in this process.

    ``seed`` seeds the global generators where the data set is read (for random transforms).
    """
    failed: WorkerError | None = None
    options = None if runs_no_code(loader) else _worker_options(loader)
    things = {"dataset": loader.dataset, "collate_fn": loader.collate_fn}
    if options is not None:
        warn_of_shared(**things)
        try:
            with restored(*shared_tensors(**things)), tempfile.TemporaryDirectory(prefix="netdyn-") as folder:
                own = _own_loader(
                    loader,
                    loader.dataset,
                    chosen,
                    collate_fn=_ToFile(loader.collate_fn, folder),
                    worker_init_fn=partial(_begin, loader.worker_init_fn if loader.num_workers else None, seed),
                    generator=torch.Generator().manual_seed(seed),
                    num_workers=1,
                    **options,
                )
                with closing(_from_worker(own)) as batches:
                    return use(batches)
        except WorkerError as error:
            failed = error
            if "DataLoader timed out" in f"{error}":
                warn(
                    f"A worker process that should read the probe gave nothing for {PATIENCE} seconds: threads and "
                    "held locks of a data set do not go on in it. The probe is read in this process instead. "
                    f"{instead_of_reading()}"
                )
    with ExitStack() as undo:
        undo.enter_context(rng_restored())
        dataset, collate_fn = loader.dataset, loader.collate_fn
        if not runs_no_code(loader):
            warn_of_unrestorable(**things)
            undo.enter_context(restored(*around_methods(**things)))
            dataset, collate_fn = undo.enter_context(shadowed(dataset, collate_fn, quiet=True))
        _seed(seed)
        generator = torch.Generator().manual_seed(seed)
        try:
            return use(_here(_own_loader(loader, dataset, chosen, collate_fn=collate_fn, generator=generator)))
        except Exception:
            if failed is not None and loader.num_workers:
                # Training reads in workers too: the failure there is the one that counts.
                raise failed from None
            raise


def runs_no_code(loader: DataLoader[Any]) -> bool:
    """Whether reading calls no code of the user's: tensors alone, in a process as good as in another."""
    prepared = loader.num_workers and loader.worker_init_fn is not None
    return loader.collate_fn is default_collate and not prepared and _of_tensors(loader.dataset)


def _of_tensors(dataset: Any) -> bool:
    if type(dataset) is Subset:
        return _of_tensors(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(map(_of_tensors, dataset.datasets))
    return type(dataset) is TensorDataset


def _worker_options(loader: DataLoader[Any]) -> dict[str, Any] | None:
    """How to start a worker; None if there should be none."""
    if loader.num_workers:
        return {"multiprocessing_context": loader.multiprocessing_context}
    # A script that is not made for workers would run again in one that is spawned. A fork breaks CUDA, and macOS.
    forks = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    if not forks or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    return {"multiprocessing_context": "fork", "timeout": PATIENCE}


def _own_loader(loader: DataLoader[Any], dataset: Any, chosen: Sequence[Any] | None, **options: Any) -> DataLoader[Any]:
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size=loader.batch_size, drop_last=loader.drop_last, **options)
    if loader.batch_size is None and loader.batch_sampler is None:
        return DataLoader(dataset, batch_size=None, sampler=chosen, **options)
    return DataLoader(dataset, batch_sampler=chosen, **options)


def _here(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches, read in this process."""
    with explained(lambda reason: f"The data set raised {reason} {instead_of_reading()}"):
        batches = iter(loader)
    while True:
        with explained(lambda reason: f"The data set raised {reason} {instead_of_reading()}"):
            batch = next(batches, _END)
        if batch is _END:
            return
        yield batch


def _from_worker(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """The batches that a worker has left in files; the worker has ended when this ends."""
    paths: Any = None
    try:
        while True:
            try:
                with warnings.catch_warnings():
                    # That a process with several threads should not fork: PATIENCE is for this.
                    warnings.simplefilter("ignore")
                    paths = iter(loader) if paths is None else paths
                    batch = torch.load(path := next(paths), weights_only=False)
                Path(path).unlink()
            except StopIteration:
                return
            except Exception as error:
                text = f"{type(error).__name__}: {error}".strip().splitlines()[-1].rstrip(".")
                raise WorkerError(
                    f"The data set raised {text} (in a worker process). {instead_of_reading()}"
                ) from error
            yield batch
    finally:
        if paths is not None:
            paths._shutdown_workers()
            for worker in paths._workers:  # one that has not answered has only been asked to end
                worker.kill()
                worker.join()


class _ToFile:
    """Collates, and leaves the batch in a file: a large one, or one of many tensors, may not fit in shared memory."""

    def __init__(self, collate: Callable[[Any], Any], folder: str) -> None:
        self.collate, self.folder, self.number = collate, folder, 0

    def __call__(self, samples: Any) -> str:
        batch = self.collate(samples)
        strided = [tensor for tensor in tensors(batch) if tensor.layout == torch.strided]
        if any(tensor.untyped_storage().nbytes() > tensor.nbytes for tensor in strided):
            # A view would be saved with all that it is a part of.
            batch = detached_copy(batch)
        self.number += 1
        torch.save(batch, path := f"{self.folder}/{self.number}.pt")
        return path


def _begin(worker_init_fn: Callable[[int], object] | None, seed: int, worker: int) -> None:
    """What a worker does first: prepare itself as the user says, and seed as this process would have done."""
    if worker_init_fn is not None:
        worker_init_fn(worker)
    _seed(seed)


def _seed(seed: int) -> None:
    """Seed the global generators; of PyTorch's only the CPU's: not all generators of other devices are put back."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
