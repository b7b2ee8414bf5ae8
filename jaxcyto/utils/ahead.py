"""Run work ahead of its consumer: reads in threads, and programs on devices."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any


def map_ahead[Item, Result](
    function: Callable[[Item], Result], items: Iterable[Item], pool: Executor, ahead: int
) -> Iterator[Result]:
    """Yield `function(item)` for each item in order, while the pool works on the next items.

    Unlike `Executor.map`, this holds at most `ahead` results, so its memory is bounded. Calls that
    have not started are canceled when the consumer stops early.

    Args:
        function: called in the pool.
        items: drawn in this thread, `ahead` items before their result is yielded.
        pool: the threads.
        ahead: number of calls in the pool beside the one that is yielded.
    """
    pending: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def dispatch_ahead(dispatched: Iterable[Any], ahead: int) -> Iterator[Any]:
    """Yield items in order, each after `ahead` further ones were drawn.

    JAX returns from a call before the device has computed its result. If drawing an item dispatches
    a program, the device works on `ahead` programs while the consumer waits for an earlier one.
    """
    pending: collections.deque[Any] = collections.deque()
    for item in dispatched:
        pending.append(item)
        if len(pending) > ahead:
            yield pending.popleft()
    yield from pending
