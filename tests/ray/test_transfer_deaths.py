"""Objects that are fetched while nodes die."""

import pytest
import ray

import harness
from harness import MIB, get
from test_transfer import BY_TCP, MINE, is_right, peers, start, status_of


@pytest.mark.parametrize("environment", [{}, BY_TCP] if harness.OURS else [{}], ids=lambda given: "by-tcp" if given else "as-is")
def test_a_node_that_dies_while_it_sends(monkeypatch, environment):
    """Of the two nodes that have an object one dies: it comes from the other. What only the dead one had is lost, and said to be."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    size = 40 * MIB
    with harness.cluster() as cluster:
        start(cluster, (MINE, MINE, MINE), object_store_memory=200 * MIB)
        head, middle, last = peers(cluster)
        shared = head.make.remote(size, 1)
        assert get(last.check.remote(shared, size, 1), 120)
        only = last.put.remote(size, 2)
        (lost,) = get(only)
        readers = [middle.check_refs.remote([shared], size, [1]) for _ in range(2)]
        cluster.nodes[2].kill()
        assert get(readers, 120) == [[True]] * 2
        assert is_right(get(shared, 120), size, 1)
        with pytest.raises(ray.exceptions.ObjectLostError):
            get(lost, 120)


def test_a_broadcast_goes_through_the_nodes_that_get_it_and_survives_one_of_them(monkeypatch):
    """Four nodes get one object at a time from a fifth: some of them from each other, and all of it though one of them dies."""
    for name, value in BY_TCP.items():
        monkeypatch.setenv(name, value)
    size, rounds = 64 * MIB, 8
    with harness.cluster() as cluster:
        start(cluster, (MINE,) * 5, object_store_memory=200 * MIB)
        source, *pullers = peers(cluster)

        def spread(seed):
            ref = get(source.put.remote(size, seed))
            return [puller.check_refs.remote(ref, size, [seed]) for puller in pullers]

        if MINE == "ours":
            sent = []
            # Where each of them is served before the next asks, there is nothing to be sent on.
            while len(sent) < rounds and not any(0 < bytes_sent < 4 * size for bytes_sent in sent):
                before = status_of(cluster.nodes[0])["transfer"]
                assert get(spread(len(sent)), 120) == [[True]] * 4
                after = status_of(cluster.nodes[0])["transfer"]
                sent.append(after["lane_sent_bytes"] - before["lane_sent_bytes"])
                get(source.drop.remote())
            assert size <= sent[-1] < 4 * size, f"the source sent {sent} bytes, of {size} to each of 4 nodes"
        dies, *stay = spread(rounds)
        cluster.nodes[1].kill()
        assert get(stay, 120) == [[True]] * 3
        with pytest.raises(ray.exceptions.RayActorError):
            get([dies, pullers[0].node.remote()], 120)
