"""One object to four hosts, each with a wire of its own, of which one wants the object no more while it sends it on, and one ends then.

`make test-netns`, as root. RAYLET_UNDER_TEST says whose raylet is meant, as in tests/ray.
"""

import pytest

import harness
from hosts import ray_cluster, raylet_of

SIZE = 64 * harness.MIB

#: What each host may send: slow enough for a look at what is under way.
BITS = 400_000_000

#: Arguments: whose raylet, the binary that tells of it, bytes of the object, pids of the raylets.
BROADCAST = """
import json, os, signal, subprocess, sys, time, zlib
import numpy as np
import ray
kind, binary, size, *pids = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
ray.init(address="10.77.0.1:6379", log_to_driver=False)

@ray.remote(num_cpus=0, max_retries=0)
def checksum(refs):
    return zlib.crc32(ray.get(refs[0]))

def transfers():
    out = subprocess.run([binary, "status", "--json"], capture_output=True, text=True, timeout=60).stdout
    told = {node["pid"]: node["transfer"] for node in json.loads(out)}
    return {pid: told[pid] for pid in pids if pid in told}

def sent(before, what):
    return {pid: told[what] - before[pid][what] for pid, told in transfers().items()}

def broadcast(seed):
    data = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    ref = ray.put(data)
    return zlib.crc32(data), [checksum.options(resources={f"host{n}": 0.001}).remote([ref]) for n in range(1, 5)]

deadline = time.monotonic() + 90
while len(ray.nodes()) < 5:
    assert time.monotonic() < deadline, "five nodes"
    time.sleep(0.1)
# Workers are there, and lanes open, before anything is measured.
ray.get([checksum.options(resources={f"host{n}": 0.001}).remote([ray.put(bytes(1000))]) for n in range(1, 5)])
before = transfers() if kind == "ours" else {}
began = time.monotonic()
right, sums = broadcast(1)
assert ray.get(sums, timeout=150) == [right] * 4
took = time.monotonic() - began
if kind == "ours":
    copies = {pid: n / size for pid, n in sent(before, "lane_sent_bytes").items()}
    print(f"{took:.1f} s, copies sent: {[round(copies[pid], 2) for pid in pids]}")
    assert 2 <= copies[pids[0]] < 2.5, f"the source sent {copies} copies"

def begun(seed):
    # A broadcast of which a node sends on what it is still receiving: its checksums by raylet, and that node.
    before = transfers() if kind == "ours" else {}
    right, sums = broadcast(seed)
    relays = pids[1:2]
    while kind == "ours" and not (relays := [pid for pid, n in sent(before, "relay_sent_bytes").items() if n > 0]):
        assert time.monotonic() < began + 150, "nobody sends on what it receives"
    return right, dict(zip(pids[1:], sums)), relays[0]

right, sums, relay = begun(2)
ray.cancel(sums.pop(relay), force=True)
assert ray.get(list(sums.values()), timeout=150) == [right] * 3
print("wanted no more")

right, sums, relay = begun(3)
os.kill(relay, signal.SIGKILL)
sums.pop(relay)
assert ray.get(list(sums.values()), timeout=150) == [right] * 3
print("survived")
"""


@pytest.fixture
def cluster():
    """Five hosts and their nodes."""
    with ray_cluster(5, store_bytes=3 * SIZE) as running:
        yield running


def test_a_broadcast_costs_its_source_two_sends_and_survives_nodes_that_send_it_on(cluster):
    machines, environment = cluster
    for host in machines:
        host.limit_sending(BITS)
    pids = [raylet_of(host).pid for host in machines]
    arguments = harness.UNDER_TEST, harness.our_binary(), SIZE, *pids
    out = machines[0].program(BROADCAST, *arguments, environment=environment, timeout_s=350)
    print(out)
    assert "survived" in out
