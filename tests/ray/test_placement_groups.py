"""Placement groups on one node: what they reserve, who may use it, and that it comes back, whoever dies."""

import os
import re

import pytest
import ray
from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from harness import background_program, clean_environment, get, process_exists, run_program, wait_until

NODE = {"num_cpus": 4, "num_gpus": 2, "resources": {"slot": 3}}



@pytest.fixture(autouse=True)
def no_group_left(node):
    """Removes what a failed test left, so that it does not fail the next one too."""
    yield
    for group_id, table in placement_group_table().items():
        if table["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group_id)))


def ready(*bundles, strategy="PACK"):
    group = placement_group(list(bundles), strategy=strategy)
    assert group.wait(30), placement_group_table(group)
    return group


def inside(group, index=-1, capture=False):
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index,
                                            placement_group_capture_child_tasks=capture)


def free(resource):
    return ray.available_resources().get(resource, 0)


@ray.remote
def assigned():
    """The resource names and amounts of the lease itself, with the group in them."""
    held = ray._private.worker.global_worker.core_worker.resource_ids()
    return {name: sum(amount for _, amount in parts) for name, parts in held.items()}


@ray.remote
class Tenant:
    def pid(self):
        return os.getpid()


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK"])
def test_create_reserves_and_remove_returns(strategy):
    group = ready({"CPU": 1}, {"CPU": 2, "slot": 1}, strategy=strategy)
    wait_until(lambda: (free("CPU"), free("slot")) == (1, 2), "the bundles are reserved")
    remove_placement_group(group)
    wait_until(lambda: (free("CPU"), free("slot")) == (4, 3), "the bundles are given back")


def test_strict_spread_over_one_node_waits_for_ever():
    group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
    assert not group.wait(1)
    assert free("CPU") == 4, "nothing stays prepared of a group that could not be placed"
    remove_placement_group(group)


def test_group_that_does_not_fit_waits_until_there_is_room():
    first = ready({"CPU": 3})
    second = placement_group([{"CPU": 2}])
    assert not second.wait(1)
    remove_placement_group(first)
    assert second.wait(30)
    remove_placement_group(second)


def test_infeasible_group_is_pending_and_removable():
    group = placement_group([{"CPU": 500}])
    with pytest.raises(ray.exceptions.GetTimeoutError):
        get(group.ready(), 1)
    assert placement_group_table(group)["state"] == "PENDING"
    remove_placement_group(group)


def test_indexed_and_wildcard_leases():
    group = ready({"CPU": 1}, {"CPU": 2, "slot": 1})
    hex_id = group.id.hex()
    indexed = get(assigned.options(num_cpus=2, resources={"slot": 1}, scheduling_strategy=inside(group, 1)).remote())
    assert indexed[f"CPU_group_1_{hex_id}"] == 2 and indexed[f"CPU_group_{hex_id}"] == 2
    assert indexed[f"slot_group_1_{hex_id}"] == 1
    wildcard = get(assigned.options(num_cpus=1, scheduling_strategy=inside(group)).remote())
    assert wildcard[f"CPU_group_{hex_id}"] == 1
    assert sum(amount for name, amount in wildcard.items() if re.match("CPU_group_[01]_", name)) == 1, "and counts in a bundle"
    assert not any(name == "CPU" for name in (*indexed, *wildcard)), "the node's own CPUs are not touched"
    remove_placement_group(group)


def test_bundle_is_no_larger_than_it_is():
    """Two actors that fill bundle 0; a third for it waits, one for bundle 1 does not, and one frees the place."""
    group = ready({"CPU": 2}, {"CPU": 1})
    Light = Tenant.options(num_cpus=1, scheduling_strategy=inside(group, 0))
    first, second = Light.remote(), Light.remote()
    other = Tenant.options(num_cpus=1, scheduling_strategy=inside(group, 1)).remote()
    get([first.pid.remote(), second.pid.remote(), other.pid.remote()])
    # Only now: actors that are created together are placed in any order.
    third = Light.remote()
    waiting = third.pid.remote()
    assert ray.wait([waiting], timeout=1)[0] == []
    ray.kill(first)
    assert get(waiting)
    remove_placement_group(group)


def test_request_larger_than_any_bundle_is_refused():
    group = ready({"CPU": 1})
    with pytest.raises(ValueError):
        assigned.options(num_cpus=2, scheduling_strategy=inside(group)).remote()
    remove_placement_group(group)


def test_gpu_bundles_keep_their_ids():
    group = ready({"GPU": 1, "CPU": 1}, {"GPU": 1, "CPU": 1})

    @ray.remote(num_cpus=1, num_gpus=1)
    def visible():
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def ask(index):
        return get(visible.options(scheduling_strategy=inside(group, index)).remote())

    seen = [ask(0), ask(1), ask(0), ask(1)]
    assert sorted(seen[:2]) == ["0", "1"] and seen[:2] == seen[2:], "each bundle keeps its GPU"
    remove_placement_group(group)
    assert sorted(get(visible.options(num_gpus=2).remote()).split(",")) == ["0", "1"]


