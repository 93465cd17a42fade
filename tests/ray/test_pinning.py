"""A node of two shards, and workers bound to the NUMA node of the shard that granted their lease (`pin_workers`).

The node is told of a machine with two NUMA nodes of one hardware thread each, so that a binding can be seen on any
machine that has two hardware threads. Ray's own raylet knows nothing of it and lets workers run anywhere.
"""

import json
import os
import subprocess
import time

import ray

import harness
from harness import MIB, OURS

ENVIRONMENT = {
    "HWLOC_SYNTHETIC": "node:2 core:1 pu:1",
    "RAYLET_URING_CORES": "0-1",
    "RAYLET_URING_PIN_WORKERS": "1",
}
NODE = {"num_cpus": 2}


def usable_threads():
    """What this process may run on, of the two hardware threads that the node knows."""
    return os.sched_getaffinity(0) & {0, 1}


@ray.remote(num_cpus=1)
class Bound:
    """Keeps its lease."""

    def threads(self):
        """This worker's process, and what its threads may run on."""
        of_threads = {tuple(sorted(os.sched_getaffinity(int(thread)))) for thread in os.listdir("/proc/self/task")}
        return os.getpid(), of_threads

    def put(self, count, size_bytes):
        """Puts objects that this actor owns."""
        return [ray.put(os.urandom(size_bytes)) for _ in range(count)]


def test_leased_workers_are_bound_and_idle_ones_released(node):
    """Two leases fill both NUMA nodes with all threads of a worker; a worker that is idle again may run anywhere."""
    actors = [Bound.remote() for _ in range(2)]
    expected = {(0,), (1,)} if OURS else {tuple(sorted(os.sched_getaffinity(0)))}

    def bound():
        answers = harness.get([actor.threads.remote() for actor in actors])
        return answers if {threads for _, of_threads in answers for threads in of_threads} == expected else None

    answers = harness.wait_until(bound, f"the threads of both workers may run on {expected}")
    if OURS:
        assert answers[0][1] != answers[1][1], "each NUMA node has room for one lease"
    for actor in actors:
        ray.kill(actor)


def used_by_arena(node):
    """What objects take of the memory of each NUMA node, in bytes."""
    out = subprocess.run([harness.our_binary(), "status", "--json"], capture_output=True, text=True, timeout=60)
    (status,) = (status for status in json.loads(out.stdout) if status["pid"] == node.raylet.pid)
    return [arena["used_bytes"] for arena in status["arenas"]]


def test_what_a_worker_creates_lies_on_its_numa_node(node):
    """Objects of a bound worker are in the memory of the NUMA node that it is bound to, whichever shard has them."""
    actors = [Bound.remote() for _ in range(2)]

    def places():
        answers = harness.get([actor.threads.remote() for actor in actors])
        of_actors = [{thread for threads in of_threads for thread in threads} for _, of_threads in answers]
        return of_actors if not OURS or all(len(threads) == 1 for threads in of_actors) else None

    kept = []
    for actor, threads in zip(actors, harness.wait_until(places, "both workers are bound")):
        before = used_by_arena(node) if OURS else None
        # Large ones and small ones; each put goes to the shard of its task.
        for _ in range(3):
            kept.append(harness.get(actor.put.remote(3, MIB)))
            kept.append(harness.get(actor.put.remote(20, 200)))
        assert all(len(harness.get(ref)) in (MIB, 200) for refs in kept for ref in refs)
        if OURS:
            grown = [now - then for now, then in zip(used_by_arena(node), before)]
            (own,) = threads
            assert grown[own] >= 9 * MIB, f"{grown} of actor on hardware thread {own}"
            assert grown[1 - own] < MIB, f"{grown} of actor on hardware thread {own}"
    kept.clear()
    for actor in actors:
        ray.kill(actor)


def test_an_idle_worker_may_run_anywhere(node):
    """The worker of a task that ended is released, and bound again by its next lease."""

    expected = 1 if OURS else len(os.sched_getaffinity(0))

    @ray.remote(num_cpus=1)
    def where():
        # The node hears of a lease a moment after its owner does.
        deadline = time.monotonic() + harness.PATIENCE_S
        while len(os.sched_getaffinity(0)) != expected and time.monotonic() < deadline:
            time.sleep(0.01)
        return os.getpid(), len(os.sched_getaffinity(0))

    pid, during = harness.get(where.remote())
    assert during == expected

    def released():
        return not os.path.exists(f"/proc/{pid}") or os.sched_getaffinity(pid) >= usable_threads()

    harness.wait_until(released, "the idle worker may run anywhere")
    assert harness.get(where.remote())[1] == expected


def test_wait_without_time_sees_objects_of_every_shard(node):
    """`ray.wait` with no time to wait, as Serve asks it: what is stored is ready, whichever shard has it."""

    @ray.remote
    def make():
        return bytes(200_000)

    refs = [make.remote() for _ in range(8)]
    assert len(harness.get(refs)) == 8
    for _ in range(20):
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        assert len(ready) == len(refs)
