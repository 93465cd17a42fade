"""The worker pool: how many workers there are, which one serves what, what they leave in the logs, how they end."""

import os
import re
import stat
import sys
import time

import pytest
import ray

from harness import agents_of, descendants, get, is_worker, process_exists, wait_until

CPUS = 3
NODE = {"num_cpus": CPUS, "_system_config": {"worker_register_timeout_seconds": 6}}


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

    Ray asks for as many as the node has CPUs. The stock raylet starts no more than --maximum_startup_concurrency of them,
    which is the number of real CPUs where that is smaller.
    """
    least = min(CPUS, os.cpu_count())
    ahead = wait_until(lambda: len(node.workers()) >= least and not unregistered(node.raylet) and node.workers(),
                       f"at least {least} workers started ahead of demand")
    assert len(ahead) <= CPUS
    assert get(pid.remote()) in [worker.pid for worker in ahead]


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
        return 0 if n == 0 else 1 + ray.get(depth.remote(n - 1))

    assert get(depth.remote(6)) == 6
    assert len(node.workers()) > CPUS
    wait_until(lambda: len(node.workers()) == CPUS, f"idle workers reaped down to {CPUS}", timeout_s=40)
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
    assert time.monotonic() - started >= 5
    hung, *later = pids()
    assert number in later
    wait_until(lambda: not process_exists(hung), "the process that never registered is ended")


def test_worker_that_dies_while_starting_is_replaced(first_start_goes_wrong):
    executable, pids = first_start_goes_wrong("exit 3")
    number = get(pid.options(runtime_env={"py_executable": executable}).remote(), 90)
    assert number in pids()[1:]


def test_no_worker_is_left_of_finished_actors(node):
    wait_until(lambda: len([worker for worker in node.workers() if is_worker(worker)]) <= CPUS + 1, "only the pool remains")