def test_fraction_of_a_gpu_in_a_bundle():
    group = ready({"GPU": 0.5}, {"GPU": 0.5}, {"GPU": 1})
    wait_until(lambda: free("GPU") == 0, "both GPUs are reserved")

    @ray.remote(num_cpus=0, num_gpus=0.5)
    def visible():
        return os.environ["CUDA_VISIBLE_DEVICES"]

    halves = [get(visible.options(scheduling_strategy=inside(group, index)).remote()) for index in (0, 1)]
    whole = get(visible.options(num_gpus=1, scheduling_strategy=inside(group, 2)).remote())
    assert halves[0] == halves[1] and {halves[0], whole} == {"0", "1"}
    remove_placement_group(group)


def test_children_stay_in_the_group_when_captured():
    group = ready({"CPU": 2})

    @ray.remote
    def parent():
        return ray.get(assigned.remote())

    child = get(parent.options(num_cpus=1, scheduling_strategy=inside(group, 0, capture=True)).remote())
    assert f"CPU_group_{group.id.hex()}" in child
    remove_placement_group(group)


def test_removal_kills_what_runs_inside():
    group = ready({"CPU": 2})
    tenant = Tenant.options(num_cpus=1, scheduling_strategy=inside(group, 0)).remote()
    pid = get(tenant.pid.remote())

    @ray.remote(num_cpus=1, max_retries=0)
    def forever():
        import time
        time.sleep(300)

    running = forever.options(scheduling_strategy=inside(group, 0)).remote()
    queued = forever.options(scheduling_strategy=inside(group, 0)).remote()
    assert ray.wait([running, queued], timeout=1)[0] == []
    remove_placement_group(group)
    wait_until(lambda: not process_exists(pid), "the actor inside has been killed")
    with pytest.raises(ray.exceptions.RayActorError):
        get(tenant.pid.remote())
    for ref in (running, queued):
        with pytest.raises((ray.exceptions.WorkerCrashedError, ray.exceptions.TaskPlacementGroupRemoved,
                            ray.exceptions.TaskUnschedulableError)):
            get(ref)


def test_death_of_a_worker_gives_its_part_of_the_bundle_back():
    group = ready({"CPU": 1})
    for _ in range(3):
        tenant = Tenant.options(num_cpus=1, scheduling_strategy=inside(group, 0)).remote()
        pid = get(tenant.pid.remote())
        os.kill(pid, 9)
        wait_until(lambda: not process_exists(pid), "the actor's process is gone")
    assert get(assigned.options(num_cpus=1, scheduling_strategy=inside(group, 0)).remote())
    remove_placement_group(group)


@pytest.mark.parametrize("how", ["ends", "killed"])
def test_group_goes_with_its_driver(node, how, tmp_path):
    leave = tmp_path / "leave"
    with background_program(
        """
        import os, sys, time, ray
        ray.init(address=sys.argv[1], log_to_driver=False)
        group = ray.util.placement_group([{"CPU": 1}, {"CPU": 2, "GPU": 1}])
        ray.get(group.ready())
        print("ready")
        sys.stdout.flush()
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.05)
        """,
        node.address, leave, environment=clean_environment(RAY_AUTH_MODE=os.environ.get("RAY_AUTH_MODE")),
    ) as child:
        assert child.stdout.readline().strip() == "ready"
        wait_until(lambda: free("CPU") == 1, "the other driver's bundles are reserved")
        child.kill() if how == "killed" else leave.touch()
        child.wait(60)
    wait_until(lambda: (free("CPU"), free("GPU")) == (4, 2), "the bundles are given back")


def test_detached_group_stays_until_removed(node):
    run_program(
        """
        import sys, ray
        ray.init(address=sys.argv[1], namespace="groups", log_to_driver=False)
        group = ray.util.placement_group([{"CPU": 2}], name="kept", lifetime="detached")
        ray.get(group.ready())
        """,
        node.address, environment=clean_environment(RAY_AUTH_MODE=os.environ.get("RAY_AUTH_MODE")),
    )
    [(group_id, table)] = [(group_id, table) for group_id, table in placement_group_table().items() if table["name"] == "kept"]
    assert table["state"] == "CREATED"
    wait_until(lambda: free("CPU") == 2, "the detached group keeps its CPUs")
    remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group_id)))
    wait_until(lambda: free("CPU") == 4, "the detached group is given back")


def test_many_groups_come_and_go():
    """A hundred groups, four at a time: nothing is lost on the way, no name of a bundle stays behind."""
    for _ in range(25):
        groups = [placement_group([{"CPU": 0.5}, {"CPU": 0.5}]) for _ in range(4)]
        assert all(group.wait(30) for group in groups)
        for group in groups:
            remove_placement_group(group)
    wait_until(lambda: not [name for name in ray.available_resources() if "_group_" in name], "no bundle resource left")
    wait_until(lambda: free("CPU") == 4, "all CPUs are back")
