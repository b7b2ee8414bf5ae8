"""Work that runs ahead: its order, its bound, and what an early stop leaves behind."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxcyto.utils.ahead import dispatch_ahead, map_ahead


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_results_come_in_order(count):
    with ThreadPoolExecutor(4) as pool:
        assert list(map_ahead(lambda x: x * x, range(count), pool, 3)) == [
            x * x for x in range(count)
        ]
    assert list(dispatch_ahead(range(count), 3)) == list(range(count))


@pytest.mark.parametrize("mapped", [False, True])
def test_items_are_drawn_so_far_ahead_and_no_further(mapped):
    drawn = []

    def items():
        for item in range(50):
            drawn.append(item)
            yield item

    with ThreadPoolExecutor(2) as pool:
        if mapped:
            results = map_ahead(lambda item: item, items(), pool, 4)
        else:
            results = dispatch_ahead(items(), 4)
        for item in results:
            assert len(drawn) == min(50, item + 5)


def test_an_error_reaches_the_consumer_and_waiting_calls_are_canceled():
    started, release = [], threading.Event()

    def work(item: int) -> int:
        started.append(item)
        if item == 0:
            raise ValueError("item 0")
        release.wait(10)
        return item

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="item 0"):
            list(map_ahead(work, range(10), pool, 8))
        release.set()
    assert len(started) <= 2  # one may have begun while the error was on its way
