"""`make run`: starts Ray on raylet-uring, runs each program of tests/programs on it, prints a table.

The exit status is 0 where every program succeeded and the raylet that served them is the one built here.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
PROGRAMS = ["squares", "counter", "many_refs", "data", "tune_grid", "serve_http"]
PROGRAM_TIMEOUT_S = 180

sys.path.insert(0, str(REPOSITORY / "tests" / "ray"))
import harness  # noqa: E402


def run(name, node):
    """Runs one program on the node; returns (what it reported, None) or (None, why it failed)."""
    # Serve replaces a proxy that is not up in 5 s, which a busy two-core machine does not always manage.
    environment = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "40", **os.environ, "RAY_ADDRESS": node.address}
    try:
        done = subprocess.run(
            [sys.executable, REPOSITORY / "tests" / "programs" / f"{name}.py"],
            capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, stdin=subprocess.DEVNULL, env=environment,
        )
    except subprocess.TimeoutExpired:
        return None, f"not done after {PROGRAM_TIMEOUT_S} s"
    if done.returncode != 0:
        return None, f"exit status {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1]), None


def main():
    began = time.perf_counter()
    version = subprocess.run([harness.our_binary(), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    failures = []
    with harness.local_node(num_cpus=4) as node:
        raylet = f"{version}, pid {node.raylet.pid}"
        print(f"Ray {__import__('ray').__version__} runs on {raylet} (started in {time.perf_counter() - began:.1f} s)\n")
        print(f"{'program':<12} {'seconds':>8}  {'result':<52} raylet")
        for name in PROGRAMS:
            report, failure = run(name, node)
            if failure:
                failures.append((name, failure))
                print(f"{name:<12} {'-':>8}  {'FAILED':<52} {raylet}", flush=True)
            else:
                print(f"{name:<12} {report['seconds']:>8.2f}  {report['result']:<52} {raylet}", flush=True)
        harness.assert_raylet_under_test(node.raylet)
    for name, failure in failures:
        print(f"\n{name}: {failure}", file=sys.stderr)
    took = time.perf_counter() - began
    print(f"\n{'FAILED' if failures else 'success'}: {len(PROGRAMS) - len(failures)} of {len(PROGRAMS)} programs in {took:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
