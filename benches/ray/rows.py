"""The rows of the table: what is measured, which way is better, and what is to be reached."""

from __future__ import annotations

from dataclasses import dataclass


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
]

# The order in which a node is measured: what needs it fresh first.
MEASUREMENTS = list(dict.fromkeys(["init", "idle", *(r.measurement for r in ROWS if r.kind == "node")]))

# On the node that has a CPU for each lease in flight.
WIDE_MEASUREMENTS = list(dict.fromkeys(r.measurement for r in ROWS if r.kind == "wide"))

CHOICES = list(dict.fromkeys(r.choice.replace("_", "-") for r in ROWS))

# Ours at 500 shapes must be within 20 % of ours at 10.
FLAT_SHAPES = ("shapes500_rate", "shapes10_rate", 0.8)
