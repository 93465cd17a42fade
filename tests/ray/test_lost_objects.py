"""Objects that never come: their owner has them no more, or nobody has a copy. Readers get an error, as in stock Ray, and no hang."""

import time

import numpy as np
import pytest
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc
from ray.exceptions import ObjectFetchTimedOutError, OwnerDiedError

from harness import MIB, get, wait_until

FETCH_TIMEOUT_S = 3.0

NODE = {
    "num_cpus": 3,
    "_system_config": {
        "automatic_object_spilling_enabled": False,
        "fetch_fail_timeout_milliseconds": int(FETCH_TIMEOUT_S * 1000),
    },
}

pytestmark = [pytest.mark.usefixtures("node"), pytest.mark.timeout(120)]


def raylet(node):
    """A client of the node's NodeManagerService."""
    record = node.record()
    channel = init_grpc_channel(f"{record['NodeManagerAddress']}:{record['NodeManagerPort']}")
    return node_manager_pb2_grpc.NodeManagerServiceStub(channel)


def this_worker():
    """The driver's address, as owner and caller."""
    worker = ray._private.worker.global_worker
    address = common_pb2.Address()
    address.ParseFromString(worker.core_worker.get_owner_address(ray.put(1)))
    return address


def lease_with(dependency, owner, number):
    """A request for a lease whose task takes `dependency` (a binary object id) of `owner` for an argument."""
    lease_id = owner.worker_id + number.to_bytes(4, "little")
    spec = common_pb2.LeaseSpec(
        lease_id=lease_id,
        job_id=ray._private.worker.global_worker.current_job_id.binary(),
        caller_address=owner,
        type=common_pb2.NORMAL_TASK,
        language=common_pb2.PYTHON,
        depth=1,
        required_resources={"CPU": 1},
        required_placement_resources={"CPU": 1},
        dependencies=[common_pb2.ObjectReference(object_id=dependency, owner_address=owner)],
    )
    spec.scheduling_strategy.default_scheduling_strategy.SetInParent()
    spec.runtime_env_info.serialized_runtime_env = "{}"
    spec.function_descriptor.python_function_descriptor.function_name = "nothing"
    return node_manager_pb2.RequestWorkerLeaseRequest(lease_spec=spec, backlog_size=0, grant_or_reject=False)


def test_argument_that_its_owner_has_no_more(node):
    """The lease waits for its argument, the node asks the owner, and an error takes the argument's place."""
    owner = this_worker()
    ref = ray.put(np.zeros(MIB, dtype=np.uint8))
    object_id = ref.binary()
    del ref
    node.wait_for_store_below(MIB, "the argument is freed")
    client = raylet(node)
    request = lease_with(object_id, owner, 1 << 20)
    reply = client.RequestWorkerLease(request, timeout=60)
    assert reply.worker_address.worker_id, reply
    client.ReturnWorkerLease(
        node_manager_pb2.ReturnWorkerLeaseRequest(
            worker_port=reply.worker_address.port, lease_id=request.lease_spec.lease_id),
        timeout=30,
    )


def lose_copies(node, ref):
    """Has the node drop an object behind its owner's back."""
    raylet(node).FreeLocalObjects(node_manager_pb2.FreeLocalObjectsRequest(object_ids=[ref.binary()]), timeout=30)
    node.wait_for_store_below(MIB, "the only copy is dropped")


def test_get_of_an_object_without_a_copy(node):
    ref = ray.put(np.zeros(2 * MIB, dtype=np.uint8))
    lose_copies(node, ref)
    began = time.monotonic()
    with pytest.raises(ObjectFetchTimedOutError):
        get(ref)
    assert time.monotonic() - began > FETCH_TIMEOUT_S * 0.8, "it might have come within the time"


def test_wait_and_tasks_on_an_object_without_a_copy(node):
    ref = ray.put(np.zeros(2 * MIB, dtype=np.uint8))
    lose_copies(node, ref)

    @ray.remote(max_retries=0)
    def use(array):
        return array.nbytes

    with pytest.raises(ObjectFetchTimedOutError):
        get(use.remote(ref))
    assert ray.wait([ref], timeout=60)[0] == [ref], "an object that is lost for good counts as ready"


def test_actor_call_and_coroutine_on_objects_of_a_dead_owner(node):
    """Arguments of actor calls, and objects that a coroutine awaits, learn of their owner's death as well."""
    @ray.remote(num_cpus=0)
    class Owner:
        def make(self):
            self.ref = ray.put(np.zeros(2 * MIB, dtype=np.uint8))
            return [self.ref]

    @ray.remote(num_cpus=0)
    class User:
        def use(self, array):
            return array.nbytes

        async def use_boxed(self, box):
            return (await box[0]).nbytes

    owner, user = Owner.remote(), User.remote()
    [ref] = get(owner.make.remote())
    assert get(user.use.remote(ref)) == get(user.use_boxed.remote([ref])) == 2 * MIB
    ray.kill(owner)
    node.wait_for_store_below(MIB, "a dead owner's object freed")
    for call in (lambda: user.use.remote(ref), lambda: user.use_boxed.remote([ref])):
        with pytest.raises((OwnerDiedError, ray.exceptions.RayTaskError)) as raised:
            get(call())
        assert "OwnerDiedError" in repr(raised.value) or isinstance(raised.value, OwnerDiedError)
    ray.kill(user)


def test_gets_that_succeed_leave_no_subscription(node):
    """Borrowers get what is there: nothing of it is asked of the owner, and the node goes on as before."""
    @ray.remote
    def use(boxed):
        return sum(array.nbytes for array in ray.get(boxed))

    refs = [ray.put(np.zeros(MIB // 4, dtype=np.uint8)) for _ in range(40)]
    assert get([use.remote(refs[i::4]) for i in range(4)]) == [10 * MIB // 4] * 4
    del refs
    node.wait_for_store_below(MIB, "borrowed objects freed")
    wait_until(lambda: ray.available_resources().get("CPU") == 3, "every CPU free")
