"""Objects between the nodes of a cluster on this machine, all on one raylet; each time an object that was never there.

Started by bench_ray.py as a process of its own, with settings and results as node.py has them.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy
import ray
from ray._private import services
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster

from node import GIB, MIB, RayletClock, generated, main, measure_all

# Both ends of a pull hold the object of 1 GiB, with room to spare, so that nothing is spilled.
PULL_STORE_BYTES = 3 * GIB
BROADCAST_BYTES = 256 * MIB
BROADCAST_NODES = 4
BROADCAST_STORE_BYTES = 600 * MIB
BATCH_OBJECTS = 200

# Measured pulls of each size, after one that isn't: it is the one whose pages nobody has touched.
PULLS = {"1M": (MIB, 40), "100M": (100 * MIB, 6), "1G": (GIB, 3)}
BATCHES = 3
BROADCASTS = 3

# Objects of the last pull are gone when a store holds less than this.
EMPTY_BYTES = 16 * MIB
EMPTY_TIMEOUT_S = 30.0
STREAM_BYTES = "1G"
# The machine's limit is what its fastest stream does: something else may run during one.
STREAMS = 3


@ray.remote(num_cpus=0)
class Puller:
    """Gets what others have put, on a node of its own."""

    def pull(self, refs: list) -> float:
        """How long it takes until the first and the last byte of each object are here, in seconds."""
        begin = time.perf_counter()
        values = ray.get(refs)
        ends = [(int(value[0]), int(value[-1])) for value in values]
        took = time.perf_counter() - begin
        expected = [(number % 256, (number + 1) % 256) for number in range(len(values))]
        if ends != expected:
            raise RuntimeError(f"objects end in {ends[:3]}..., expected {expected[:3]}...")
        return took


class Nodes:
    """A cluster, its driver on the first node and a puller on each further one."""

    def __init__(self, settings: dict, directory: str):
        self.settings = settings
        if settings["raylet"]:
            services.RAYLET_EXECUTABLE = settings["raylet"]
        self.cluster = Cluster(shutdown_at_exit=False)
        self.nodes, self.pullers, self.clocks = [], [], []
        self.add(PULL_STORE_BYTES, temp_dir=directory, include_dashboard=False)
        self.add(PULL_STORE_BYTES)
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")
        self.start_pullers()

    def add(self, store_bytes: int, **further) -> None:
        place = {f"place{len(self.nodes)}": 1}
        node = self.cluster.add_node(num_cpus=1, resources=place, object_store_memory=store_bytes, **further)
        self.nodes.append(node)
        pid = node.all_processes["raylet"][0].process.pid
        self.clocks.append(RayletClock(pid))
        self.executable = self.clocks[-1].checked(services.RAYLET_EXECUTABLE)

    def start_pullers(self) -> None:
        """A puller where there is none; each has pulled something small, so that no measurement meets a start-up."""
        for number in range(len(self.pullers) + 1, len(self.nodes)):
            self.pullers.append(Puller.options(resources={f"place{number}": 1}).remote())
        refs = self.put(MIB, 1)
        ray.get([puller.pull.remote(refs) for puller in self.pullers], timeout=120)

    def cpu_s(self) -> float:
        return sum(clock.seconds() for clock in self.clocks)

    def put(self, size_bytes: int, objects: int) -> list:
        refs = []
        for number in range(objects):
            data = numpy.full(size_bytes, number % 251, dtype=numpy.uint8)
            data[0], data[-1] = number % 256, (number + 1) % 256
            refs.append(ray.put(data))
        return refs

    def wait_until_empty(self) -> None:
        """Waits until no store holds what was pulled before, so that no pull has to make room."""
        end = time.perf_counter() + EMPTY_TIMEOUT_S
        for node in ray.nodes():
            address = node["NodeManagerAddress"], node["NodeManagerPort"]
            while node_stats(*address, include_memory_info=False).store_stats.object_store_bytes_used > EMPTY_BYTES:
                if time.perf_counter() > end:
                    raise RuntimeError(f"objects that nobody refers to are still in a store after {EMPTY_TIMEOUT_S:g} s")
                time.sleep(0.05)

    def rounds(self, pullers: list, size_bytes: int, objects: int, times: int) -> dict:
        """Puts objects and has them pulled, over and over; `s` are the times of the driver's clock for several pullers."""
        seconds, cpu_s = [], 0.0
        for turn in range(times + 1):
            refs = self.put(size_bytes, objects)
            before, begin = self.cpu_s(), time.perf_counter()
            took = ray.get([puller.pull.remote(refs) for puller in pullers], timeout=120)
            elapsed = time.perf_counter() - begin
            # What a raylet does for these pulls when the puller has its bytes already, such as telling owners, belongs to them.
            del refs
            self.wait_until_empty()
            if turn > 0:
                seconds.append(took[0] if len(pullers) == 1 else elapsed)
                cpu_s += self.cpu_s() - before
        gigabytes = size_bytes * objects * len(pullers) / 1e9
        median = statistics.median(seconds)
        return {
            "s": seconds,
            "p50_ms": median * 1e3,
            "gb_per_s": gigabytes / median,
            "cpu_s_per_gb": cpu_s / times / gigabytes,
        }

    # Rows

    def measure_stream(self) -> dict:
        reports = [generated(self.settings, "stream", f"--size={STREAM_BYTES}", "--block=1M") for _ in range(STREAMS)]
        return max(reports, key=lambda report: report["gb_per_s"])

    def beside_stream(self, measured: dict) -> dict:
        stream = self.measure_stream()
        return {**measured, "stream": stream, "of_stream": measured["gb_per_s"] / stream["gb_per_s"]}

    def measure_pull(self, size: str) -> dict:
        size_bytes, times = PULLS[size]
        return self.beside_stream(self.rounds(self.pullers[:1], size_bytes, 1, times))

    def measure_batch(self) -> dict:
        return self.beside_stream(self.rounds(self.pullers[:1], MIB, BATCH_OBJECTS, BATCHES))

    def measure_broadcast(self) -> dict:
        while len(self.nodes) < BROADCAST_NODES + 1:
            self.add(BROADCAST_STORE_BYTES)
        self.start_pullers()
        self.wait_until_empty()
        return self.rounds(self.pullers[:BROADCAST_NODES], BROADCAST_BYTES, 1, BROADCASTS)

    def measure(self, measurement: str) -> dict:
        name, _, of = measurement.partition(":")
        if name == "pull":
            return {"batch": self.measure_batch, "stream": self.measure_stream}.get(of, lambda: self.measure_pull(of))()
        return getattr(self, f"measure_{name}")()

    def end(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


def run(settings: dict, directory: str) -> dict:
    """Starts the cluster, measures the rows asked for, shuts it down."""
    nodes = Nodes(settings, directory)
    try:
        measured, failed = measure_all(nodes, settings["rows"])
        return {"measured": measured, "failed": failed, "node": {"executable": nodes.executable}}
    finally:
        nodes.end()


if __name__ == "__main__":
    sys.exit(main(run))
