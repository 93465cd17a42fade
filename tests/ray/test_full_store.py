"""What a store answers when there is no room: an error in time, never a hang, never SIGBUS; and it works on afterwards."""

import time

import numpy as np
import pytest
import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from harness import MIB, get

STORE = 100 * MIB

#: No spilling, and no fallback to files outside of the store, so that the answer is the store's own.
NODE = {
    "num_cpus": 2,
    "object_store_memory": STORE,
    "_system_config": {
        "automatic_object_spilling_enabled": False,
        "local_fs_capacity_threshold": 0.0,
        "oom_grace_period_s": 1.0,
    },
}

pytestmark = pytest.mark.usefixtures("node")

#: Ray 2.60 blames the disk when it could not fall back to it, and the store when it could not even try.
FULL = (ObjectStoreFullError, OutOfDiskError)


def zeros(mebibytes):
    return np.zeros(mebibytes * MIB, dtype=np.uint8)


def assert_store_works():
    assert get(ray.put(np.ones(40 * MIB, dtype=np.uint8)))[-1] == 1


@pytest.mark.parametrize("mebibytes", [101, 150, 4000])
def test_object_that_can_never_fit(mebibytes):
    started = time.monotonic()
    with pytest.raises(FULL):
        ray.put(zeros(mebibytes))
    assert time.monotonic() - started < 60
    assert_store_works()


def test_result_that_can_never_fit():
    """The task's caller gets the error, and the worker lives to do other things."""
    @ray.remote(max_retries=0)
    def make(mebibytes):
        return zeros(mebibytes)

    with pytest.raises((*FULL, ray.exceptions.RayTaskError)) as raised:
        get(make.remote(200), 100)
    assert isinstance(raised.value, FULL) or isinstance(raised.value.cause, FULL), raised.value
    assert get(make.remote(30)).nbytes == 30 * MIB


def test_full_of_referenced_objects(node):
    """Nothing may be evicted: the put fails; room made by dropping references is used again."""
    kept = [ray.put(zeros(20)) for _ in range(4)]
    started = time.monotonic()
    with pytest.raises(FULL):
        ray.put(zeros(40))
    assert time.monotonic() - started < 60
    assert [get(ref).nbytes for ref in kept] == [20 * MIB] * 4, "what was there is untouched"
    kept = kept[:2]
    node.wait_for_store_below(41 * MIB, "two of four freed")
    kept += [ray.put(zeros(18)) for _ in range(2)]
    assert [get(ref).nbytes for ref in kept] == [20 * MIB] * 2 + [18 * MIB] * 2
    del kept
    node.wait_for_store_below(MIB, "all freed")


def test_full_of_viewed_objects(node):
    """Objects whose references are gone but which are still viewed can't be evicted either; without views they can."""
    views = [get(ray.put(np.full(20 * MIB, i, dtype=np.uint8))) for i in range(4)]
    with pytest.raises(FULL):
        ray.put(zeros(40))
    assert [int(view[-1]) for view in views] == [0, 1, 2, 3]
    del views
    node.wait_for_store_below(MIB, "views gone")
    assert_store_works()


def test_many_failures_leak_nothing(node):
    for _ in range(20):
        with pytest.raises(FULL):
            ray.put(zeros(120))
    node.wait_for_store_below(MIB, "nothing left of failed puts")
    kept = [ray.put(zeros(15)) for _ in range(6)]
    assert len(kept) == 6, "nine tenths of the store can still be filled"
