"""The worker pool: how many workers there are, which one serves what, what they leave in the logs, how they end.

Ours forks plain workers from a process that has imported Ray, its nursery; the stock raylet starts a Python for each.
"""

import contextlib
import os
import re
import stat
import sys
import time

import psutil
import pytest
import ray

from harness import (OURS, agents_of, assert_all_gone, clean_environment, descendants, get, is_worker, process_exists, run_program,
                     short_directory, wait_until)

CPUS = 3
NODE = {"num_cpus": CPUS, "_system_config": {"worker_register_timeout_seconds": 12}}


@ray.remote
def pid():
    return os.getpid()


def unregistered(raylet):
    """Worker processes that have not yet taken their title, which they do once they are registered."""
    starting = []
    for process in descendants(raylet):
        try:
            if "default_worker.py" in " ".join(process.cmdline()):
                starting.append(process)
        except Exception:
            pass
    return starting


def test_workers_are_started_ahead(node):
    """Before any task, and registered; the first task runs in one of them.

    Ray asks for as many as the node has CPUs. No more start than --maximum_startup_concurrency, which is the number of real
    CPUs where that is smaller.
    """
    number = min(CPUS, os.cpu_count())
    wait_until(lambda: len(node.workers()) >= number and not unregistered(node.raylet), f"{number} workers started ahead")
    time.sleep(2)
    ahead = node.workers()
    assert len(ahead) == number, "and no more without demand"
    assert get(pid.remote()) in [worker.pid for worker in ahead]


def nurseries_of(raylet):
    """Our nursery; empty for the stock raylet and where there is none."""
    found = []
    for process in descendants(raylet):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "worker nursery" in " ".join(process.cmdline()):
                found.append(process)
    return found


@ray.remote(num_cpus=0)
class Newcomer:
    """An actor on a worker of its own."""

    def parent(self):
        return os.getppid()

    def drawn(self):
        """What no two processes should draw alike."""
        import multiprocessing
        import random
        import uuid

        import numpy
        from ray._raylet import JobID, ObjectID, PlacementGroupID, WorkerID

        return {
            "random": random.random(), "numpy": numpy.random.rand(), "uuid1": uuid.uuid1().hex,
            "worker": WorkerID.from_random().hex(), "object": ObjectID.from_random().hex(),
            "group": PlacementGroupID.of(JobID.from_int(1)).hex(),
            "authkey": bytes(multiprocessing.current_process().authkey).hex(),
        }

    def pool(self, method):
        """Runs a pool of processes below the worker."""
        import multiprocessing

        with multiprocessing.get_context(method).Pool(2) as pool:
            return pool.map(abs, [-1, -2])

    def seen(self):
        """What a worker has from its start."""
        import signal
        import threading

        return {
            "argv": [sys.argv[0].rsplit("/ray/")[-1], len(sys.argv)], "orig_argv": sys.orig_argv[1:] == sys.argv,
            "main": sorted(name for name in sys.modules["__main__"].__dict__ if name.startswith("__")),
            "path": sys.path, "group": os.getpgid(0) == os.getpid(), "stdin": os.readlink("/proc/self/fd/0"),
            "native": threading.main_thread().native_id == os.getpid(), "flags": repr(sys.flags), "cwd": os.getcwd(),
            "signals": [getattr(signal.getsignal(number), "__qualname__", str(signal.getsignal(number))) for number in (2, 13, 15, 17)],
            "environment": {name: value for name, value in os.environ.items() if name not in ("RAY_JOB_ID", "RAY_RAYLET_PID")},
        }


def newcomers(count):
    """So many new actors, each on a worker of its own."""
    actors = [Newcomer.remote() for _ in range(count)]
    get([actor.parent.remote() for actor in actors])
    return actors


def test_workers_draw_numbers_of_their_own(node):
    drawn = get([actor.drawn.remote() for actor in newcomers(5)])
    for name in drawn[0]:
        assert len({str(one[name]) for one in drawn}) == 5, f"{name}: {[one[name] for one in drawn]}"


def test_workers_are_forked_where_they_start_alike(node):
    """Plain workers come from the nursery; one in an environment of its own has the raylet for a parent, as all of stock's."""
    [nursery] = nurseries_of(node.raylet) if OURS else [node.raylet]
    actors = newcomers(4)
    assert {get(actor.parent.remote()) for actor in actors} == {nursery.pid}
    dressed = Newcomer.options(runtime_env={"env_vars": {"NURSERY": "no"}}).remote()
    assert get(dressed.parent.remote()) == node.raylet.pid


