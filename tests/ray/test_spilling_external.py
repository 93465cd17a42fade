"""Storage that only Ray's Python code can reach: its IO workers spill and restore, on ours as on stock."""

import gc
import json
import os
import signal

import numpy as np
import psutil
import pytest
import ray

import harness
from harness import MIB, get, wait_until

STORE = 100 * MIB
OBJECT = 10 * MIB
COUNT = 25


def array(seed):
    """Bytes that only this seed gives."""
    return np.random.default_rng(seed).integers(0, 256, OBJECT, dtype=np.uint8)


def right(refs, order):
    for seed in order:
        value = get(refs[seed], 120)
        assert np.array_equal(value, array(seed)), f"object {seed} is not what was put"
        del value


def storage(kind, directory):
    """`object_spilling_config` of a kind: smart_open takes URIs and plain paths, the mocks of Ray's own tests directories."""
    parameter = {"uri": str(directory)} if kind == "smart_open" else {"directory_path": str(directory)}
    return json.dumps({"type": kind, "params": parameter})


@pytest.fixture(scope="module", params=["smart_open", "mock_distributed_fs"])
def spilled(request, tmp_path_factory):
    """A node that spills to such storage, and where that lies."""
    directory = tmp_path_factory.mktemp("external")
    settings = {"object_spilling_config": storage(request.param, directory), "max_io_workers": 2}
    with harness.local_node(num_cpus=2, object_store_memory=STORE, _system_config=settings) as node:
        node.kind, node.directory = request.param, directory
        yield node


def files(node):
    return [path for path in node.directory.rglob("*") if path.is_file()]


def io_workers(node):
    return [worker for worker in node.workers() if "SpillWorker" in (title := " ".join(worker.cmdline())) or "RestoreWorker" in title]


def test_puts_beyond_the_store_come_back(spilled):
    before = spilled.store()
    refs = [ray.put(array(seed)) for seed in range(COUNT)]
    right(refs, range(COUNT))
    right(refs, reversed(range(COUNT)))
    after = spilled.store()
    assert after.spilled_bytes_total - before.spilled_bytes_total >= COUNT * OBJECT - STORE
    assert after.restored_bytes_total - before.restored_bytes_total >= COUNT * OBJECT - STORE
    assert files(spilled) and 1 <= len(io_workers(spilled)) <= 4
    known = sum(place["did_spill"] for place in ray.experimental.get_object_locations(refs).values())
    assert known * OBJECT >= COUNT * OBJECT - STORE, f"the owner knows of {known}"
    del refs
    gc.collect()
    spilled.wait_for_store_below(MIB, "no object is left")
    if spilled.kind != "smart_open":  # Ray's code for it deletes nothing.
        wait_until(lambda: not files(spilled), "no file is left when no object is")


def test_arguments_of_tasks_are_restored(spilled):
    @ray.remote
    def same(value, seed):
        return bool(np.array_equal(value, array(seed)))

    refs = [ray.put(array(seed)) for seed in range(COUNT)]
    assert all(get([same.remote(ref, seed) for seed, ref in enumerate(refs)], 120))


def test_io_workers_that_die_lose_nothing(spilled):
    refs = [ray.put(array(seed)) for seed in range(COUNT)]
    for seed in range(COUNT):
        if seed % 8 == 0:
            for worker in io_workers(spilled):
                os.kill(worker.pid, signal.SIGKILL)
                psutil.wait_procs([worker], timeout=20)
        right(refs, [seed])
