"""No request starves: not among many shapes, not the whole node among a stream of small requests."""

import collections
import threading
import time

import pytest
import ray

from harness import OURS, get

CPUS = 4
NODE = {"num_cpus": CPUS, "resources": {"shape": 1000}}

pytestmark = pytest.mark.usefixtures("node")


@ray.remote
def stamp(work_s):
    time.sleep(work_s)
    return time.monotonic()


def test_many_shapes_all_run():
    """150 requests of 150 different shapes at once, ten times more than fit side by side."""
    started = time.monotonic()
    refs = [stamp.options(num_cpus=1 + i % 2, resources={"shape": i / 10}).remote(0) for i in range(1, 151)]
    ends = get(refs, 100)
    assert len(ends) == 150 and max(ends) - started < 100


def test_shapes_share_instead_of_queueing_behind_each_other():
    """Two shapes, each with enough work for all CPUs: both make progress long before the other ends.

    An owner keeps a worker for up to 500 ms (Ray's worker_lease_timeout_milliseconds) while it has tasks of that shape, so a
    shape may have all CPUs for that long, whatever the raylet does; each shape's work is several times that.
    """
    many = {1: [], 2: []}
    for _ in range(400):
        for shape, refs in many.items():
            refs.append(stamp.options(num_cpus=1, resources={"shape": shape}).remote(0.02))
    ends = {shape: sorted(get(refs, 100)) for shape, refs in many.items()}
    first_of_two, last_of_one = ends[2][0], ends[1][-1]
    first_of_one, last_of_two = ends[1][0], ends[2][-1]
    assert first_of_two < last_of_one and first_of_one < last_of_two


def test_large_request_among_small_ones():
    """A request for half of the node, and one for all of it, while small ones keep arriving faster than they are served.

    The stock raylet gives what is free to whoever fits, so there the whole node is asked for after the stream has ended.
    """
    stop = threading.Event()
    served = collections.Counter()

    def stream():
        pending = [stamp.remote(0.02) for _ in range(4 * CPUS)]
        while not stop.is_set():
            done, pending = ray.wait(pending, timeout=30)
            served["small"] += len(done)
            pending += [stamp.remote(0.02) for _ in done]
        get(pending)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        while served["small"] < 20:
            time.sleep(0.05)
        before = served["small"]
        if not OURS:
            stop.set()
        for cpus in (CPUS // 2, CPUS):
            get(stamp.options(num_cpus=cpus).remote(0), 60)
    finally:
        stop.set()
        thread.join(60)
    if OURS:
        assert served["small"] > before, "the stream went on meanwhile"


def test_infeasible_requests_do_not_block_others():
    stuck = [stamp.options(num_cpus=100 + i).remote(0) for i in range(20)]
    assert len(get([stamp.remote(0) for _ in range(50)])) == 50
    for ref in stuck:
        ray.cancel(ref)
    for ref in stuck:
        with pytest.raises(ray.exceptions.TaskCancelledError):
            get(ref)
