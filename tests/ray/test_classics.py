"""The three programs that everyone writes first."""

import numpy as np
import pytest
import ray

from harness import MIB, get

NODE = {"num_cpus": 2}

pytestmark = pytest.mark.usefixtures("node")


def test_squares():
    @ray.remote
    def square(x):
        return x * x

    assert get([square.remote(i) for i in range(100)]) == [i * i for i in range(100)]


def test_counter():
    @ray.remote
    class Counter:
        def __init__(self):
            self.n = 0

        def increment(self):
            self.n += 1

        def read(self):
            return self.n

    counters = [Counter.remote() for _ in range(2)]
    for counter in counters:
        for _ in range(100):
            counter.increment.remote()
    assert get([counter.read.remote() for counter in counters]) == [100, 100]


def test_one_large_object_and_a_hundred_tasks(node):
    """The array is stored once: a hundred tasks read it and the store does not grow."""
    array = np.arange(8 * MIB, dtype=np.int64)
    ref = ray.put(array)
    before = node.store().object_store_bytes_used

    @ray.remote
    def part(whole, i):
        return int(whole[i::100].sum())

    refs = [part.remote(ref, i) for i in range(100)]
    assert sum(get(refs)) == int(array.sum())
    assert before <= node.store().object_store_bytes_used < before + MIB
    del ref, refs
    node.wait_for_store_below(MIB, "the large object freed")
