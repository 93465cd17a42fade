"""Objects that are fetched while nodes die."""

import pytest
import ray

import harness
from harness import MIB, get
from test_transfer import MINE, is_right, peers, start


def test_a_node_that_dies_while_it_sends():
    """Of the two nodes that have an object one dies: it comes from the other. What only the dead one had is lost, and said to be."""
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
