"""One Ray node on one raylet, measured from its driver.

Started by bench_ray.py as a process of its own, so that each node gets a driver that has done nothing yet. Takes one
JSON object on the command line and writes one to `out`: {"measured": {row: figures}, "failed": {row: why}, "node": {}}.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import ray
from ray._private import services

MIB = 1 << 20
GIB = 1 << 30

# Leases of this program's own driver count from 1; the load generator counts from here, each run in a block of its own.
FIRST_LEASE = 1 << 30
LEASES_PER_RUN = 1 << 24

# Objects that the driver's gets go round; a repeated get of one object would be answered by the driver itself.
GET_OBJECTS = 64

# A raylet that spends less than this of a core for as long as this is at rest.
REST_SHARE = 0.03
REST_S = 1.0
REST_TIMEOUT_S = 20.0

# Of each log of the raylet, where its node fails.
LOG_END_CHARACTERS = 1500

# A raylet may touch its reserve at idle priority: on a machine that is never idle this takes long, or for ever.
RESERVE_TIMEOUT_S = 60.0
# A reserve of so much is full: objects in use are no part of it.
RESERVE_SHARE = 0.95

# Work that the raylet does later for a burst that has ended, such as freeing, belongs to the burst.
AFTERMATH_S = 0.3


def generated(settings: dict, *arguments: str) -> dict:
    """What the load generator says."""
    command = [settings["load_generator"], *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=settings["seconds"] + 60)
    if ran.returncode != 0:
        raise RuntimeError(ran.stderr.strip() or f"the load generator ended with {ran.returncode}")
    return json.loads(ran.stdout)


class RayletClock:
    """CPU time of the raylet: all threads that it has or had, no children, to the nanosecond."""

    def __init__(self, pid: int):
        # The id of a process's CPU clock, as clock_getcpuclockid(3) makes it.
        self._clock = (~pid << 3) | 2
        self._pid = pid

    def checked(self, raylet: str) -> str:
        """The executable that runs; fails where it is not `raylet`."""
        executable, expected = os.readlink(f"/proc/{self._pid}/exe"), os.path.realpath(raylet)
        if executable != expected:
            raise RuntimeError(f"the raylet runs {executable}, expected {expected}")
        return executable

    def seconds(self) -> float:
        return time.clock_gettime_ns(self._clock) / 1e9


class Burst:
    """Repeats a call for some seconds: calls/s, latency percentiles, CPU of raylet and driver for each call."""

    def __init__(self, clock: RayletClock, seconds: float):
        self._clock = clock
        self._seconds = seconds

    def run(self, call) -> dict:
        until = time.perf_counter() + min(0.5, self._seconds)
        while time.perf_counter() < until:
            call()
        latencies_ns = []
        raylet, driver = self._clock.seconds(), time.process_time()
        begin = last = time.perf_counter_ns()
        end = begin + int(self._seconds * 1e9)
        while last < end:
            call()
            now = time.perf_counter_ns()
            latencies_ns.append(now - last)
            last = now
        driver = time.process_time() - driver
        time.sleep(AFTERMATH_S)
        raylet = self._clock.seconds() - raylet
        calls = len(latencies_ns)
        latencies_ns.sort()
        return {
            "calls": calls,
            "per_s": calls / ((last - begin) / 1e9),
            "p50_us": latencies_ns[calls // 2] / 1e3,
            "p99_us": latencies_ns[calls * 99 // 100] / 1e3,
            "raylet_cpu_us": raylet * 1e6 / calls,
            "driver_cpu_us": driver * 1e6 / calls,
        }


class Node:
    """A node of this driver's own."""

    def __init__(self, settings: dict, directory: str):
        self.settings = settings
        if settings["raylet"]:
            services.RAYLET_EXECUTABLE = settings["raylet"]
        begin = time.perf_counter()
        ray.init(
            num_cpus=settings["cpus"],
            object_store_memory=settings["object_store_bytes"],
            _temp_dir=directory,
            log_to_driver=False,
            logging_level="ERROR",
        )
        self.init_s = time.perf_counter() - begin
        worker = ray._private.worker.global_worker
        self.pid = worker.node.all_processes["raylet"][0].process.pid
        self.clock = RayletClock(self.pid)
        self.executable = self.clock.checked(services.RAYLET_EXECUTABLE)
        self._lease_runs = 0

    def settle(self) -> float:
        """Waits until the raylet is at rest; returns how long that took."""
        begin = time.perf_counter()
        while True:
            spent, at = self.clock.seconds(), time.perf_counter()
            time.sleep(REST_S)
            share = (self.clock.seconds() - spent) / (time.perf_counter() - at)
            waited_s = time.perf_counter() - begin
            if share < REST_SHARE:
                return waited_s
            if waited_s > REST_TIMEOUT_S:
                print(f"the raylet still spends {share:.0%} of a core {waited_s:.0f} s later", file=sys.stderr)
                return waited_s

    def wait_for_reserve(self) -> None:
        """Waits until the raylet has touched the memory that it was told to have ready."""
        wanted, end = self.settings["reserve_bytes"], time.perf_counter() + RESERVE_TIMEOUT_S
        while (touched := self.touched_bytes()) < RESERVE_SHARE * wanted:
            if time.perf_counter() > end:
                raise RuntimeError(f"only {touched // MIB} of {wanted // MIB} MiB of the warm reserve are touched")
            time.sleep(0.2)

    def touched_bytes(self) -> int:
        """Shared memory and huge pages that the raylet's mappings hold."""
        names = ("RssShmem:", "Shared_Hugetlb:", "Private_Hugetlb:")
        files = (Path(f"/proc/{self.pid}/{name}").read_text() for name in ("status", "smaps_rollup"))
        lines = [line for text in files for line in text.splitlines()]
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(names))

    def start_workers(self) -> None:
        """Has every worker run a task, so that no measurement meets a start-up."""

        @ray.remote(num_cpus=1)
        def hold():
            time.sleep(0.2)

        ray.get([hold.remote() for _ in range(2 * self.settings["cpus"])])

    def memory(self) -> dict:
        fields = {}
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            fields[name] = value.split()[0] if value.split() else ""
        anonymous, file = int(fields["RssAnon"]), int(fields["RssFile"])
        return {
            # The store's segments are RssShmem (or hugetlb pages, which RSS leaves out).
            "rss_mib": (anonymous + file) / 1024,
            "rss_anonymous_mib": anonymous / 1024,
            "rss_file_mib": file / 1024,
            "rss_shared_memory_mib": int(fields["RssShmem"]) / 1024,
            "threads": int(fields["Threads"]),
        }

    # Rows

    def measure_init(self) -> dict:
        return {"s": self.init_s}

    def measure_idle(self) -> dict:
        seconds = self.settings["idle_s"]
        spent, at = self.clock.seconds(), time.perf_counter()
        time.sleep(seconds)
        share = (self.clock.seconds() - spent) / (time.perf_counter() - at)
        return {"cpu_percent": share * 100, **self.memory()}

    def measure_floor(self) -> dict:
        """What the least possible answer on a Unix socket costs now, with this node idle: no raylet can be below it."""
        report = generated(self.settings, "floor", f"--seconds={self.settings['seconds']}")
        return {"cpu_us": report["server_cpu_us_per_answer"], "p50_us": report["answer"]["p50_us"]}

    def measure_puts(self) -> dict:
        data = bytes(1024)
        return Burst(self.clock, self.settings["seconds"]).run(lambda: ray.put(data))

    def measure_gets(self) -> dict:
        refs = [ray.put(os.urandom(1024)) for _ in range(GET_OBJECTS)]
        turn = 0

        def get():
            nonlocal turn
            turn = (turn + 1) % GET_OBJECTS
            ray.get(refs[turn])

        return Burst(self.clock, self.settings["seconds"]).run(get)

    def measure_tasks(self) -> dict:
        @ray.remote
        def nothing():
            pass

        return Burst(self.clock, self.settings["seconds"]).run(lambda: ray.get(nothing.remote()))

    def measure_first_touch(self) -> dict:
        import numpy

        data = numpy.ones(GIB // 8)
        ray.put(bytes(1024))  # the driver's own start-up
        self.wait_for_reserve()
        refs, seconds = [], []
        for _ in range(2):
            begin = time.perf_counter()
            refs.append(ray.put(data))
            seconds.append(time.perf_counter() - begin)
        value = ray.get(refs[0])
        if value.shape != data.shape or value[0] != 1.0 or value[-1] != 1.0:
            raise RuntimeError("the object does not read back as it was put")
        first, second = (GIB / 1e9 / s for s in seconds)
        return {"gb_per_s": first, "second_gb_per_s": second, "settled_s": self.settled_s}

    def lease_load(self, *arguments: str) -> dict:
        """Runs the load generator in the name of this driver."""
        worker = ray._private.worker.global_worker
        node = next(n for n in ray.nodes() if n["NodeID"] == ray.get_runtime_context().get_node_id())
        # The owner's address is whatever this driver puts on its own objects.
        owner = worker.core_worker.get_owner_address(ray.put(None))
        report = generated(
            self.settings,
            "lease-load",
            f"--address={node['NodeManagerAddress']}:{node['NodeManagerPort']}",
            f"--owner={owner.hex()}",
            f"--job-id={worker.current_job_id.hex()}",
            f"--raylet-pid={self.pid}",
            f"--seconds={self.settings['seconds']}",
            f"--first-lease={FIRST_LEASE + self._lease_runs * LEASES_PER_RUN}",
            *arguments,
        )
        self._lease_runs += 1
        pair = report["pair"]
        if report["pairs"] == 0:
            raise RuntimeError(f"no lease was granted in the window: {report}")
        return {
            "per_s": report["pairs_per_s"],
            "p50_us": pair["p50_us"],
            "p99_us": pair["p99_us"],
            "p99_to_p50": pair["p99_us"] / pair["p50_us"],
            "raylet_cpu_us": report["raylet_cpu_us_per_pair"],
            "report": report,
        }

    def plasma_load(self, operation: str) -> dict:
        """Objects of 1 KiB on the store's socket, without a driver around them."""
        report = generated(
            self.settings,
            "plasma-load",
            f"--socket={ray._private.worker.global_worker.node.plasma_store_socket_name}",
            f"--operation={operation}",
            f"--raylet-pid={self.pid}",
            f"--seconds={self.settings['seconds']}",
        )
        return {
            "per_s": report["operations_per_s"],
            "p50_us": report["latency"]["p50_us"],
            "p99_us": report["latency"]["p99_us"],
            "raylet_cpu_us": report["raylet_cpu_us_per_operation"],
        }

    def measure(self, row: str) -> dict:
        name, _, number = row.partition(":")
        if name == "leases":
            return self.lease_load(f"--in-flight={number}")
        if name == "shapes":
            return self.lease_load(f"--shapes={number}")
        if name == "plasma":
            return self.plasma_load(number)
        return getattr(self, f"measure_{name}")()


def measure_all(node, rows: list[str], after=lambda row: None) -> tuple[dict, dict]:
    """What was measured, and why what could not be was not."""
    measured, failed = {}, {}
    for row in rows:
        try:
            measured[row] = node.measure(row)
        except Exception:
            failed[row] = traceback.format_exc()
        after(row)
    return measured, failed


def run(settings: dict, directory: str) -> dict:
    """Starts a node, measures the rows asked for, shuts it down."""
    node = Node(settings, directory)
    try:
        node.start_workers()
        node.settled_s = node.settle()
        rest = lambda row: row in ("init", "idle") or node.settle()  # noqa: E731
        measured, failed = measure_all(node, settings["rows"], rest)
        return {
            "measured": measured,
            "failed": failed,
            "node": {
                "executable": node.executable,
                "memory_at_end": node.memory(),
                "settled_s": node.settled_s,
                "load_average": os.getloadavg()[0],
            },
        }
    finally:
        ray.shutdown()


def tell_raylet_logs(directory: str) -> None:
    """What the raylet said at the end, before its logs go with the directory."""
    for log in sorted(Path(directory).glob("session_latest/logs/raylet.*")):
        if text := log.read_text(errors="replace").strip():
            print(f"end of {log.name}:\n{text[-LOG_END_CHARACTERS:]}\n", file=sys.stderr)


def main(run=run) -> None:
    """Does what the settings on the command line say; `run` is given them and a directory for the node."""
    settings = json.loads(sys.argv[1])
    # The parent ends a node that takes too long this way; ray.shutdown must still run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # A short path: those of the sockets below it may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="rb", ignore_cleanup_errors=True) as directory:
        try:
            result = run(settings, directory)
        except Exception:
            tell_raylet_logs(directory)
            raise
    Path(settings["out"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
