"""Four times what a store holds, put and read back: the rest goes to disk.

Started by bench_ray.py as a process of its own, with settings and results as node.py has them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import numpy
import ray
from ray._private.internal_api import node_stats

from node import GIB, MIB, Node, RayletClock, generated, main, measure_all

OBJECT_BYTES = 64 * MIB
OBJECTS = 4 * GIB // OBJECT_BYTES
# Read back together: what a task with several arguments asks for.
GET_OBJECTS = 4
DISK_BYTES = "1G"
# The disk's limit is what its fastest file does: something else may run during one.
DISK_FILES = 2
DROP_CACHES = Path("/proc/sys/vm/drop_caches")

# As they begin in the title of a process of Ray's that spills or restores.
IO_WORKERS = ("ray::SpillWorker", "ray::RestoreWorker", "ray::IDLE_SpillWorker", "ray::IDLE_RestoreWorker")


def drop_page_cache() -> bool:
    """Makes the next reads come from the disk; False where this process may not."""
    os.sync()
    try:
        DROP_CACHES.write_text("1\n")
    except OSError as error:
        print(f"the page cache can't be dropped ({error}): run as root, or what is restored comes from memory", file=sys.stderr)
        return False
    return True


class SpillingNode(Node):
    """A node that gets more than it can hold."""

    def __init__(self, settings: dict, directory: str):
        super().__init__(settings, directory)
        self.directory = directory
        self.io_workers: dict[int, float] = {}

    def look_for_io_workers(self) -> float:
        """CPU that Ray's Python IO workers have spent so far; those seen are counted."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(entry.name)
                title = (entry / "cmdline").read_bytes().decode(errors="replace")
                if title.startswith(IO_WORKERS) and self.is_ours(pid):
                    self.io_workers[pid] = RayletClock(pid).seconds()
        return sum(self.io_workers.values())

    def is_ours(self, pid: int) -> bool:
        """Whether a process is a child of this node's raylet, or of a child of it."""
        for _ in range(4):
            if pid == self.pid:
                return True
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            pid = int(fields[1])
        return False

    def cpu_s(self) -> float:
        return self.clock.seconds() + self.look_for_io_workers()

    def disk(self) -> dict:
        arguments = "disk", f"--directory={self.directory}", f"--size={DISK_BYTES}", "--block=1M", "--depth=8"
        reports = [generated(self.settings, *arguments) for _ in range(DISK_FILES)]
        return {way: max(report[way]["gb_per_s"] for report in reports) for way in ("write", "read")}

    def store(self):
        node = next(n for n in ray.nodes() if n["NodeID"] == ray.get_runtime_context().get_node_id())
        return node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False).store_stats

    def put_all(self) -> tuple[list, float]:
        data = numpy.random.default_rng(1).integers(0, 256, OBJECT_BYTES, dtype=numpy.uint8)
        refs = []
        begin = time.perf_counter()
        for number in range(OBJECTS):
            data[0], data[-1] = number, number + 1
            refs.append(ray.put(data))
        return refs, time.perf_counter() - begin

    def read_all(self, refs: list) -> float:
        begin = time.perf_counter()
        for first in range(0, len(refs), GET_OBJECTS):
            values = ray.get(refs[first : first + GET_OBJECTS], timeout=120)
            for number, value in enumerate(values, first):
                if (value[0], value[-1]) != (number, number + 1):
                    raise RuntimeError(f"object {number} does not read back as it was put")
            del values
        return time.perf_counter() - begin

    def measure_spill(self) -> dict:
        disk, cpu_s = self.disk(), self.cpu_s()
        refs, put_s = self.put_all()
        put_cpu_s = self.cpu_s() - cpu_s
        spilled_bytes = self.store().spilled_bytes_total
        dropped = drop_page_cache()
        read_disk, cpu_s = self.disk(), self.cpu_s()
        restored_bytes = self.store().restored_bytes_total
        read_s = self.read_all(refs)
        read_cpu_s = self.cpu_s() - cpu_s
        restored_bytes = self.store().restored_bytes_total - restored_bytes
        put, restored = OBJECTS * OBJECT_BYTES / 1e9 / put_s, restored_bytes / 1e9 / read_s
        return {
            "put_gb_per_s": put,
            "put_of_disk": put / disk["write"],
            "put_cpu_s_per_gb": put_cpu_s / (spilled_bytes / 1e9),
            "spilled_bytes": spilled_bytes,
            "restore_gb_per_s": restored,
            "restore_of_disk": restored / read_disk["read"],
            "restore_cpu_s_per_gb": read_cpu_s / (restored_bytes / 1e9),
            "restored_bytes": restored_bytes,
            "read_back_s": read_s,
            "page_cache_dropped": dropped,
            "io_workers": len(self.io_workers),
            "disk_write_gb_per_s": disk["write"],
            "disk_read_gb_per_s": read_disk["read"],
        }


def run(settings: dict, directory: str) -> dict:
    """Starts a node, measures the rows asked for, shuts it down."""
    node = SpillingNode(settings, directory)
    try:
        node.start_workers()
        node.settle()
        measured, failed = measure_all(node, settings["rows"])
        return {"measured": measured, "failed": failed, "node": {"executable": node.executable}}
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main(run))