def test_a_forked_worker_looks_like_a_started_one(node):
    [actor] = newcomers(1)
    dressed = Newcomer.options(runtime_env={"env_vars": {"NURSERY": "no"}}).remote()
    forked, started = get([actor.seen.remote(), dressed.seen.remote()])
    assert started["environment"].pop("NURSERY") == "no"
    # A started one has the context of its environment among its arguments.
    assert forked.pop("argv")[0] == started.pop("argv")[0] == "_private/workers/default_worker.py"
    assert forked == started


def test_workers_can_use_multiprocessing(node):
    """Not by the method "fork": a Ray worker has threads, and a forked copy of it may hang, on stock as well."""
    [actor] = newcomers(1)
    for method in ("spawn", "forkserver"):
        assert get(actor.pool.remote(method)) == [1, 2]


def test_a_killed_nursery_is_replaced(node):
    """Workers start plainly meanwhile; those that it has forked go on."""
    [before] = newcomers(1)
    nurseries = nurseries_of(node.raylet)
    assert len(nurseries) == int(OURS)
    for nursery in nurseries:
        nursery.kill()
    assert_all_gone(nurseries, "the nursery is gone")
    [after] = newcomers(1)
    # A busy machine may take so long that the next nursery is there.
    assert get(after.parent.remote()) in [node.raylet.pid, *(nursery.pid for nursery in nurseries_of(node.raylet))]
    assert get(before.pool.remote("spawn")) == [1, 2]

    def forked_again():
        [actor] = newcomers(1)
        return get(actor.parent.remote()) != node.raylet.pid

    if OURS:
        wait_until(forked_again, "a second nursery forks workers", every_s=0.5)
        assert not {nursery.pid for nursery in nurseries} & {nursery.pid for nursery in nurseries_of(node.raylet)}


def test_workers_are_used_again(node):
    pids = {get(pid.remote()) for _ in range(30)}
    assert len(pids) <= CPUS
    assert pids <= {worker.pid for worker in node.workers()}


def test_log_files_have_rays_names(node):
    @ray.remote
    def speak():
        print("said aloud")
        print("said in anger", file=sys.stderr)
        context = ray.get_runtime_context()
        return os.getpid(), context.get_worker_id(), context.get_job_id()

    number, worker_id, job_id = get(speak.remote())
    for ending, text in (("out", "said aloud"), ("err", "said in anger")):
        [path] = node.logs.glob(f"worker-{worker_id}-*-{number}.{ending}")
        assert re.fullmatch(rf"worker-[0-9a-f]{{56}}-({job_id}|ffffffff)-{number}\.{ending}", path.name)
        wait_until(lambda: text in path.read_text(), f"{text!r} in {path.name}")
    [core] = node.logs.glob(f"python-core-worker-{worker_id}_{number}.log")
    assert core.stat().st_size > 0
    assert (node.logs / "raylet.out").exists() and (node.logs / "raylet.err").exists()


def test_out_of_memory_score_and_niceness(node):
    """Workers are what the kernel should kill first (RAY_worker_oom_score_adjustment, 1000) and are nice (15); the rest is not."""
    number = get(pid.remote())
    assert open(f"/proc/{number}/oom_score_adj").read().strip() == "1000"
    assert os.getpriority(os.PRIO_PROCESS, number) == min(19, os.getpriority(os.PRIO_PROCESS, node.raylet.pid) + 15)
    for agent in agents_of(node.raylet).values():
        assert open(f"/proc/{agent.pid}/oom_score_adj").read().strip() != "1000"


def test_idle_workers_are_reaped_down_to_the_cpus(node):
    """Blocked tasks make the pool grow; once they are done, it shrinks to as many as there are CPUs, and no further."""
    @ray.remote
    def depth(n):
        return [os.getpid(), *(ray.get(depth.remote(n - 1)) if n else [])]

    assert len(set(get(depth.remote(6)))) == 7
    wait_until(lambda: len(node.workers()) == CPUS, f"idle workers reaped down to {CPUS}")
    time.sleep(2)
    assert len(node.workers()) == CPUS


def test_killed_idle_worker_is_replaced(node):
    wait_until(lambda: len(node.workers()) >= 1 and not unregistered(node.raylet), "an idle worker")
    victims = node.workers()
    for victim in victims:
        victim.kill()
    wait_until(lambda: not [victim for victim in victims if process_exists(victim.pid)], "killed")
    assert get(pid.remote()) not in [victim.pid for victim in victims]


def test_environment_variables_get_a_worker_of_their_own():
    @ray.remote
    def look():
        return os.getpid(), os.environ.get("POOL_COLOUR")

    red = look.options(runtime_env={"env_vars": {"POOL_COLOUR": "red"}})
    blue = look.options(runtime_env={"env_vars": {"POOL_COLOUR": "blue"}})
    red_pid, colour = get(red.remote())
    assert colour == "red"
    blue_pid, colour = get(blue.remote())
    assert colour == "blue" and blue_pid != red_pid
    plain_pid, colour = get(look.remote())
    assert colour is None and plain_pid not in (red_pid, blue_pid)
    assert get(red.remote()) == (red_pid, "red"), "the same environment finds the same worker"


