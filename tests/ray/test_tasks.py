"""Tasks: results, errors, retries, nesting, generators, waiting, cancelling, and what they hold while they run."""

import collections
import os
import signal
import time

import pytest
import ray

from harness import get, process_exists, wait_until

NODE = {"num_cpus": 3, "num_gpus": 2, "resources": {"tpu_slice": 4}}

pytestmark = pytest.mark.usefixtures("node")


@ray.remote
class Recorder:
    """Takes notes from tasks, in order of arrival. Holds no CPU."""

    def __init__(self):
        self.notes = []

    def add(self, note):
        self.notes.append(note)

    def all(self):
        return self.notes


@ray.remote
class Gate:
    """Holds tasks until the test opens it. Holds no CPU."""

    def __init__(self):
        import asyncio

        self.opened = asyncio.Event()
        self.waiting = 0

    async def enter(self):
        self.waiting += 1
        await self.opened.wait()

    async def count(self):
        return self.waiting

    async def open(self):
        self.opened.set()


def gate():
    return Gate.options(num_cpus=0, max_concurrency=1000).remote()


@ray.remote
def held(gate):
    ray.get(gate.enter.remote())


def test_values_kwargs_several_returns_and_chains():
    @ray.remote
    def divide(a, b=1):
        return a // b, a % b

    @ray.remote
    def add(a, b):
        return a + b

    quotient, rest = divide.options(num_returns=2).remote(17, b=5)
    assert get([quotient, rest]) == [3, 2]
    total = ray.put(0)
    for _ in range(20):
        total = add.remote(total, quotient)
    assert get(total) == 60
    assert get([add.remote(i, i) for i in range(300)]) == [2 * i for i in range(300)]


def test_error_reaches_the_caller_with_its_type_and_trace():
    @ray.remote
    def fails():
        raise KeyError("missing piece")

    @ray.remote
    def depends(value):
        return value

    with pytest.raises(KeyError) as raised:
        get(fails.remote())
    assert isinstance(raised.value, ray.exceptions.RayTaskError)
    assert "missing piece" in str(raised.value) and "in fails" in str(raised.value)
    with pytest.raises(KeyError):
        get(depends.remote(fails.remote()))


def test_crashed_task_is_retried_as_often_as_allowed(tmp_path):
    @ray.remote
    def crashes(path, until):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < until:
            os._exit(7)
        return os.path.getsize(path)

    assert get(crashes.options(max_retries=2).remote(str(tmp_path / "a"), 3)) == 3
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        get(crashes.options(max_retries=1).remote(str(tmp_path / "b"), 9))
    assert os.path.getsize(tmp_path / "b") == 2


def test_application_error_is_retried_on_request(tmp_path):
    @ray.remote(max_retries=3, retry_exceptions=[ValueError])
    def flaky(path):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 3:
            raise ValueError("not yet")
        return "done"

    assert get(flaky.remote(str(tmp_path / "c"))) == "done"
    assert os.path.getsize(tmp_path / "c") == 3


def test_worker_killed_by_a_signal_is_reported_as_crashed():
    @ray.remote(max_retries=0)
    def killed():
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ray.exceptions.WorkerCrashedError) as raised:
        get(killed.remote())
    assert "The worker died unexpectedly while executing this task" in str(raised.value)


def test_nesting_deeper_than_the_cpus():
    """A task that waits for another gives its CPU back, else this would lock up: six levels on three CPUs."""
    @ray.remote
    def depth(n):
        return 0 if n == 0 else 1 + ray.get(depth.remote(n - 1))

    assert get(depth.remote(6), 100) == 6


def test_blocked_task_gives_its_cpu_back_and_takes_it_again():
    """All CPUs held by tasks blocked in ray.get; others run meanwhile; afterwards the books are balanced."""
    door = gate()
    blocked = [held.remote(door) for _ in range(3)]
    wait_until(lambda: get(door.count.remote()) == 3, "three tasks blocked")
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 3, "blocked tasks have given their CPUs back")
    assert get([ray.remote(lambda i=i: i).remote() for i in range(3)]) == [0, 1, 2]
    get(door.open.remote())
    get(blocked)


def test_generators_stream_before_they_end():
    door = gate()

    @ray.remote
    def stream(door):
        yield "early"
        ray.get(door.enter.remote())
        for i in range(5):
            yield b"x" * (i << 18)

    items = stream.remote(door)
    assert get(next(items)) == "early"
    wait_until(lambda: get(door.count.remote()) == 1, "the generator waits between two items")
    get(door.open.remote())
    assert [len(get(item)) for item in items] == [i << 18 for i in range(5)]

    @ray.remote
    def breaks():
        yield 1
        raise RuntimeError("broke off")

    broken = breaks.remote()
    assert get(next(broken)) == 1
    with pytest.raises(RuntimeError):
        get(next(broken))
    with pytest.raises(StopIteration):
        next(broken)


def test_dynamic_number_of_returns():
    @ray.remote(num_returns="dynamic")
    def several(n):
        for i in range(n):
            yield i * 10

    assert [get(ref) for ref in get(several.remote(4))] == [0, 10, 20, 30]


def test_wait_returns_what_is_ready_and_honours_its_timeout():
    door = gate()
    slow = [held.remote(door) for _ in range(2)]
    quick = [ray.put(i) for i in range(3)]
    ready, rest = ray.wait(slow + quick, num_returns=3, timeout=60)
    assert set(ready) == set(quick) and set(rest) == set(slow)
    started = time.monotonic()
    ready, rest = ray.wait(slow, num_returns=1, timeout=0.3)
    assert (ready, rest) == ([], slow) and 0.25 < time.monotonic() - started < 30
    get(door.open.remote())
    ready, rest = ray.wait(slow, num_returns=2, timeout=60)
    assert set(ready) == set(slow) and rest == []


