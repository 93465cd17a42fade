"""The native door beside the machine's limits, measured in the same run, and beside the stock raylet. See ../README.md.

    python benches/ray/bench_native.py --out bench-results/
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_ray import Bench, NodeFailed, REPOSITORY, GIB, stock_raylet

# Which measurement of node.py does on the stock raylet what an operation of the native door does: without a driver where that can be.
STOCK = {
    ("lease", 1): ("leases:1", "RequestWorkerLease and ReturnWorkerLease, gRPC"),
    ("lease", 64): ("leases:64", "the same, 64 in flight"),
    ("put", 1): ("plasma:put", "create, seal, release, delete on the store's socket"),
    ("put", 256): ("plasma:put", "the same, one after the other"),
    ("get", 1): ("plasma:get", "get and release on the store's socket"),
    ("wait", 1): ("plasma:contains", "contains on the store's socket"),
}
STOCK_NODE = list(dict.fromkeys(measurement for measurement, _ in STOCK.values()))
NATIVE_TIMEOUT_S = 600


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    release = REPOSITORY / "target" / "release"
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="directory for the results")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measured burst")
    parser.add_argument("--raylet", type=Path, default=release / "raylet-uring", help="ours")
    parser.add_argument("--stock", type=Path, help="the stock raylet; default: the one of this Python's ray")
    parser.add_argument("--load-generator", type=Path, default=release / "raylet-bench")
    parser.add_argument("--check", action="store_true", help="exit 1 where a promise is not kept")
    chosen = parser.parse_args()
    chosen.sides, chosen.rows, chosen.idle_seconds = ["stock"], [], 0.0
    return chosen


def native(chosen: argparse.Namespace) -> list[dict]:
    """The rows of ours, printed as they come."""
    command = [chosen.load_generator, "native", "--json", f"--raylet={chosen.raylet}", f"--seconds={chosen.seconds}"]
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            rows.append(json.loads(line))
            print(f"  {rows[-1]['op']} on the {rows[-1]['path']}", flush=True)
        if process.wait(NATIVE_TIMEOUT_S) != 0:
            raise SystemExit(f"the load generator ended with {process.returncode}")
    return rows


def stock(chosen: argparse.Namespace) -> dict[str, dict]:
    """Measurement -> figures of the stock raylet."""
    links = Path(tempfile.mkdtemp(prefix="raylet-bench-"))
    try:
        bench = Bench(chosen, links)
        measured = bench.node("stock", "node", STOCK_NODE, {})
        big = bench.node("stock", "plain", ["first_touch"], {})
    except NodeFailed as error:
        raise SystemExit(str(error)) from None
    finally:
        shutil.rmtree(links)
    for what, why in {**measured["failed"], **big["failed"]}.items():
        raise SystemExit(f"{what} failed on the stock raylet:\n{why}")
    return {**measured["measured"], **big["measured"]}


def beside(row: dict, figures: dict[str, dict]) -> dict:
    """The row with what the stock raylet takes for it."""
    if row["op"] == "put" and row["size_bytes"] == GIB:
        of, what = "first_touch", "ray.put of an array by a driver"
        p50_ns = GIB / figures[of]["gb_per_s"]
        return {**row, "stock_p50_ns": p50_ns, "stock_ops_per_s": 1e9 / p50_ns, "stock_is": what}
    of, what = STOCK.get((row["op"], row["in_flight"]), (None, None))
    if of is None:
        return {**row, "stock_p50_ns": None, "stock_ops_per_s": None, "stock_is": None}
    figure = figures[of]
    return {**row, "stock_p50_ns": figure["p50_us"] * 1e3, "stock_ops_per_s": figure["per_s"], "stock_is": what}


def size(size_bytes: int) -> str:
    for unit, step in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= step:
            return f" {size_bytes // step} {unit}"
    return ""


def name(row: dict) -> str:
    flight = f", {row['in_flight']} in flight" if row["in_flight"] > 1 else ""
    spins = ", spinning" if row["busy_poll"] else ""
    return f"{row['op']}{size(row['size_bytes'])}, {row['path']}{spins}{flight}"


def time_text(ns: float | None) -> str:
    if ns is None:
        return ""
    for unit, step in (("ms", 1e6), ("us", 1e3)):
        if ns >= step:
            return f"{ns / step:.3g} {unit}"
    return f"{ns:.0f} ns"


HEADINGS = ("row", "p50", "p99", "p99.99", "ops/s", "limit p50", "promise", "kept", "stock p50", "stock ops/s")


def cells(row: dict) -> tuple[str, ...]:
    promise = time_text(row["promise_p50_ns"]) or (f"{row['promise_ops_per_s']:,.0f}/s" if row["promise_ops_per_s"] else "")
    return (
        name(row),
        *(time_text(row[key]) for key in ("p50_ns", "p99_ns", "p9999_ns")),
        f"{row['ops_per_s']:,.0f}" if row["ops_per_s"] >= 100 else f"{row['ops_per_s']:.3g}",
        time_text(row["limit_p50_ns"]),
        promise,
        {True: "yes", False: "NO", None: ""}[row["kept"]],
        time_text(row["stock_p50_ns"]),
        f"{row['stock_ops_per_s']:,.0f}" if row["stock_ops_per_s"] else "",
    )


def markdown(rows: list[dict]) -> str:
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(cells(row) for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def plot(rows: list[dict], path: Path) -> None:
    """Each row a bar from p50 to p99, p99.99 as a dot, with the machine's limit, the promise and stock."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 1.5 + 0.4 * len(rows)))
    for y, row in enumerate(rows[::-1]):
        axes.plot([row["p50_ns"], row["p99_ns"]], [y, y], color="tab:blue", linewidth=6, alpha=0.5, solid_capstyle="butt")
        marks = (("p50_ns", "|", "tab:blue", 14), ("p9999_ns", ".", "tab:blue", 6), ("limit_p50_ns", "|", "black", 14))
        for key, mark, colour, width in (*marks, ("promise_p50_ns", "x", "tab:green", 6), ("stock_p50_ns", "d", "tab:red", 6)):
            if row[key]:
                axes.plot(row[key], y, mark, color=colour, markersize=width, markeredgewidth=2)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [name(row) for row in rows[::-1]], fontsize=8)
    axes.set_xlabel(
        "ns. blue: p50 to p99, dot p99.99; black line: the machine's limit; green cross: promised p50; red: stock raylet's p50"
    )
    axes.set_title(f"The native door ({os.cpu_count()} CPUs)", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    chosen = arguments()
    chosen.stock = chosen.stock or stock_raylet()
    print("the native door", flush=True)
    rows = native(chosen)
    print("the stock raylet", flush=True)
    figures = stock(chosen)
    rows = [beside(row, figures) for row in rows]
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "bench-native.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (chosen.out / "bench-native.md").write_text(markdown(rows))
    plot(rows, chosen.out / "bench-native.png")
    print()
    print(markdown(rows))
    print(f"written to {chosen.out}/bench-native.{{json,md,png}}")
    missed = [name(row) for row in rows if row["kept"] is False]
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return 1 if chosen.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
