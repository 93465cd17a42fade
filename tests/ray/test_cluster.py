"""A cluster of several nodes: which node runs what, and what becomes of it when nodes come and go."""

import gc
import os
import subprocess
import sys
import time

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

import harness
from places import meet, where

#: Several nodes and their agents share the machine with whatever else runs.
pytestmark = pytest.mark.timeout(300)

#: ray.rpc.autoscaler.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
DRAIN_PREEMPTION = 2


@pytest.fixture(scope="module")
def cluster():
    """A head node and two others, each with 2 CPUs, a resource of its own, and a label."""
    with harness.cluster() as running:
        running.add(resources={"head": 4}, labels={"zone": "a"})
        running.add(resources={"left": 4}, labels={"zone": "b"})
        running.add(resources={"right": 4}, labels={"zone": "c"})
        running.connect()
        yield running


@pytest.fixture(autouse=True)
def nothing_held(cluster):
    """After each test everything is free again, on every node."""
    yield
    # An exception that the test expected keeps its frames, and so the test's actors, until the collector finds them.
    gc.collect()

    def free():
        total, left = ray.cluster_resources(), ray.available_resources()
        return all(abs(left.get(name, 0) - total[name]) < 1e-6 for name in total if not name.startswith("object_store"))

    harness.wait_until(free, "every resource is free again", every_s=0.1)


@ray.remote(num_cpus=1)
class Counter:
    """An actor that says where it is."""

    def where(self):
        return ray.get_runtime_context().get_node_id()


def ids(cluster):
    """Ids of the three nodes."""
    return [node.id for node in cluster.nodes[:3]]


def test_every_node_is_known_with_what_it_has(cluster):
    """The GCS's table and the sums of it."""
    nodes = {node["NodeID"]: node for node in ray.nodes()}
    assert set(ids(cluster)) == set(nodes)
    for node in cluster.nodes:
        assert nodes[node.id]["NodeManagerPort"] and nodes[node.id]["Resources"]["CPU"] == 2
    assert ray.cluster_resources()["CPU"] == 6
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", cluster.cluster.address]
    status = lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    harness.wait_until(lambda: "0.0/6.0 CPU" in status(), "`ray status` adds the nodes up", every_s=1)


def test_a_task_runs_where_its_resource_is(cluster):
    """Tasks and actors that ask for what one node has."""
    _, left, right = ids(cluster)
    for name, node in [("left", left), ("right", right)]:
        found = harness.get([where.options(resources={name: 1}).remote() for _ in range(4)])
        assert set(found) == {node}
    actor = Counter.options(resources={"right": 1}).remote()
    assert harness.get(actor.where.remote()) == right


def test_spread_uses_every_node(cluster, tmp_path):
    """Six tasks that meet, spread."""
    found = harness.get([meet.options(scheduling_strategy="SPREAD").remote(str(tmp_path), 6) for _ in range(6)])
    assert {node: found.count(node) for node in ids(cluster)} == dict.fromkeys(ids(cluster), 2)


def test_more_tasks_than_one_node_holds_use_the_others(cluster, tmp_path):
    """Six tasks that run only together, with the default strategy, several times over."""
    for round_ in range(3):
        directory = tmp_path / str(round_)
        directory.mkdir()
        found = harness.get([meet.remote(str(directory), 6) for _ in range(6)])
        assert {node: found.count(node) for node in ids(cluster)} == dict.fromkeys(ids(cluster), 2)


def test_many_short_tasks_all_return(cluster):
    """Leases come and go on three nodes at once."""
    found = harness.get([where.options(num_cpus=0.5).remote() for _ in range(150)], timeout_s=200)
    assert len(found) == 150 and set(found) <= set(ids(cluster))


def test_affinity_hard_and_soft(cluster):
    """Named nodes, one that does not exist, and one that can't."""
    for node in ids(cluster):
        for soft in (False, True):
            strategy = NodeAffinitySchedulingStrategy(node, soft=soft)
            assert harness.get(where.options(scheduling_strategy=strategy).remote()) == node
            assert harness.get(Counter.options(scheduling_strategy=strategy).remote().where.remote()) == node
    nowhere = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)
    with pytest.raises(ray.exceptions.TaskUnschedulableError):
        harness.get(where.options(scheduling_strategy=nowhere).remote())
    soft = NodeAffinitySchedulingStrategy("ab" * 28, soft=True)
    assert harness.get(where.options(scheduling_strategy=soft).remote()) in ids(cluster)


def test_affinity_waits_spills_or_fails_where_its_node_is_full(cluster, tmp_path):
    """A node whose CPUs are taken."""
    _, left, _ = ids(cluster)
    there = NodeAffinitySchedulingStrategy(left, soft=False)
    holders = [Counter.options(scheduling_strategy=there).remote() for _ in range(2)]
    harness.get([holder.where.remote() for holder in holders])
    spills = NodeAffinitySchedulingStrategy(left, soft=True, _spill_on_unavailable=True)
    assert harness.get(where.options(scheduling_strategy=spills).remote()) != left
    fails = NodeAffinitySchedulingStrategy(left, soft=False, _fail_on_unavailable=True)
    with pytest.raises(ray.exceptions.TaskUnschedulableError):
        harness.get(where.options(scheduling_strategy=fails).remote())
    waiting = where.options(scheduling_strategy=there).remote()
    assert ray.wait([waiting], timeout=0.5)[0] == []
    for holder in holders:
        ray.kill(holder)
    assert harness.get(waiting) == left


