"""The rows of the table: what is measured, which way is better, and what is to be reached."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Row:
    """A figure of one measurement, for stock and for ours."""

    name: str
    text: str
    measurement: str  # which measurement of node.py; the part before the colon is what --rows chooses
    figure: str  # which of its figures
    unit: str
    lower_is_better: bool = False
    target: float | None = None  # the improvement over stock to reach
    limit: float | None = None  # or: ours to stay below this, whatever stock does
    least: float | None = None  # or: ours to reach this at least
    kind: str = "node"  # which kind of node of ours it is measured on

    @property
    def choice(self) -> str:
        return self.measurement.partition(":")[0]


def _lower(name, text, measurement, figure, unit, **rest) -> Row:
    return Row(name, text, measurement, figure, unit, lower_is_better=True, **rest)


def _leases(
    in_flight: int, cpu_target: float | None = None, rate_target: float | None = None, kind: str = "node"
) -> list[Row]:
    name, text, of = f"lease{in_flight}", f"lease pairs, {in_flight} in flight", f"leases:{in_flight}"
    if kind == "wide":
        name, text = f"{name}_wide", f"{text}, a CPU for each"
    limit = 10.0 if in_flight == 64 else None
    return [
        _lower(f"{name}_cpu", f"{text}: raylet CPU per pair", of, "raylet_cpu_us", "us", target=cpu_target, kind=kind),
        Row(f"{name}_rate", f"{text}: pairs/s", of, "per_s", "/s", target=rate_target, kind=kind),
        _lower(f"{name}_p50", f"{text}: p50", of, "p50_us", "us", kind=kind),
        _lower(f"{name}_p99", f"{text}: p99", of, "p99_us", "us", kind=kind),
        _lower(f"{name}_starvation", f"{text}: p99 / p50", of, "p99_to_p50", "", limit=limit, kind=kind),
    ]


def _shapes(count: int, target: float | None = None) -> list[Row]:
    name, text, of = f"shapes{count}", f"{count} shapes queued", f"shapes:{count}"
    return [
        Row(f"{name}_rate", f"{text}: leases/s", of, "per_s", "/s", target=target),
        _lower(f"{name}_cpu", f"{text}: raylet CPU per lease", of, "raylet_cpu_us", "us"),
    ]


def _first_put(name: str, text: str, kind: str, target: float) -> Row:
    return Row(name, f"first put of 1 GiB, {text}", "first_touch", "gb_per_s", "GB/s", target=target, kind=kind)


def _pull(size: str, text: str, **at) -> list[Row]:
    name, text, of = f"pull{size}", f"pull {text}", f"pull:{size}"
    return [
        Row(f"{name}_rate", f"{text}: GB/s", of, "gb_per_s", "GB/s", target=3.0, **at),
        Row(f"{name}_share", f"{text}: share of the plain stream", of, "of_stream", "", least=0.8, **at),
        _lower(f"{name}_cpu", f"{text}: CPU per GB, both sides", of, "cpu_s_per_gb", "s", target=3.0, **at),
    ]


def _moving(kind: str, suffix: str, text: str) -> list[Row]:
    rows = [
        _lower("pull1M_p50", "pull 1 MiB: p50", "pull:1M", "p50_ms", "ms", target=3.0, kind=kind),
        *_pull("100M", "100 MiB", kind=kind),
        *_pull("1G", "1 GiB", kind=kind),
        Row("pullbatch_rate", "pull 200 x 1 MiB: GB/s", "pull:batch", "gb_per_s", "GB/s", kind=kind),
        Row("pullbatch_share", "pull 200 x 1 MiB: share of the plain stream", "pull:batch", "of_stream", "", kind=kind),
        _lower("pullbatch_cpu", "pull 200 x 1 MiB: CPU per GB", "pull:batch", "cpu_s_per_gb", "s", kind=kind),
        Row("broadcast_rate", "256 MiB to 4 nodes: GB/s, all together", "broadcast", "gb_per_s", "GB/s", target=3.0, kind=kind),
        _lower("broadcast_cpu", "256 MiB to 4 nodes: CPU per GB", "broadcast", "cpu_s_per_gb", "s", kind=kind),
    ]
    return [replace(row, name=row.name + suffix, text=row.text + text) for row in rows]


# Between nodes on this machine, and to its disk. Ours copies between nodes of one host from memory to memory, and has a second turn in which
# it sends by TCP, as between hosts; stock always does that.
MOVING_ROWS: list[Row] = [
    Row("stream_rate", "a plain TCP stream, no raylet: GB/s", "pull:stream", "gb_per_s", "GB/s", kind="wired"),
    _lower("stream_cpu", "a plain TCP stream: CPU per GB", "pull:stream", "cpu_s_per_gb", "s", kind="wired"),
    *_moving("moving", "", ""),
    *_moving("wired", "_tcp", ", by TCP"),
]


def _disk(name: str, text: str, figure: str) -> list[Row]:
    return [
        Row(f"{name}_rate", f"{text}: GB/s", "spill", f"{figure}_gb_per_s", "GB/s", target=2.0, kind="spilling"),
        Row(f"{name}_share", f"{text}: share of the disk's rate", "spill", f"{figure}_of_disk", "", least=0.8, kind="spilling"),
        _lower(f"{name}_cpu", f"{text}: CPU per GB, IO workers too", "spill", f"{figure}_cpu_s_per_gb", "s", kind="spilling"),
    ]


SPILLING_ROWS: list[Row] = [
    Row("disk_write", "the disk, no raylet: O_DIRECT write, GB/s", "spill", "disk_write_gb_per_s", "GB/s", kind="spilling"),
    Row("disk_read", "the disk, no raylet: O_DIRECT read, GB/s", "spill", "disk_read_gb_per_s", "GB/s", kind="spilling"),
    *_disk("spill", "put 4 GiB into 1 GiB", "put"),
    *_disk("restore", "restore while reading it back", "restore"),
    _lower("io_workers", "Python IO workers started for spilling", "spill", "io_workers", "", limit=1.0, kind="spilling"),
]

ROWS: list[Row] = [
    _lower("floor_cpu", "an empty answer on a Unix socket, no raylet: CPU", "floor", "cpu_us", "us"),
    _lower("put_cpu", "put 1 KiB: raylet CPU per put", "puts", "raylet_cpu_us", "us", target=6.0),
    Row("put_rate", "put 1 KiB: puts/s, one driver", "puts", "per_s", "/s", target=1.4),
    _lower("put_p50", "put 1 KiB: p50", "puts", "p50_us", "us"),
    _lower("get_cpu", "get 1 KiB: raylet CPU per get", "gets", "raylet_cpu_us", "us", target=2.0),
    Row("get_rate", "get 1 KiB: gets/s, one driver", "gets", "per_s", "/s"),
    _lower("get_p50", "get 1 KiB: p50", "gets", "p50_us", "us"),
    *_leases(1),
    *_leases(16, cpu_target=4.0, rate_target=3.0),
    *_leases(64),
    *_leases(16, cpu_target=4.0, rate_target=3.0, kind="wide"),
    *_shapes(10),
    *_shapes(100),
    *_shapes(500, target=4.0),
    _lower("task_cpu", "sync task: raylet CPU per task", "tasks", "raylet_cpu_us", "us", target=4.0),
    Row("task_rate", "sync task: tasks/s", "tasks", "per_s", "/s"),
    _first_put("first_touch_huge", "ours with --hugepages", "huge", target=3.5),
    _first_put("first_touch", "ours without", "warm", target=1.7),
    _lower("init", "ray.init()", "init", "s", "s", target=1.4),
    _lower("idle_cpu", "idle: CPU", "idle", "cpu_percent", "% of a core", target=1.0),
    _lower("idle_rss", "idle: RSS without arenas", "idle", "rss_mib", "MiB", target=1.0),
    _lower("idle_threads", "idle: threads", "idle", "threads", ""),
    *MOVING_ROWS,
    *SPILLING_ROWS,
]

# The order in which a node is measured: what needs it fresh first.
MEASUREMENTS = list(dict.fromkeys(["init", "idle", *(r.measurement for r in ROWS if r.kind == "node")]))

# On the node that has a CPU for each lease in flight.
WIDE_MEASUREMENTS = list(dict.fromkeys(r.measurement for r in ROWS if r.kind == "wide"))

# With programs of their own, which start what they need.
PROGRAMS = {
    kind: list(dict.fromkeys(r.measurement for r in ROWS if r.kind == kind)) for kind in ("moving", "wired", "spilling")
}
PROGRAM_FILES = {"moving": "moving.py", "wired": "moving.py", "spilling": "spilling.py"}

# Kinds of ours that differ by settings of ours alone: one turn of stock stands beside all of them.
ONE_OF_STOCK = {"plain": ("warm", "huge"), "wired": ("moving",)}

CHOICES = list(dict.fromkeys(r.choice.replace("_", "-") for r in ROWS))

# Ours at 500 shapes must be within 20 % of ours at 10.
FLAT_SHAPES = ("shapes500_rate", "shapes10_rate", 0.8)