def test_actor_takes_a_worker_and_does_not_give_it_to_tasks():
    @ray.remote(num_cpus=0)
    class Sitter:
        def pid(self):
            return os.getpid()

    sitters = [Sitter.remote() for _ in range(2)]
    taken = set(get([sitter.pid.remote() for sitter in sitters]))
    assert len(taken) == 2
    assert not taken & set(get([pid.remote() for _ in range(20)]))


def test_start_up_is_limited(node):
    """Of many actors asked for at once, only so many workers start at the same time (--maximum_startup_concurrency)."""
    @ray.remote(num_cpus=0)
    class Sitter:
        def pid(self):
            return os.getpid()

    crowd = [Sitter.remote() for _ in range(4 * CPUS)]
    answers = [sitter.pid.remote() for sitter in crowd]
    most = 0
    deadline = time.monotonic() + 90
    while len(ray.wait(answers, num_returns=len(answers), timeout=0.02)[0]) < len(answers):
        most = max(most, len(unregistered(node.raylet)))
        assert time.monotonic() < deadline, "the crowd of actors came up"
    assert len(set(get(answers))) == 4 * CPUS
    assert 1 <= most <= 2 * CPUS, f"{most} workers were starting at once"


@pytest.fixture
def first_start_goes_wrong(tmp_path):
    """Makes a Python executable whose first start does `instead`; it notes its process ids."""
    def make(instead):
        notes = tmp_path / "pids"
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\necho $$ >> {notes}\n[ $(wc -l < {notes}) -gt 1 ] || {instead}\nexec {sys.executable} "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return str(script), lambda: [int(line) for line in notes.read_text().split()]

    return make


def test_worker_that_never_registers_is_given_up(first_start_goes_wrong):
    """After the registration time-out the process is killed and another is started for the same task."""
    executable, pids = first_start_goes_wrong("exec sleep 300")
    started = time.monotonic()
    number = get(pid.options(runtime_env={"py_executable": executable}).remote(), 90)
    assert time.monotonic() - started >= 11
    hung, *later = pids()
    assert number in later
    wait_until(lambda: not process_exists(hung), "the process that never registered is ended")


def test_worker_that_dies_while_starting_is_replaced(first_start_goes_wrong):
    executable, pids = first_start_goes_wrong("exit 3")
    number = get(pid.options(runtime_env={"py_executable": executable}).remote(), 90)
    assert number in pids()[1:]


def test_no_worker_is_left_of_finished_actors(node):
    wait_until(lambda: len([worker for worker in node.workers() if is_worker(worker)]) <= CPUS + 1, "only the pool remains")


SETTING_PROGRAM = """
    import os, sys, psutil, ray
    ray.init(address="local", num_cpus=1, object_store_memory=200 * 2**20, _temp_dir=sys.argv[1], include_dashboard=False)
    @ray.remote
    def parent():
        return psutil.Process().parent().cmdline()[0].split("/")[-1]
    print(ray.get(parent.remote(), timeout=60))
"""


def test_nursery_can_be_switched_off():
    for setting, parent in (("0", "raylet"), ("1", "raylet-uring: worker nursery" if OURS else "raylet")):
        with short_directory() as directory:
            told = run_program(SETTING_PROGRAM, directory, environment=clean_environment(RAYLET_URING_WORKER_NURSERY=setting))
        assert told.strip().splitlines()[-1] == parent


DYING_PROGRAM = """
    import os, sys, time, ray
    said = os.open(sys.argv[1] + "/said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    ray.init(address="local", num_cpus=1, object_store_memory=200 * 2**20, _temp_dir=sys.argv[1], include_dashboard=False)
    @ray.remote(max_retries=0)
    def die():
        os._exit(9)
    try:
        ray.get(die.remote(), timeout=60)
    except ray.exceptions.WorkerCrashedError:
        print("crashed as expected", flush=True)
    deadline = time.monotonic() + 60
    while "Worker exit type" not in open(sys.argv[1] + "/said").read() and time.monotonic() < deadline:
        time.sleep(0.1)
"""


def test_driver_is_told_of_a_worker_that_died():
    """In words that people search for."""
    with short_directory() as directory:
        run_program(DYING_PROGRAM, directory)
        told = open(f"{directory}/said").read()
    assert "crashed as expected" in told
    [line] = [line for line in told.splitlines() if "Worker exit type" in line]
    assert "A worker died or was killed while executing a task by an unexpected system error." in line
    for part in ("Lease ID: 00000000", "Worker ID: ", "Node ID: ", "Worker PID: ", "Worker exit type: SYSTEM_ERROR Worker exit detail: "):
        assert part in line, line
