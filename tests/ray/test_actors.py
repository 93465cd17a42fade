"""Actors: kinds, names, ends. What the raylet owes them: a worker of their own, its death told, its resources freed."""

import asyncio
import os
import signal
import threading
import time

import pytest
import ray
from ray.exceptions import ActorDiedError, RayActorError

from harness import clean_environment, get, process_exists, run_program, wait_until

NODE = {"num_cpus": 3, "namespace": "actors"}

pytestmark = pytest.mark.usefixtures("node")


class Counter:
    """A plain class, made an actor in several ways below."""

    def __init__(self, start=0):
        self.value = start

    def add(self, amount=1):
        self.value += amount
        return self.value

    def pid(self):
        return os.getpid()

    def fail(self):
        raise ValueError("counter jammed")

    def leave(self):
        ray.actor.exit_actor()

    def crash(self):
        os._exit(3)


LightCounter = ray.remote(num_cpus=0)(Counter)


def test_state_order_and_errors():
    counter = LightCounter.remote(10)
    assert get([counter.add.remote(i) for i in range(50)])[-1] == 10 + sum(range(50))
    with pytest.raises(ValueError, match="counter jammed"):
        get(counter.fail.remote())
    assert get(counter.add.remote(0)) == 10 + sum(range(50)), "an error in a method leaves the actor alive"


def test_error_in_the_constructor():
    @ray.remote(num_cpus=0)
    class Broken:
        def __init__(self):
            raise RuntimeError("no foundation")

        def method(self):
            return 1

    with pytest.raises(ActorDiedError, match="no foundation"):
        get(Broken.remote().method.remote())


def test_async_actor_interleaves():
    @ray.remote(num_cpus=0)
    class Meeting:
        def __init__(self):
            self.present = 0
            self.everyone = asyncio.Event()

        async def arrive(self, expected):
            self.present += 1
            if self.present == expected:
                self.everyone.set()
            await self.everyone.wait()
            return self.present

    meeting = Meeting.remote()
    assert get([meeting.arrive.remote(20) for _ in range(20)]) == [20] * 20


def test_threaded_actor_runs_methods_side_by_side():
    @ray.remote(num_cpus=0, max_concurrency=4)
    class Threads:
        def __init__(self):
            self.barrier = threading.Barrier(4)

        def meet(self):
            self.barrier.wait(timeout=30)
            return threading.get_ident()

    threads = Threads.remote()
    assert len(set(get([threads.meet.remote() for _ in range(4)]))) == 4


def test_concurrency_groups_do_not_hinder_each_other():
    @ray.remote(num_cpus=0, concurrency_groups={"slow": 1, "quick": 2})
    class Groups:
        def __init__(self):
            self.release = threading.Event()

        @ray.method(concurrency_group="slow")
        def wait(self):
            return self.release.wait(timeout=30)

        @ray.method(concurrency_group="quick")
        def open(self):
            self.release.set()
            return "opened"

    groups = Groups.remote()
    waiting = groups.wait.remote()
    assert get(groups.open.remote()) == "opened"
    assert get(waiting) is True


def test_named_and_get_if_exists():
    first = LightCounter.options(name="clerk").remote(5)
    assert get(ray.get_actor("clerk").add.remote()) == 6
    with pytest.raises(ValueError):
        LightCounter.options(name="clerk").remote()
    same = LightCounter.options(name="clerk", get_if_exists=True).remote()
    assert get(same.pid.remote()) == get(first.pid.remote())
    ray.kill(first)

    def gone():
        try:
            ray.get_actor("clerk")
        except ValueError:
            return True
        return False

    wait_until(gone, "the name of a killed actor is free")


def test_detached_actor_outlives_its_driver(node):
    """A second driver makes a detached actor and an ordinary one, and ends: the first stays, the other does not."""
    auth = clean_environment(RAY_AUTH_MODE=os.environ.get("RAY_AUTH_MODE"))
    pids = run_program(
        """
        import os, sys, ray
        ray.init(address=sys.argv[1], namespace="actors", log_to_driver=False)
        @ray.remote(num_cpus=1)
        class Keeper:
            def __init__(self):
                self.kept = []
            def keep(self, thing):
                self.kept.append(thing)
                return os.getpid()
            def all(self):
                return self.kept
        detached = Keeper.options(name="keeper", lifetime="detached").remote()
        ordinary = Keeper.options(name="ordinary").remote()
        print(ray.get(detached.keep.remote("letter")), ray.get(ordinary.keep.remote("note")))
        """,
        node.address, environment=auth,
    ).split()
    detached_pid, ordinary_pid = map(int, pids[-2:])
    wait_until(lambda: not process_exists(ordinary_pid), "the ordinary actor ends with its driver")
    assert process_exists(detached_pid)
    keeper = ray.get_actor("keeper")
    assert get(keeper.all.remote()) == ["letter"]
    ray.kill(keeper)
    wait_until(lambda: not process_exists(detached_pid), "ray.kill ends the detached actor's process")


