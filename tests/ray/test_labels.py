"""Labels of the node, and work that asks for labels or for the node itself: what matches runs, what does not waits or fails."""

import pytest
import ray
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, TaskUnschedulableError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import (DoesNotExist, Exists, In, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy,
                                            NotIn)

from harness import get, wait_until

NODE = {"num_cpus": 3, "labels": {"zone": "a", "tier": "spot"}}

pytestmark = [pytest.mark.usefixtures("node"), pytest.mark.timeout(240)]

#: Long enough for a task that may run, on a busy machine with idle workers; what may not run is looked at for as long.
LOOK_S = 5

HERE = [{"zone": "a"}, {"zone": "!b"}, {"zone": "in(a,b)"}, {"zone": "!in(b,c)"}, {"none": "!x"}, {"zone": "a", "tier": "spot"}]
ELSEWHERE = [{"zone": "b"}, {"zone": "!a"}, {"zone": "in(b,c)"}, {"zone": "!in(a,b)"}, {"none": "x"}, {"zone": "a", "tier": "!spot"}]


@ray.remote(num_cpus=0.1)
def one():
    return 1


@ray.remote(num_cpus=0.1)
class Tenant:
    def one(self):
        return 1


def test_tasks_and_actors_by_label_selector(node):
    this = {"ray.io/node-id": node.record()["NodeID"]}
    for selector in HERE + [this]:
        assert get(one.options(label_selector=selector).remote()) == 1, selector
    tenants = [Tenant.options(label_selector=selector).remote() for selector in (HERE[0], HERE[2], this)]
    assert get([tenant.one.remote() for tenant in tenants]) == [1] * 3


def test_tasks_and_actors_for_other_labels_wait():
    tasks = {one.options(label_selector=selector).remote(): selector for selector in ELSEWHERE}
    tenants = [Tenant.options(label_selector=selector).remote() for selector in (ELSEWHERE[0], ELSEWHERE[4])]
    calls = [tenant.one.remote() for tenant in tenants]
    assert get(one.remote()) == 1
    ready, _ = ray.wait(list(tasks) + calls, num_returns=1, timeout=LOOK_S)
    assert not ready, [tasks.get(ref, "an actor") for ref in ready]
    for ref in tasks:
        ray.cancel(ref)
    for ref in tasks:
        with pytest.raises(ray.exceptions.TaskCancelledError):
            get(ref)


def test_a_fallback_is_taken():
    fallback = [{"label_selector": {"zone": "c"}}, {"label_selector": {"zone": "a"}}]
    assert get(one.options(label_selector={"zone": "b"}, fallback_strategy=fallback).remote()) == 1
    stuck = one.options(label_selector={"zone": "b"}, fallback_strategy=fallback[:1]).remote()
    with pytest.raises(GetTimeoutError):
        get(stuck, LOOK_S)
    ray.cancel(stuck)


@pytest.mark.parametrize("here, elsewhere", [
    ({"zone": In("a", "b")}, {"zone": In("b")}),
    ({"zone": NotIn("b")}, {"zone": NotIn("a")}),
    ({"zone": Exists()}, {"none": Exists()}),
    ({"none": DoesNotExist()}, {"zone": DoesNotExist()}),
])
def test_tasks_by_node_label_strategy(here, elsewhere):
    assert get(one.options(scheduling_strategy=NodeLabelSchedulingStrategy(hard=here)).remote()) == 1
    assert get(one.options(scheduling_strategy=NodeLabelSchedulingStrategy(hard={}, soft=elsewhere)).remote()) == 1
    stuck = one.options(scheduling_strategy=NodeLabelSchedulingStrategy(hard=elsewhere)).remote()
    assert ray.wait([stuck], timeout=LOOK_S / 2)[0] == []
    ray.cancel(stuck)


def test_placement_groups_by_label():
    group = placement_group([{"CPU": 1}], bundle_label_selector=[{"zone": "a"}])
    assert group.wait(30)
    other = placement_group([{"CPU": 1}], bundle_label_selector=[{"zone": "b"}])
    assert not other.wait(2)
    remove_placement_group(group)
    remove_placement_group(other)


def test_work_bound_to_this_node_fails_where_it_can_never_run(node):
    """No other node will do, so what this one can't hold with all that it has fails at once."""
    this, other = node.record()["NodeID"], "ab" * 28

    def bound(kind, node_id=this, soft=False, **options):
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=soft)
        return kind.options(scheduling_strategy=strategy, **options).remote()

    assert get([bound(one), bound(Tenant).one.remote(), bound(one, other, soft=True)]) == [1] * 3
    for options in ({"num_cpus": 3.5}, {"resources": {"no_such_thing": 1}}, {"label_selector": {"zone": "b"}}, {"node_id": other}):
        with pytest.raises(TaskUnschedulableError, match="NodeAffinitySchedulingStrategy"):
            get(bound(one, **options))
    with pytest.raises(ActorUnschedulableError, match="NodeAffinitySchedulingStrategy"):
        get(bound(Tenant, num_cpus=3.5).one.remote())
    stuck = bound(one, soft=True, num_cpus=3.5)
    assert ray.wait([stuck], timeout=LOOK_S / 2)[0] == [], "elsewhere it might run"
    ray.cancel(stuck)


def test_work_bound_to_this_node_waits_for_what_is_in_use(node):
    """Unless it must not."""
    strategy = {"node_id": node.record()["NodeID"], "soft": False}
    whole = Tenant.options(num_cpus=3).remote()
    get(whole.one.remote())
    waits = one.options(scheduling_strategy=NodeAffinitySchedulingStrategy(**strategy)).remote()
    hurry = one.options(scheduling_strategy=NodeAffinitySchedulingStrategy(**strategy, _fail_on_unavailable=True))
    with pytest.raises(TaskUnschedulableError):
        get(hurry.remote())
    assert ray.wait([waits], timeout=LOOK_S / 2)[0] == []
    ray.kill(whole)
    assert get(waits) == 1
    wait_until(lambda: ray.available_resources().get("CPU") == 3, "all is free")
    assert get(hurry.remote()) == 1
