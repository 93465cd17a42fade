"""Clusters of Ray's own raylet and ours, in both roles: a cluster can be moved over node by node."""

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

import harness
from places import meet, where

#: Two nodes and their agents share the machine with whatever else runs.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", params=[harness.UNDER_TEST, harness.OTHER], ids=lambda kind: f"head-{kind}")
def cluster(request):
    """A head node of one kind and a node of the other, 2 CPUs each."""
    kinds = [harness.UNDER_TEST, harness.OTHER]
    with harness.cluster() as running:
        for kind, name in zip(kinds if request.param == kinds[0] else kinds[::-1], ["head", "node"]):
            running.add(kind, resources={name: 2}, labels={"place": name})
        running.connect()
        yield running


@ray.remote(num_cpus=1)
class Parent:
    """An actor that says where it is, and where its tasks are."""

    def where(self):
        return ray.get_runtime_context().get_node_id()

    def child(self, resource):
        return ray.get(where.options(resources={resource: 1}).remote())


def test_both_take_their_part(cluster, tmp_path):
    """By resource, by label, by name, spread, and because one alone has no room."""
    ids = [node.id for node in cluster.nodes]
    assert ray.cluster_resources()["CPU"] == 4
    for name, node in zip(["head", "node"], ids):
        assert harness.get(where.options(resources={name: 1}).remote()) == node
        assert harness.get(where.options(label_selector={"place": name}).remote()) == node
        assert harness.get(where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()) == node
    for strategy in ("DEFAULT", "SPREAD"):
        directory = tmp_path / strategy
        directory.mkdir()
        found = harness.get([meet.options(scheduling_strategy=strategy).remote(str(directory), 4) for _ in range(4)])
        assert sorted(found) == sorted(ids * 2)


def test_many_short_tasks_all_return(cluster):
    """Leases come and go on both."""
    found = harness.get([where.options(num_cpus=0.5).remote() for _ in range(100)], timeout_s=200)
    assert len(found) == 100 and set(found) <= {node.id for node in cluster.nodes}


def test_actors_lease_from_both(cluster):
    """An actor on each node; what each asks of the other node is sent there by its own."""
    ids = dict(zip(["head", "node"], [node.id for node in cluster.nodes]))
    parents = {name: Parent.options(resources={name: 1}).remote() for name in ids}
    for name, parent in parents.items():
        assert harness.get(parent.where.remote()) == ids[name]
        assert {other: harness.get(parent.child.remote(other)) for other in ids} == ids
    for parent in parents.values():
        ray.kill(parent)


def test_a_placement_group_over_both(cluster):
    """A bundle on each."""
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    harness.get(group.ready())
    found = harness.get([
        where.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)).remote()
        for index in range(2)
    ])
    assert sorted(found) == sorted(node.id for node in cluster.nodes)
    remove_placement_group(group)
