"""SIGTERM with a time to drain (`drain_timeout_ms`): leases end by themselves, or are broken off when it is over.

Ray's own raylet ends at once; of it, the tests ask only that it ends.
"""

import json
import signal

import pytest

import harness
from harness import OURS

#: A driver whose task ends when a file appears; says where the node is, then what the task returned.
DRIVER = """
import json, os, sys, time
import ray
directory, wanted = sys.argv[1:]
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=directory,
         object_store_memory=100 * 1024 * 1024)

@ray.remote(max_retries=0)
def wait(path):
    open(path + ".begun", "w").close()
    while not os.path.exists(path):
        time.sleep(0.05)
    return "done"

answer = wait.remote(wanted)
while not os.path.exists(wanted + ".begun"):
    time.sleep(0.05)
print(json.dumps({"session": ray._private.worker._global_node.get_session_dir_path()}), flush=True)
try:
    print(ray.get(answer), flush=True)
except Exception as error:
    print(type(error).__name__, flush=True)
time.sleep(300)
"""


@pytest.fixture
def busy():
    """Gives a function that starts a node with a time to drain and one task: its driver, its raylet, the task's file."""
    with harness.short_directory() as directory:
        wanted = f"{directory}/end"
        running = []

        def start(drain_timeout_ms):
            environment = harness.clean_environment(RAYLET_URING_DRAIN_TIMEOUT_MS=drain_timeout_ms if OURS else None)
            child = harness.background_program(DRIVER, directory, wanted, environment=environment)
            driver = child.__enter__()
            running.append((child, driver))
            raylet = harness.raylet_of_session(json.loads(driver.stdout.readline())["session"])
            harness.assert_raylet_under_test(raylet)
            return driver, raylet, wanted

        yield start
        for child, driver in running:
            everything = harness.descendants(harness.psutil.Process(driver.pid))
            child.__exit__(None, None, None)
            harness.assert_all_gone(everything, "the node ends with its driver")


def test_a_lease_ends_before_the_node(busy):
    """The node waits for the task, whose result arrives, and ends then."""
    driver, raylet, wanted = busy(120_000)
    log = raylet_log(raylet)
    raylet.send_signal(signal.SIGTERM)
    if OURS:
        harness.wait_until(lambda: "draining" in log(), "the node drains")
        open(wanted, "w").close()
        assert driver.stdout.readline().strip() == "done"
        harness.wait_until(lambda: "drained: no lease is left" in log(), "the node is drained")
    harness.assert_all_gone([raylet], "the raylet ends")


def test_the_deadline_ends_the_wait(busy):
    """A task that does not end is broken off."""
    _, raylet, _ = busy(500)
    log = raylet_log(raylet)
    raylet.send_signal(signal.SIGTERM)
    harness.assert_all_gone([raylet], "the raylet ends at the deadline")
    assert not OURS or "are broken off" in log()


def test_a_second_signal_ends_the_wait(busy):
    """Whoever asks twice does not want to wait."""
    _, raylet, _ = busy(3_600_000)
    log = raylet_log(raylet)
    raylet.send_signal(signal.SIGTERM)
    if OURS:
        harness.wait_until(lambda: "draining" in log(), "the node drains")
        raylet.send_signal(signal.SIGTERM)
    harness.assert_all_gone([raylet], "the raylet ends")


def raylet_log(raylet):
    """Reads the log of a raylet, which outlives it."""
    flag = next(argument for argument in raylet.cmdline() if argument.startswith("--stdout_filepath="))
    path = flag.split("=", 1)[1]

    def read():
        with open(path, errors="replace") as file:
            return file.read()

    return read
