"""Three hosts with a network between them: a cable that is pulled for a moment, and for good.

`make test-netns`, as root. RAYLET_UNDER_TEST says whose raylet is meant, as in tests/ray.
"""

import pytest

import harness
from hosts import ray_cluster, raylet_of

#: Beginning of each program: connects, and knows its tasks.
DRIVER = """
import json, os, sys, time
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init(address="10.77.0.1:6379", log_to_driver=False)

def wait_until(condition, what):
    deadline = time.monotonic() + 90
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return value

alive = lambda: {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}

@ray.remote(num_cpus=1)
def where():
    return ray.util.get_node_ip_address()

@ray.remote(num_cpus=1, max_retries=3)
def gate(directory):
    here = ray.util.get_node_ip_address()
    open(os.path.join(directory, "begun-" + here), "w").close()
    while here == "10.77.0.3" and not os.path.exists(os.path.join(directory, "end")):
        time.sleep(0.1)
    return here

on = lambda number: {f"host{number}": 0.001}
wait_until(lambda: len(alive()) == 3, "three nodes")
"""


@pytest.fixture
def cluster():
    """Three hosts and their nodes."""
    with ray_cluster(3) as running:
        yield running


def test_a_partition_that_heals_is_survived(cluster, tmp_path):
    """A task runs on a host while its cable is out for two seconds. The node lives on, and so does the task."""
    machines, environment = cluster
    out = machines[0].program(DRIVER + """
directory = sys.argv[1]
before = alive()
assert ray.get([where.options(resources=on(n)).remote() for n in range(3)]) == [f"10.77.0.{n + 1}" for n in range(3)]
held = gate.options(resources=on(2)).remote(directory)
wait_until(lambda: os.path.exists(os.path.join(directory, "begun-10.77.0.3")), "the task runs")
os.system("ip -n %s link set %s down" % (sys.argv[2], sys.argv[3]))
time.sleep(2)
os.system("ip -n %s link set %s up" % (sys.argv[2], sys.argv[3]))
open(os.path.join(directory, "end"), "w").close()
assert ray.get(held, timeout=90) == "10.77.0.3"
assert ray.get([where.options(resources=on(n)).remote() for n in range(3)], timeout=90) == [f"10.77.0.{n + 1}" for n in range(3)]
assert alive() == before
print("survived")
""", tmp_path, machines[2].hosts.switch, machines[2].cable, environment=environment, timeout_s=200)
    assert "survived" in out


def test_a_host_that_stays_cut_off_is_given_up_and_ends_when_it_is_back(cluster, tmp_path):
    """Work goes to the others. When the cable is back, its node learns that it is dead, and ends; what it ran is tried again
    elsewhere then, because only then Ray's owners see the connection end."""
    machines, environment = cluster
    cut = machines[2]
    raylet = raylet_of(cut)
    out = machines[0].program(DRIVER + """
directory = sys.argv[1]
there = NodeAffinitySchedulingStrategy(next(node for node, address in alive().items() if address == "10.77.0.3"), soft=True)
held = gate.options(scheduling_strategy=there).remote(directory)
wait_until(lambda: os.path.exists(os.path.join(directory, "begun-10.77.0.3")), "the task runs")
os.system("ip -n %s link set %s down" % (sys.argv[2], sys.argv[3]))
wait_until(lambda: len(alive()) == 2, "the host is given up")
assert ray.get(where.options(scheduling_strategy=there).remote(), timeout=90) in ("10.77.0.1", "10.77.0.2")
os.system("ip -n %s link set %s up" % (sys.argv[2], sys.argv[3]))
assert ray.get(held, timeout=90) in ("10.77.0.1", "10.77.0.2")
print("elsewhere")
""", tmp_path, cut.hosts.switch, cut.cable, environment=environment, timeout_s=220)
    assert "elsewhere" in out
    harness.assert_all_gone([raylet], "the raylet that was given up ends", timeout_s=90)