def test_kill_ends_the_process_and_fails_callers():
    counter = ray.remote(Counter).remote()
    pid = get(counter.pid.remote())
    ray.kill(counter)
    wait_until(lambda: not process_exists(pid), "the killed actor's process ends")
    with pytest.raises(ActorDiedError, match="ray.kill"):
        get(counter.add.remote())


def test_restarts_as_often_as_allowed_and_then_dies():
    counter = LightCounter.options(max_restarts=2, max_task_retries=-1).remote()
    pids = []
    for _ in range(2):
        pids.append(get(counter.pid.remote()))
        os.kill(pids[-1], signal.SIGKILL)
        wait_until(lambda: not process_exists(pids[-1]), "the actor's process is gone")
    pids.append(get(counter.pid.remote()))
    assert len(set(pids)) == 3
    assert get(counter.add.remote()) == 1, "a restarted actor begins afresh"
    os.kill(pids[-1], signal.SIGKILL)
    with pytest.raises(RayActorError):
        get(counter.add.remote())


def test_crash_is_told_with_its_cause():
    counter = LightCounter.remote()
    get(counter.pid.remote())
    with pytest.raises(ActorDiedError) as raised:
        get(counter.crash.remote())
    text = str(raised.value)
    assert "worker process has died" in text and "Worker exit type: SYSTEM_ERROR" in text, text


def test_exit_actor_is_an_intended_end():
    counter = ray.remote(Counter).remote()
    pid = get(counter.pid.remote())
    with pytest.raises(ActorDiedError) as raised:
        get(counter.leave.remote())
        get(counter.add.remote())
    assert "exit_actor()" in str(raised.value), str(raised.value)
    wait_until(lambda: not process_exists(pid), "the process ends after exit_actor")


def test_terminate_runs_queued_work_first():
    counter = LightCounter.remote()
    pid = get(counter.pid.remote())
    pending = [counter.add.remote() for _ in range(10)]
    counter.__ray_terminate__.remote()
    assert get(pending) == list(range(1, 11))
    wait_until(lambda: not process_exists(pid), "the actor ends after what was queued")


def test_out_of_scope_handle_ends_the_actor():
    counter = ray.remote(Counter).remote()
    pid = get(counter.pid.remote())
    wait_until(lambda: ray.available_resources()["CPU"] <= 3, "the actor holds its CPU")
    del counter
    wait_until(lambda: not process_exists(pid), "an actor without a handle ends")


def test_actor_that_waits_for_room_is_placed_when_there_is_some():
    big = [ray.remote(num_cpus=3)(Counter).remote(i) for i in range(3)]
    added = [actor.add.remote(0) for actor in big]
    done, waiting = ray.wait(added, num_returns=1, timeout=60)
    assert len(done) == 1
    assert ray.wait(waiting, timeout=0.5)[0] == []
    order = []
    while big:
        index = added.index(done[0])
        order.append(get(done[0]))
        ray.kill(big.pop(index))
        added.pop(index)
        if added:
            done, _ = ray.wait(added, num_returns=1, timeout=60)
    assert sorted(order) == [0, 1, 2]


def test_a_crowd_of_actors():
    """More actors than CPUs, all alive at once, calling each other."""
    crowd = [LightCounter.remote(i) for i in range(12)]
    assert len(set(get([actor.pid.remote() for actor in crowd], 100))) == 12

    @ray.remote(num_cpus=0)
    def total(actors):
        return sum(ray.get([actor.add.remote(1) for actor in actors]))

    assert get(total.remote(crowd)) == sum(range(12)) + 12
    pids = get([actor.pid.remote() for actor in crowd])
    del crowd
    wait_until(lambda: not [pid for pid in pids if process_exists(pid)], "the whole crowd ends")


def test_actor_pool():
    from ray.util import ActorPool

    @ray.remote(num_cpus=0)
    class Doubler:
        def double(self, value):
            time.sleep(0.01)
            return 2 * value

    pool = ActorPool([Doubler.remote() for _ in range(3)])
    assert list(pool.map(lambda actor, value: actor.double.remote(value), range(30))) == [2 * i for i in range(30)]


def test_cancelled_call_of_an_async_actor():
    @ray.remote(num_cpus=0)
    class Sleeper:
        async def sleep(self):
            await asyncio.sleep(300)

        async def ping(self):
            return "pong"

    sleeper = Sleeper.remote()
    sleeping = sleeper.sleep.remote()
    assert get(sleeper.ping.remote()) == "pong"
    ray.cancel(sleeping)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        get(sleeping)
    assert get(sleeper.ping.remote()) == "pong"
