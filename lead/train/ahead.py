"""Looking ahead: what the next steps need is made in a thread beside the step that is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Generic, TypeVar

T = TypeVar("T")


class LookAhead(Generic[T]):
    """The values of a function of the step, in order, made by one thread at most `size` steps ahead.

    Use it as a context: at its end no thread is left, whatever ended it. Memory: `size` values.
    """

    def __init__(self, make: Callable[[int], T], steps: range, size: int = 2) -> None:
        """`make` runs in the thread, for one step after the other."""
        self._make = make
        self._steps: Iterator[int] = iter(steps)
        self._worker = futures.ThreadPoolExecutor(1, "look-ahead")
        self._waiting: deque[futures.Future[T]] = deque()
        for _ in range(size):
            self._submit()

    def _submit(self) -> None:
        step = next(self._steps, None)
        if step is not None:
            self._waiting.append(self._worker.submit(self._make, step))

    def take(self) -> T:
        """The next value. Raises what `make` has raised for it, as it was raised."""
        value = self._waiting.popleft().result()
        self._submit()
        return value

    def settle(self) -> None:
        """Wait until the thread has nothing to do: until the next `take` nothing is shared with it."""
        futures.wait(self._waiting)

    def __enter__(self) -> LookAhead[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)
