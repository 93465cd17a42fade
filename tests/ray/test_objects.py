"""Objects: sizes, views, references, room, and owners that die."""

import os
import time

import numpy as np
import pytest
import ray
from ray.exceptions import OwnerDiedError

from harness import MIB, get, memory_available, process_exists, wait_until

#: Room for the largest object that this machine can bear: twice it in memory (the array and its copy) and as much in reserve.
LARGEST = next(size for size in (2048, 1024, 512, 256) if memory_available() > 5 * size * MIB or size == 256) * MIB
STORE = LARGEST + 256 * MIB

#: No spilling, and a grace period in which requests wait for room that is longer than any test that fills the store.
NODE = {
    "num_cpus": 3,
    "object_store_memory": STORE,
    "_system_config": {"automatic_object_spilling_enabled": False, "oom_grace_period_s": 40.0},
}

pytestmark = pytest.mark.usefixtures("node")

def pattern(size):
    """`size` bytes that tell where they belong: a wrong offset or a torn copy shows."""
    return (np.arange(size, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(24)).astype(np.uint8)


@ray.remote
def digest(array):
    """What a worker sees of an array."""
    return array.nbytes, int(array.sum(dtype=np.uint64)), array.flags.writeable


@pytest.mark.parametrize("size", [1, 7, 4096, 100 * 1024 - 1, 100 * 1024 + 1, MIB, 16 * MIB + 3, 128 * MIB])
def test_round_trip_of_every_size(size):
    array = pattern(size)
    ref = ray.put(array)
    assert get(digest.remote(ref)) == (size, int(array.sum(dtype=np.uint64)), False)
    back = get(ref)
    assert back.dtype == array.dtype and np.array_equal(back, array)


def test_round_trip_of_the_largest(node):
    array = np.full(LARGEST, 1, dtype=np.uint8)
    array[::4096] = 7
    expected = int(array[::4096].sum(dtype=np.uint64)), LARGEST
    ref = ray.put(array)
    del array
    assert node.store().object_store_bytes_used >= LARGEST

    @ray.remote
    def look(view):
        return int(view[::4096].sum(dtype=np.uint64)), view.nbytes

    assert get(look.remote(ref), 100) == expected
    view = get(ref)
    assert view.nbytes == LARGEST and view[0] == 7 and view[-1] == 1
    del view, ref
    node.wait_for_store_below(MIB, "the largest object freed")


def test_views_are_read_only_and_shared():
    ref = ray.put(pattern(8 * MIB))
    one, two = get(ref), get(ref)
    assert not one.flags.writeable and not one.flags.owndata
    assert one.__array_interface__["data"][0] == two.__array_interface__["data"][0], "both are the same memory"
    with pytest.raises(ValueError):
        one[0] = 1

    @ray.remote
    class Viewer:
        def mapped(self, array):
            address = array.__array_interface__["data"][0]
            for line in open("/proc/self/maps"):
                low, high = (int(part, 16) for part in line.split()[0].split("-"))
                if low <= address < high:
                    return line.split()[4]

    address = one.__array_interface__["data"][0]
    mine = next(line.split()[4] for line in open("/proc/self/maps")
                if int(line.split("-")[0], 16) <= address < int(line.split("-")[1].split()[0], 16))
    assert get(Viewer.remote().mapped.remote(ref)) == mine, "the worker maps the same file (by inode), no copy"


def test_view_outlives_its_reference(node):
    ref = ray.put(pattern(20 * MIB))
    view = get(ref)
    del ref
    others = [ray.put(np.zeros(20 * MIB, dtype=np.uint8)) for _ in range(5)]
    assert np.array_equal(view, pattern(20 * MIB)), "memory that is still viewed is not given to others"
    del view, others
    node.wait_for_store_below(MIB, "all freed")


def test_references_keep_and_free_memory(node):
    node.wait_for_store_below(MIB, "empty at first")
    refs = [ray.put(np.zeros(5 * MIB, dtype=np.uint8)) for _ in range(10)]
    assert 50 * MIB <= node.store().object_store_bytes_used < 52 * MIB
    assert node.store().num_local_objects >= 10
    box = ray.put(refs)
    del refs
    time.sleep(0.5)
    assert node.store().object_store_bytes_used >= 50 * MIB, "references inside of an object keep what they refer to"
    assert get(get(box)[9]).nbytes == 5 * MIB
    del box
    node.wait_for_store_below(MIB, "the box and what was in it freed")


def test_results_of_tasks_are_freed(node):
    @ray.remote
    def make(i):
        return np.full(2 * MIB, i, dtype=np.uint8)

    refs = [make.remote(i) for i in range(20)]
    assert [int(get(ref)[-1]) for ref in refs] == list(range(20))
    assert node.store().object_store_bytes_used >= 40 * MIB
    del refs
    node.wait_for_store_below(MIB, "task results freed")


def test_much_more_than_fits_passes_through(node):
    """Each object is dropped before the next: room is found again and again, four times the store in all."""
    piece = np.ones(64 * MIB, dtype=np.uint8)
    for _ in range(4 * STORE // piece.nbytes):
        ref = ray.put(piece)
        del ref
    node.wait_for_store_below(MIB, "everything freed")


def test_many_small_objects(node):
    refs = [ray.put(i.to_bytes(4, "big") * 300) for i in range(2000)]
    values = get(refs)
    assert all(value == i.to_bytes(4, "big") * 300 for i, value in enumerate(values))
    ready, rest = ray.wait(refs, num_returns=len(refs), timeout=60, fetch_local=False)
    assert len(ready) == 2000 and not rest
    del values, refs, ready
    node.wait_for_store_below(MIB, "small objects freed")


def test_ten_thousand_references(node):
    @ray.remote
    def one(i):
        return i

    @ray.remote
    def total(*refs):
        return sum(refs)

    refs = [one.remote(i) for i in range(1000)]
    assert get(total.remote(*refs), 100) == sum(range(1000))
    target = ray.put(np.arange(50_000))
    boxes = [ray.put([target] * 100) for _ in range(100)]
    assert all(len(box) == 100 for box in get(boxes))
    assert int(get(get(boxes[-1])[-1])[-1]) == 49_999
    del refs, target, boxes
    node.wait_for_store_below(MIB, "ten thousand references freed")


def test_wait_with_ready_pending_and_failed():
    @ray.remote
    def fails():
        raise ValueError("no")

    @ray.remote(num_cpus=64)
    def never():
        return 1

    stored, failed, pending = ray.put(pattern(MIB)), fails.remote(), never.remote()
    ready, rest = ray.wait([pending, stored, failed], num_returns=2, timeout=60)
    assert set(ready) == {stored, failed} and rest == [pending]
    ray.cancel(pending)
    ready, rest = ray.wait([pending], timeout=60)
    assert ready == [pending]


def test_object_of_a_dead_owner_fails(node):
    @ray.remote(num_cpus=1)
    class Owner:
        def make(self):
            self.ref = ray.put(pattern(MIB))
            return [self.ref], os.getpid()

    owner = Owner.remote()
    [ref], pid = get(owner.make.remote())
    assert get(ref).nbytes == MIB

    @ray.remote
    def use(boxed):
        return ray.get(boxed[0]).nbytes

    assert get(use.remote([ref])) == MIB
    ray.kill(owner)
    wait_until(lambda: not process_exists(pid), "the owner has ended")
    node.wait_for_store_below(MIB, "a dead owner's object freed")
    with pytest.raises((OwnerDiedError, ray.exceptions.RayTaskError)) as raised:
        get(use.remote([ref]))
    assert isinstance(raised.value, OwnerDiedError) or isinstance(raised.value.cause, OwnerDiedError)
    with pytest.raises(OwnerDiedError):
        get(ref)


def test_results_survive_the_worker_that_made_them():
    """A task's caller owns its result: the worker may go."""
    @ray.remote(max_calls=1)
    def make():
        return pattern(3 * MIB), os.getpid()

    array_ref, pid_ref = make.options(num_returns=2).remote()
    pid = get(pid_ref)
    wait_until(lambda: not process_exists(pid), "the worker has left")
    assert np.array_equal(get(array_ref), pattern(3 * MIB))


def test_the_owner_knows_where_its_objects_are():
    """What it put itself, and what tasks returned."""
    def where(ref):
        return ray.experimental.get_object_locations([ref])[ref]["node_ids"]

    @ray.remote
    def make():
        return np.zeros(MIB, dtype=np.uint8)

    here = [ray.get_runtime_context().get_node_id()]
    put, returned = ray.put(np.zeros(MIB, dtype=np.uint8)), make.remote()
    assert get(returned).nbytes == MIB
    wait_until(lambda: where(put) == here and where(returned) == here, "both are known to be here")


@ray.remote(num_cpus=0, max_concurrency=2)
class Putter:
    """Puts one array and keeps it."""

    def __init__(self):
        self.begun = False

    def put(self, mebibytes):
        array = np.zeros(mebibytes * MIB, dtype=np.uint8)
        self.begun = True
        self.ref = ray.put(array)
        return True

    def has_begun(self):
        """Whether the array is being put."""
        return self.begun


def test_requests_wait_for_room_in_order(node):
    """A full store: a request that does not fit waits, and a later one that would fit does not overtake it.

    In percent of the store: 90 filled, one asks for 15, then another for 8. With 10 more free only the first gets room.
    """
    percent = STORE // 100 // MIB
    filler = [ray.put(np.zeros(10 * percent * MIB, dtype=np.uint8)) for _ in range(9)]
    first, second = Putter.remote(), Putter.remote()
    get([first.has_begun.remote(), second.has_begun.remote()])
    first_done = first.put.remote(15 * percent)
    wait_until(lambda: get(first.has_begun.remote()), "the first puts")
    assert ray.wait([first_done], timeout=1.5)[0] == [], "the first waits for room"
    second_done = second.put.remote(8 * percent)
    wait_until(lambda: get(second.has_begun.remote()), "the second puts")
    assert ray.wait([first_done, second_done], timeout=1.5)[0] == [], "the second would fit, and waits behind the first"
    filler.pop()
    assert get(first_done)
    assert ray.wait([second_done], timeout=1.5)[0] == [], "what is left does not do for the second"
    filler.pop()
    assert get(second_done)
    del filler
    ray.kill(first)
    ray.kill(second)
    node.wait_for_store_below(MIB, "all freed")