def test_labels_choose_a_node(cluster):
    """Label selectors and the strategy by labels."""
    head, left, right = ids(cluster)
    for zone, node in [("a", head), ("b", left), ("c", right)]:
        assert harness.get(where.options(label_selector={"zone": zone}).remote()) == node
        by_labels = NodeLabelSchedulingStrategy(hard={"zone": In(zone)})
        assert harness.get(where.options(scheduling_strategy=by_labels).remote()) == node
    assert harness.get(where.options(label_selector={"zone": "!in(a,b)"}).remote()) == right


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
def test_a_placement_group_over_nodes(cluster, strategy):
    """Its bundles are on as many nodes as it says, and tasks run in their bundle."""
    count = 2 if strategy.endswith("PACK") else 3
    group = placement_group([{"CPU": 1}] * count, strategy=strategy)
    harness.get(group.ready())
    at = lambda index: PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    found = harness.get([where.options(scheduling_strategy=at(index)).remote() for index in range(count)])
    table = ray.util.placement_group_table(group)["bundles_to_node_id"]
    assert found == [table[index] for index in range(count)]
    assert len(set(found)) == (1 if strategy.endswith("PACK") else 3)
    anywhere = harness.get([where.options(scheduling_strategy=at(-1)).remote() for _ in range(4)])
    assert set(anywhere) <= set(found)
    remove_placement_group(group)


def test_a_node_that_joins_takes_what_waits_and_what_it_had_goes_on_elsewhere(cluster, tmp_path):
    """A task that no node can hold and more tasks than there is room for wait; a node joins and takes them; it is killed; its
    tasks are tried again and its actor starts again on the others."""
    late = where.options(resources={"late": 1}).remote()
    together = [meet.remote(str(tmp_path), 8) for _ in range(8)]
    assert ray.wait([late, *together], num_returns=9, timeout=1)[0] == []
    fourth = cluster.add(resources={"late": 4})
    assert harness.get(late) == fourth.id
    found = harness.get(together)
    assert found.count(fourth.id) == 2
    cluster.wait_for_nodes()

    soft = NodeAffinitySchedulingStrategy(fourth.id, soft=True)
    actor = Counter.options(scheduling_strategy=soft, max_restarts=1, max_task_retries=-1).remote()
    assert harness.get(actor.where.remote()) == fourth.id
    begun = tmp_path / "begun"
    task = last.options(scheduling_strategy=soft, max_retries=3).remote(str(begun), fourth.id)
    harness.wait_until(begun.exists, "the task runs on the node that will be killed")
    fourth.kill()
    assert harness.get(task) in ids(cluster)
    assert harness.get(actor.where.remote()) in ids(cluster)
    harness.wait_until(lambda: cluster.alive() == set(ids(cluster)), "the GCS knows that it died")
    with pytest.raises(ray.exceptions.TaskUnschedulableError):
        harness.get(where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(fourth.id, soft=False)).remote())


@ray.remote(num_cpus=1)
def gate(directory):
    """Returns its node once there is a file `end`."""
    open(os.path.join(directory, "begun"), "w").close()
    harness.wait_until(lambda: os.path.exists(os.path.join(directory, "end")), "the file that ends the task", timeout_s=120)
    return ray.get_runtime_context().get_node_id()


def test_a_node_that_drains_finishes_what_it_has_takes_no_more_and_goes(cluster, tmp_path):
    """One task runs there, others would rather; after it the node ends by itself."""
    extra = cluster.add(num_cpus=1)
    cluster.wait_for_nodes()
    there = NodeAffinitySchedulingStrategy(extra.id, soft=True)
    held = gate.options(scheduling_strategy=there).remote(str(tmp_path))
    harness.wait_until((tmp_path / "begun").exists, "the task runs on the node that will drain")
    waiting = [where.options(scheduling_strategy=there).remote() for _ in range(2)]
    client = ray._raylet.GcsClient(address=cluster.cluster.address)
    deadline_ms = int(time.time() * 1000) + 600_000
    accepted, why = client.drain_node(extra.id, DRAIN_PREEMPTION, "to be taken away", deadline_ms)
    assert accepted, why
    assert set(harness.get(waiting)) <= set(ids(cluster))
    assert harness.get(where.options(scheduling_strategy=there).remote()) in ids(cluster)
    (tmp_path / "end").touch()
    assert harness.get(held) == extra.id
    harness.wait_until(lambda: cluster.alive() == set(ids(cluster)), "the drained node goes by itself")
    extra.killed = True
    harness.assert_all_gone([extra.raylet], "the drained raylet ends")


@ray.remote(num_cpus=1)
def last(begun, node):
    """Runs without end on one node, and returns at once on any other."""
    here = ray.get_runtime_context().get_node_id()
    if here == node:
        open(begun, "w").close()
        time.sleep(600)
    return here
