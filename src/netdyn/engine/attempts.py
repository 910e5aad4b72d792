"""One measure after the other: where one fails the others still come; a bar shows how far things are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from netdyn._utils.distributed import Crew

T = TypeVar("T")
OnFailure = Callable[[str, Exception], None]


def raise_it(name: str, error: Exception) -> None:
    """Let a failure end the examination."""
    raise error


@dataclass(frozen=True)
class Attempts:
    """Runs one measure after the other; where one fails, on all processes alike, the others still come."""

    crew: Crew
    on_failure: OnFailure
    step: Callable[[], object]

    def __call__(self, name: str, work: Callable[[], T], instead: Callable[[], T] | None = None) -> T | None:
        """What the work gives; where it fails what comes ``instead``. If that fails too, so does everything."""
        try:
            return self.part(name, work, instead)
        finally:
            self.step()

    def part(self, name: str, work: Callable[[], T] | None, instead: Callable[[], T] | None = None) -> T | None:
        """As above, for one part of a measure among several; without work, where an earlier part failed, nothing."""
        if work is None:
            return None
        try:
            result = work()
            # Whoever failed outside of shared work is met here at the latest.
            self.crew.share(lambda: None)
            return result
        except Exception as error:
            self.crew.fail(error)
            replaced = None if instead is None else instead()
            self.on_failure(name, error)
            return replaced


@contextmanager
def progress_bar(steps: int, wanted: bool | None) -> Iterator[Callable[[], object]]:
    """A bar that appears after two seconds; tqdm's ``disable=None`` keeps it off where nobody watches."""
    bar = tqdm(total=steps, desc="netdyn", delay=2, leave=False, disable=None if wanted is None else not wanted)
    try:
        yield lambda: bar.update(1)
    finally:
        bar.close()