def test_get_times_out():
    door = gate()
    ref = held.remote(door)
    started = time.monotonic()
    with pytest.raises(ray.exceptions.GetTimeoutError):
        get(ref, timeout_s=0.3)
    assert 0.25 < time.monotonic() - started < 30
    get(door.open.remote())
    get(ref)


@pytest.mark.parametrize(
    "options, fit",
    [({"num_cpus": 0.5}, 6), ({"num_cpus": 0, "resources": {"tpu_slice": 1.5}}, 2), ({"num_cpus": 2}, 1),
     ({"num_cpus": 0, "resources": {"tpu_slice": 0.8}}, 5)],
    ids=["half_cpus", "custom", "two_cpus", "fractions_of_custom"],
)
def test_as_many_run_at_once_as_fit(options, fit):
    """Actors that keep what they ask for: as many as fit are placed, one more waits, and takes a place that is freed."""
    @ray.remote(**options)
    class Occupant:
        def hold(self):
            return ray.get_runtime_context().get_assigned_resources()

    occupants = [Occupant.remote() for _ in range(fit + 1)]
    holds = [occupant.hold.remote() for occupant in occupants]
    ready, rest = ray.wait(holds, num_returns=fit, timeout=90)
    assert len(ready) == fit
    ready, rest = ray.wait(holds, num_returns=fit + 1, timeout=1.0)
    assert len(ready) == fit and len(rest) == 1
    expected = {"CPU": float(options["num_cpus"])} if options["num_cpus"] else {}
    expected |= options.get("resources", {})
    assert get(ready[0]) == expected
    ray.kill(occupants[holds.index(ready[0])])
    assert len(ray.wait(holds, num_returns=fit + 1)[0]) == fit + 1, "the last one starts in the place freed"
    for occupant in occupants:
        ray.kill(occupant)


def test_gpus_are_counted_instances_with_ids():
    class Visible:
        def ids(self):
            return os.environ["CUDA_VISIBLE_DEVICES"], ray.get_gpu_ids()

    whole = [ray.remote(num_cpus=0, num_gpus=1)(Visible).remote() for _ in range(2)]
    seen = get([actor.ids.remote() for actor in whole])
    assert sorted(visible for visible, _ in seen) == ["0", "1"]
    assert all([str(gpu) for gpu in ids] == [visible] for visible, ids in seen)
    del whole

    halves = [ray.remote(num_cpus=0, num_gpus=0.5)(Visible).remote() for _ in range(4)]
    seen = [visible for visible, _ in get([actor.ids.remote() for actor in halves])]
    assert sorted(seen) == ["0", "0", "1", "1"]
    del halves

    @ray.remote(num_gpus=2)
    def both():
        return os.environ["CUDA_VISIBLE_DEVICES"]

    assert sorted(get(both.remote()).split(",")) == ["0", "1"]


def test_infeasible_task_waits_and_can_be_cancelled():
    @ray.remote(num_cpus=64)
    def huge():
        return 1

    ref = huge.remote()
    assert ray.wait([ref], timeout=1)[0] == []
    ray.cancel(ref)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        get(ref)


def test_cancel_queued_running_and_by_force():
    recorder = Recorder.options(num_cpus=0).remote()

    @ray.remote(num_cpus=3, max_retries=0)
    def runs(recorder, name):
        ray.get(recorder.add.remote((name, os.getpid())))
        while True:
            time.sleep(0.05)

    running = runs.remote(recorder, "running")
    wait_until(lambda: len(get(recorder.all.remote())) == 1, "the first task runs")
    queued = runs.remote(recorder, "queued")
    assert ray.wait([queued], timeout=0.5)[0] == []
    ray.cancel(queued)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        get(queued)
    ray.cancel(running)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        get(running)
    assert [name for name, _ in get(recorder.all.remote())] == ["running"]

    forced = runs.remote(recorder, "forced")
    wait_until(lambda: len(get(recorder.all.remote())) == 2, "the third task runs")
    pid = get(recorder.all.remote())[-1][1]
    ray.cancel(forced, force=True)
    with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError)):
        get(forced)
    wait_until(lambda: not process_exists(pid), "the worker of the task cancelled by force has ended")


def test_cancel_reaches_children():
    recorder = Recorder.options(num_cpus=0).remote()

    @ray.remote(max_retries=0)
    def child(recorder):
        ray.get(recorder.add.remote("child"))
        while True:
            time.sleep(0.05)

    @ray.remote(max_retries=0)
    def parent(recorder):
        ray.get(child.remote(recorder))

    ref = parent.remote(recorder)
    wait_until(lambda: get(recorder.all.remote()) == ["child"], "the child runs")
    ray.cancel(ref, recursive=True)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        get(ref)
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 3, "parent and child have ended")


def test_worker_that_leaves_after_some_calls():
    """max_calls: the worker returns its lease and exits; the next task gets a fresh one."""
    @ray.remote(max_calls=2)
    def pid():
        return os.getpid()

    calls = collections.Counter(get(pid.remote()) for _ in range(12))
    assert max(calls.values()) == 2, calls
    left = [worker for worker, count in calls.items() if count == 2]
    wait_until(lambda: not [worker for worker in left if process_exists(worker)], "workers have left after two calls")
