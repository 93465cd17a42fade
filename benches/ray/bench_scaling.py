"""Native leases and puts from one core to many: how throughput grows with the cores that serve. See ../README.md.

    python benches/ray/bench_scaling.py --out bench-results/

Each core of the node has a CPU of its own, and so has each client, so that a row of N cores takes 2 N CPUs; rows that this machine can't hold are
left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ROW_TIMEOUT_S = 120
# Operation -> requests in flight of each client.
OPERATIONS = {"lease": 64, "put": 256}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    release = REPOSITORY / "target" / "release"
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="directory for the results")
    parser.add_argument("--cores", default="1,2,4,8,16", help="numbers of cores")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each row, of which the median counts")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measured burst")
    parser.add_argument("--raylet", type=Path, default=release / "raylet-uring", help="ours")
    parser.add_argument("--load-generator", type=Path, default=release / "raylet-bench")
    parser.add_argument("--check", type=float, metavar="X", help="exit 1 where the largest number of cores does not give X times one core")
    chosen = parser.parse_args()
    chosen.cores = sorted({int(number) for number in chosen.cores.split(",")})
    return chosen


def layout(cores: int, cpus: list[int]) -> tuple[list[int], list[int]] | None:
    """CPUs of the node and of its clients; None where there are too few."""
    return (cpus[:cores], cpus[cores : 2 * cores]) if 2 * cores <= len(cpus) else None


def measure(chosen: argparse.Namespace, operation: str, node: list[int], clients: list[int]) -> float:
    """Operations in a second of all clients together."""
    command = [
        chosen.load_generator, operation, "--busy-poll", "--paths=ring", "--json",
        f"--raylet={chosen.raylet}", f"--seconds={chosen.seconds}",
        f"--in-flight={OPERATIONS[operation]}", f"--clients={len(clients)}",
        f"--node-cores={','.join(map(str, node))}", f"--client-cpus={','.join(map(str, clients))}",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=ROW_TIMEOUT_S)
    if ran.returncode != 0:
        raise SystemExit(f"{operation} on {len(node)} cores: {ran.stderr.strip()}")
    return json.loads(ran.stdout)["ops_per_s"]


def scaling(rows: list[dict]) -> list[dict]:
    """Each row with how many times the rate of the fewest cores it has, per operation."""
    first = {}
    for row in rows:
        first.setdefault(row["op"], row["ops_per_s"])
    return [{**row, "times_first": row["ops_per_s"] / first[row["op"]]} for row in rows]


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    for operation in OPERATIONS:
        points = [(row["cores"], row["ops_per_s"] / 1e6) for row in rows if row["op"] == operation]
        axes.plot(*zip(*points), "o-", label=operation)
        axes.plot([cores for cores, _ in points], [points[0][1] * cores / points[0][0] for cores, _ in points], ":", color="grey")
    axes.set_xlabel("cores that serve")
    axes.set_ylabel("million operations a second (dotted: in proportion)")
    axes.set_title("Native leases and puts by cores", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    chosen = arguments()
    cpus = sorted(os.sched_getaffinity(0))
    rows = []
    for cores in chosen.cores:
        if (places := layout(cores, cpus)) is None:
            print(f"{cores} cores: left out, it takes {2 * cores} CPUs and there are {len(cpus)}", flush=True)
            continue
        for operation in OPERATIONS:
            rates = sorted(measure(chosen, operation, *places) for _ in range(chosen.repeats))
            rows.append({"op": operation, "cores": cores, "ops_per_s": rates[len(rates) // 2], "samples": rates})
            print(f"{cores} cores: {operation} {rows[-1]['ops_per_s']:,.0f}/s", flush=True)
    if not rows:
        print(f"nothing was measured: {len(cpus)} CPUs are too few", file=sys.stderr)
        return 1
    rows = scaling(rows)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "bench-scaling.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot(rows, chosen.out / "bench-scaling.png")
    print(f"written to {chosen.out}/bench-scaling.{{json,png}}")
    most = [row for row in rows if row["cores"] == max(r["cores"] for r in rows)]
    return 1 if chosen.check and any(row["times_first"] < chosen.check for row in most) else 0


if __name__ == "__main__":
    sys.exit(main())
