"""`ray start --head`, drivers by address="auto", `ray stop`; run by test_lifecycle.py in a PID namespace of its own.

Argument: a directory. The last line printed is a JSON report.
"""

import json
import os
import subprocess
import sys

import psutil

import harness

DRIVER = """
import json, ray
ray.init(address="auto", log_to_driver=False)
square = ray.remote(lambda x: x * x)
print(json.dumps(ray.get([square.remote(i) for i in range(3)])))
"""


def main(directory):
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    subprocess.run(
        [*ray, "start", "--head", "--port=0", "--num-cpus=2", f"--object-store-memory={100 * harness.MIB}",
         "--include-dashboard=false", f"--temp-dir={directory}", "--disable-usage-stats"],
        check=True, stdin=subprocess.DEVNULL, timeout=60,
    )
    session = os.path.realpath(os.path.join(directory, "session_latest"))
    harness.assert_raylet_under_test(harness.raylet_of_session(session))
    squares = [json.loads(harness.run_program(DRIVER, environment=dict(os.environ)).splitlines()[-1]) for _ in range(2)]
    during = sum(process.info["name"] == "raylet" for process in psutil.process_iter(["name"]))
    subprocess.run([*ray, "stop"], check=True, stdin=subprocess.DEVNULL, timeout=60)
    me = psutil.Process()
    left = [process.cmdline() for process in psutil.process_iter()
            if process.pid not in (1, me.pid) and harness.is_alive(process)]
    sockets = [os.path.join(session, "sockets", name) for name in ("raylet", "plasma_store")]
    print(json.dumps({"squares": squares, "raylets_during": during, "left_processes": left, "sockets": sockets}))


def reap_until(child):
    """What a process with id 1 owes its namespace: collects orphans (Ray waits for them) until `child` ends."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    worker = os.fork()
    if worker:
        sys.exit(reap_until(worker))
    main(sys.argv[1])
