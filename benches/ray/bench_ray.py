"""The stock raylet and ours, in turn, under the same driver on the same machine. See ../README.md.

    python benches/ray/bench_ray.py --out bench-results/
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pages
import report
from rows import CHOICES, MEASUREMENTS, ONE_OF_STOCK, PROGRAM_FILES, PROGRAMS, ROWS, WIDE_MEASUREMENTS

MIB = 1 << 20
GIB = 1 << 30
REPOSITORY = Path(__file__).resolve().parents[2]

NODE_STORE_BYTES = 1 * GIB
# What the machines this is read on have, and few enough that leases queue.
NODE_CPUS = 2
# One for each lease in flight: every request is granted as it comes, so the raylet bounds the rate and not how long a lease is held.
WIDE_NODE_CPUS = 16
FIRST_TOUCH_KINDS = ("plain", "warm", "huge")
FIRST_TOUCH_STORE_BYTES = 3 * GIB
FIRST_TOUCH_RESERVE_BYTES = 2 * GIB
RESERVE_VARIABLE = "RAYLET_URING_WARM_RESERVE_BYTES"
SAME_HOST_VARIABLE = "RAYLET_URING_BULK_SAME_HOST"
# Beyond the store itself: what a node may round up to.
HUGE_PAGE_SLACK_BYTES = 128 * MIB

# With more than this in the run queue before the first node, others are measured too.
BUSY_LOAD_PER_CPU = 0.5

# A node with all its rows takes less than two minutes.
NODE_TIMEOUT_S = 300
END_TIMEOUT_S = 15


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    release = REPOSITORY / "target" / "release"
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="directory for the results")
    parser.add_argument("--alternations", type=int, default=5, help="how often each raylet has its turn")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measured burst")
    parser.add_argument("--idle-seconds", type=float, default=20.0, help="length of the idle row")
    parser.add_argument("--heavy-alternations", type=int, default=3, help="in how many of those objects move and spill")
    parser.add_argument("--rows", default=",".join(CHOICES), help="which rows, of %(default)s")
    parser.add_argument("--quick", action="store_true", help="one alternation of 1 s bursts, 5 s idle")
    parser.add_argument("--raylet", type=Path, default=release / "raylet-uring", help="ours")
    parser.add_argument("--stock", type=Path, help="the stock raylet; default: the one of this Python's ray")
    parser.add_argument("--load-generator", type=Path, default=release / "raylet-bench")
    parser.add_argument("--sides", default="stock,ours", help="measure only one of them")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target is not reached")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.alternations, chosen.seconds, chosen.idle_seconds = 1, 1.0, 5.0
    chosen.rows = [row.strip() for row in chosen.rows.split(",") if row.strip()]
    if unknown := [row for row in chosen.rows if row not in CHOICES]:
        parser.error(f"--rows: unknown {', '.join(unknown)}; known are {', '.join(CHOICES)}")
    chosen.sides = chosen.sides.split(",")
    if not set(chosen.sides) <= {"stock", "ours"}:
        parser.error("--sides: stock, ours, or both with a comma")
    return chosen


def stock_raylet() -> Path:
    """Ray's own raylet, which `raylet-uring attach` puts aside as raylet.stock."""
    from ray._private import services

    installed = Path(services.RAYLET_EXECUTABLE)
    aside = installed.with_name("raylet.stock")
    return aside if aside.exists() else installed


def need(path: Path, what: str) -> Path:
    if not path.exists():
        sys.exit(f"{what} is not at {path}: build it with `cargo build --release --workspace`, or name another")
    return path.resolve()


class Bench:
    """All samples of a run."""

    def __init__(self, chosen: argparse.Namespace, links: Path):
        self.chosen = chosen
        self.raylets = {}
        if "stock" in chosen.sides:
            self.raylets["stock"] = need(chosen.stock or stock_raylet(), "the stock raylet")
        if "ours" in chosen.sides:
            # The name that it is started by makes our program a raylet.
            link = links / "raylet"
            link.symlink_to(need(chosen.raylet, "our raylet"))
            self.raylets["ours"] = link
        self.load_generator = need(chosen.load_generator, "the load generator")
        self.samples: dict[str, dict[str, dict[int, float]]] = {}
        self.failures: list[dict] = []
        self.raw: list[dict] = []

    def kinds(self, alternation: int, side: str) -> list[tuple[str, list[str], dict]]:
        """The nodes that a side's turn starts: kind, measurements, environment."""
        choice = [row.replace("-", "_") for row in self.chosen.rows]
        wanted = [m for m in MEASUREMENTS if m.partition(":")[0] in choice]
        nodes = [("node", wanted, {})] if wanted else []
        if wide := [m for m in WIDE_MEASUREMENTS if m.partition(":")[0] in choice]:
            nodes.append(("wide", wide, {}))
        for program, measurements in PROGRAMS.items() if alternation < self.chosen.heavy_alternations else ():
            if side == "stock" and any(program in kinds for kinds in ONE_OF_STOCK.values()):
                continue
            if chosen := [m for m in measurements if m.partition(":")[0] in choice]:
                nodes.append((program, chosen, {SAME_HOST_VARIABLE: "false"} if program == "wired" else {}))
        if "first_touch" not in choice:
            return nodes
        if side == "stock":
            return [*nodes, ("plain", ["first_touch"], {})]
        reserve = {RESERVE_VARIABLE: str(FIRST_TOUCH_RESERVE_BYTES)}
        return [
            *nodes,
            ("warm", ["first_touch"], reserve),
            ("huge", ["first_touch"], {**reserve, "RAYLET_URING_HUGEPAGES": "2M"}),
        ]

    def turn(self, alternation: int, side: str) -> None:
        for kind, measurements, environment in self.kinds(alternation, side):
            begin = time.monotonic()
            huge_bytes = FIRST_TOUCH_STORE_BYTES + HUGE_PAGE_SLACK_BYTES if kind == "huge" else 0
            try:
                with pages.reserved(huge_bytes):
                    result = self.node(side, kind, measurements, environment)
            except (pages.NoHugePages, NodeFailed) as error:
                result = {"measured": {}, "failed": {m: str(error) for m in measurements}}
            took_s = time.monotonic() - begin
            trouble = f"  FAILED: {', '.join(result['failed'])}" if result["failed"] else ""
            print(f"  {side:5} {kind:5} {took_s:6.1f} s{trouble}", flush=True)
            self.raw.append({"alternation": alternation, "side": side, "kind": kind, "took_s": took_s, **result})
            self.take(alternation, side, kind, result)

    def take(self, alternation: int, side: str, kind: str, result: dict) -> None:
        for row in ROWS:
            # Stock has no such settings.
            if row.kind != kind and not (side == "stock" and row.kind in ONE_OF_STOCK.get(kind, ())):
                continue
            if (why := result["failed"].get(row.measurement)) is not None:
                self.samples.setdefault(row.name, {})
                self.failures.append({"alternation": alternation, "side": side, "row": row.name, "why": why})
            elif row.measurement in result["measured"]:
                figure = result["measured"][row.measurement][row.figure]
                self.samples.setdefault(row.name, {}).setdefault(side, {})[alternation] = figure

    def node(self, side: str, kind: str, measurements: list[str], environment: dict) -> dict:
        """A node in a process of its own, which is ended where it takes too long."""
        with tempfile.TemporaryDirectory(prefix="raylet-bench-") as directory:
            out = Path(directory) / "result.json"
            settings = {
                "raylet": str(self.raylets[side]),
                "rows": measurements,
                "cpus": WIDE_NODE_CPUS if kind == "wide" else NODE_CPUS,
                "object_store_bytes": FIRST_TOUCH_STORE_BYTES if kind in FIRST_TOUCH_KINDS else NODE_STORE_BYTES,
                "reserve_bytes": int(environment.get(RESERVE_VARIABLE, 0)),
                "seconds": self.chosen.seconds,
                "idle_s": self.chosen.idle_seconds,
                "load_generator": str(self.load_generator),
                "out": str(out),
            }
            program = PROGRAM_FILES.get(kind, "node.py")
            command = [sys.executable, str(Path(__file__).with_name(program)), json.dumps(settings)]
            env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **environment}
            log = Path(directory) / "log"
            with log.open("w") as output:
                process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
                try:
                    process.wait(NODE_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    raise NodeFailed(f"the node was not done after {NODE_TIMEOUT_S} s:\n{tail(log)}") from None
                finally:
                    end(process)
            if process.returncode != 0 or not out.exists():
                raise NodeFailed(f"the node's driver ended with {process.returncode}:\n{tail(log)}")
            return json.loads(out.read_text())

    def write(self) -> list[dict]:
        rows = report.summarise(self.samples, self.failures)
        out = self.chosen.out
        out.mkdir(parents=True, exist_ok=True)
        result = {"about": about(self.chosen, self.raylets), "rows": rows, "nodes": self.raw}
        (out / "bench-ray.json").write_text(json.dumps(result, indent=1))
        (out / "bench-ray.md").write_text(report.markdown(rows))
        run = f"{result['about']['cpus']} CPUs, {self.chosen.alternations} alternations, Ray {result['about']['ray']}"
        report.plot(rows, f"raylet-uring beside the stock raylet ({run})", out / "bench-ray.png")
        return rows


def failures(bench: Bench) -> dict[str, list[str]]:
    """Each reason once, with the sides and rows that it befell."""
    affected: dict[str, list[str]] = {}
    for failure in bench.failures:
        names = affected.setdefault(failure["why"], [])
        if (name := f"{failure['row']} of {failure['side']}") not in names:
            names.append(name)
    return affected


class NodeFailed(Exception):
    """A node that gave no result."""


def end(process: subprocess.Popen) -> None:
    """Ends a driver; the node that it started follows it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tail(path: Path) -> str:
    return path.read_text(errors="replace")[-4000:]


def about(chosen: argparse.Namespace, raylets: dict[str, Path]) -> dict:
    from importlib.metadata import version

    return {
        "ray": version("ray"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "raylet_size_bytes": {side: path.stat().st_size for side, path in raylets.items()},
        "alternations": chosen.alternations,
        "seconds": chosen.seconds,
        "idle_seconds": chosen.idle_seconds,
        "load_average_before": chosen.load_average_before,
    }


def main() -> int:
    chosen = arguments()
    chosen.load_average_before = os.getloadavg()[0]
    if chosen.load_average_before > BUSY_LOAD_PER_CPU * (os.cpu_count() or 1):
        load = chosen.load_average_before
        print(f"warning: this machine is busy (load average {load:.1f}): expect noise, above all in wall times")
    # A terminated run must give its huge pages back and end its node.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    links = Path(tempfile.mkdtemp(prefix="raylet-bench-"))
    try:
        bench = Bench(chosen, links)
        rows = []
        for alternation in range(chosen.alternations):
            print(f"alternation {alternation + 1} of {chosen.alternations}", flush=True)
            # Each goes first as often as the other.
            for side in chosen.sides if alternation % 2 == 0 else chosen.sides[::-1]:
                bench.turn(alternation, side)
            rows = bench.write()
    finally:
        shutil.rmtree(links)
    print()
    print(report.table(rows))
    for why, affected in failures(bench).items():
        print(f"\nFAILED: {', '.join(affected)}\n{why.rstrip()}", file=sys.stderr)
    print(f"\nwritten to {chosen.out}/bench-ray.{{json,md,png}}")
    missed = [entry for entry in rows if entry["reached"] is False]
    return 1 if bench.failures or (chosen.check and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
