"""A node starts, refuses strangers, and ends: ray.init, ray start/stop, tokens, signals, killed drivers."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

import harness
from harness import background_program, clean_environment, run_program, short_directory, wait_until

NODE = {"num_cpus": 2}

#: A driver that starts its own node, reports it, and waits to be ended.
WAITING_DRIVER = """
import json, os, sys, time, ray
ray.init(address="local", _temp_dir=sys.argv[1], num_cpus=2, object_store_memory=100 << 20,
         include_dashboard=False, log_to_driver=False)
@ray.remote
def pid():
    return os.getpid()
print(json.dumps({"session": ray._private.worker._global_node.get_session_dir_path(), "worker": ray.get(pid.remote())}))
time.sleep(300)
"""


def node_of(child):
    """The node that a WAITING_DRIVER reports: its raylet, all of its processes, and its sockets."""
    report = json.loads(child.stdout.readline())
    raylet = harness.raylet_of_session(report["session"])
    harness.assert_raylet_under_test(raylet)
    # A process that changes its title has none for a moment.
    wait_until(lambda: report["worker"] in [worker.pid for worker in harness.workers_of(raylet)], "the task's worker")
    sockets = [os.path.join(report["session"], "sockets", name) for name in ("raylet", "plasma_store")]
    assert all(os.path.exists(path) for path in sockets)
    harness.both_agents_of(raylet)
    return raylet, harness.descendants(psutil.Process(child.pid)), sockets


@pytest.fixture(scope="module")
def strangers(node):
    """Two drivers that try to join the module's node, one with a wrong token, one with none.

    Ray's client tries for 20 s before it gives up, so they are started early and judged late.
    """
    programs = [
        subprocess.Popen([sys.executable, "-c", JOINING_DRIVER, node.address], stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, text=True, env=clean_environment(**settings))
        for settings in ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"})
    ]
    yield programs
    for program in programs:
        program.kill()
        program.communicate()


#: Prints how its attempt to join a running node ends.
JOINING_DRIVER = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False)
except Exception as error:
    print(type(error).__name__)
else:
    print("joined")
"""


def assert_sockets_gone(sockets):
    """Our raylet removes both of its sockets; the stock one leaves plasma_store lying."""
    expected_gone = sockets if harness.OURS else []
    wait_until(lambda: not [path for path in expected_gone if os.path.exists(path)], "sockets removed")


def test_plain_ray_init_makes_a_token_and_leaves_nothing():
    """`ray.init()` with no argument, as a new user has it: a home without a token, default ports and directories."""
    with short_directory() as directory:
        home = os.path.join(directory, "home")
        os.mkdir(home)
        report = json.loads(run_program(
            """
            import json, os, psutil, ray
            context = ray.init(log_to_driver=False)
            @ray.remote
            def square(x):
                return x * x
            print(json.dumps({
                "squares": ray.get([square.remote(i) for i in range(5)]),
                "mode": os.environ["RAY_AUTH_MODE"],
                "session": context.address_info["session_dir"],
                "pids": [p.pid for p in psutil.Process().children(recursive=True)],
            }))
            """,
            environment=clean_environment(HOME=home, RAY_TMPDIR=directory),
        ).splitlines()[-1])
        assert report["squares"] == [0, 1, 4, 9, 16]
        assert report["mode"] == "token"
        assert os.path.getsize(os.path.join(home, ".ray", "auth_token")) >= 32
        wait_until(lambda: not [pid for pid in report["pids"] if harness.process_exists(pid)], "processes ended")
        assert_sockets_gone([os.path.join(report["session"], "sockets", name) for name in ("raylet", "plasma_store")])


def test_ray_start_auto_address_and_ray_stop():
    """`ray start --head`, two drivers by address="auto", `ray stop`.

    `ray stop` ends every Ray process that it can see, so this runs where it sees only its own: in a PID namespace.
    """
    program = os.path.join(os.path.dirname(__file__), "start_and_stop.py")
    with short_directory() as directory:
        done = subprocess.run(
            [*private_pids(), sys.executable, program, directory],
            capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL,
            env=clean_environment(RAY_TMPDIR=directory, HOME=directory),
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        report = json.loads(done.stdout.splitlines()[-1])
        assert report["squares"] == [[0, 1, 4], [0, 1, 4]]
        assert report["raylets_during"] == 1
        assert report["left_processes"] == []
        assert_sockets_gone(report["sockets"])


def private_pids():
    """The command prefix that gives a program a PID namespace of its own."""
    for prefix in (["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"],
                   ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]):
        if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    foreign = [process.pid for process in psutil.process_iter(["name"]) if process.info["name"] in ("raylet", "gcs_server")]
    assert not foreign, f"no PID namespaces here, and `ray stop` would end the Ray of others: {foreign}"
    return []


def test_sigterm_ends_the_raylet_with_workers_agents_and_sockets():
    """SIGTERM to the raylet alone: exit, and nothing of the node's process tree below it survives."""
    with short_directory() as directory, background_program(WAITING_DRIVER, directory) as child:
        raylet, everything, sockets = node_of(child)
        below = harness.descendants(raylet)
        assert len(harness.agents_of(raylet)) == 2 and harness.workers_of(raylet)
        raylet.send_signal(signal.SIGTERM)
        harness.assert_all_gone([raylet], "the raylet ends on SIGTERM")
        harness.assert_all_gone(below, "workers and agents end with the raylet")
        assert_sockets_gone(sockets)
        child.kill()
        harness.assert_all_gone(everything, "the rest ends with the driver")


def test_killed_driver_takes_its_local_node_along():
    """SIGKILL to a driver that started its node: every process of the node ends.

    Ray's agents first try for a minute to tell the dead GCS that their raylet died, so they get longer.
    """
    with short_directory() as directory, background_program(WAITING_DRIVER, directory) as child:
        raylet, everything, _ = node_of(child)
        agents = list(harness.agents_of(raylet).values())
        assert len(everything) >= 5 and len(agents) == 2
        child.kill()
        harness.assert_all_gone([process for process in everything if process not in agents],
                                "raylet, workers and GCS end with their driver")
        harness.assert_all_gone(agents, "agents end with their driver", timeout_s=80)


#: A WAITING_DRIVER whose node has, besides an idle worker, one that works, and one that was started in an environment.
BUSY_DRIVER = WAITING_DRIVER.replace("print(", """
@ray.remote(num_cpus=0, max_concurrency=2)
class Busy:
    def ready(self):
        return True
    def work(self):
        while True:
            time.sleep(0.01)
busy = [Busy.remote(), Busy.options(runtime_env={"env_vars": {"KILLED": "1"}}).remote()]
working = [actor.work.remote() for actor in busy]
ray.get([actor.ready.remote() for actor in busy])
print(""", 1)


def test_killed_raylet_takes_all_that_it_started_along():
    """SIGKILL to the raylet: its agents end, and its workers; when the driver is killed too, nothing is left.

    (Workers of a killed stock raylet may stay until their job or the GCS ends, so there that is not asked for.)
    """
    with short_directory() as directory, background_program(BUSY_DRIVER, directory) as child:
        raylet, everything, _ = node_of(child)
        below = harness.descendants(raylet)
        agents, workers = harness.agents_of(raylet), harness.workers_of(raylet)
        assert len(agents) == 2 and len(workers) >= 3
        raylet.kill()
        harness.assert_all_gone([raylet, *agents.values()], "agents end with a killed raylet")
        if harness.OURS:
            harness.assert_all_gone(below, "workers end with a killed raylet")
        assert child.poll() is None, "the driver lives"
        child.kill()
        harness.assert_all_gone(everything, "the rest ends with the driver")


def test_killed_second_driver_leaves_no_worker(node, strangers):
    """A driver joined to a running node and killed: its workers, its actor and its leases go, the node stays."""
    import ray

    token = os.environ.get("RAY_AUTH_MODE")
    with background_program(
        """
        import json, os, sys, time, ray
        ray.init(address=sys.argv[1], log_to_driver=False)
        @ray.remote(num_cpus=1)
        class Holder:
            def pid(self):
                return os.getpid()
        holder = Holder.remote()
        first = ray.get(holder.pid.remote())
        big = ray.put(b"x" * (20 << 20))
        print(json.dumps([first]))
        time.sleep(300)
        """,
        node.address, environment=clean_environment(RAY_AUTH_MODE=token),
    ) as child:
        pids = json.loads(child.stdout.readline())
        assert all(harness.process_exists(pid) for pid in pids)
        wait_until(lambda: ray.available_resources().get("CPU") == 1, "the second driver's actor holds a CPU")
        wait_until(lambda: node.store().object_store_bytes_used > 20 << 20, "the second driver's object is stored")
        child.kill()
        wait_until(lambda: not [pid for pid in pids if harness.process_exists(pid)], "the killed driver's workers end")
    wait_until(lambda: ray.available_resources().get("CPU") == 2, "the killed driver's CPU is free")
    node.wait_for_store_below(harness.MIB, "the killed driver's objects")
    assert node.raylet.is_running()

    @ray.remote
    def alive():
        return "yes"

    assert ray.get(alive.remote(), timeout=60) == "yes"


def call_raylet(node, metadata):
    """GetNodeStats on the raylet's gRPC port with the given metadata; returns the status code's name."""
    import grpc
    from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc

    record = node.record()
    with grpc.insecure_channel(f"{record['NodeManagerAddress']}:{record['NodeManagerPort']}") as channel:
        stub = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
        try:
            stub.GetNodeStats(node_manager_pb2.GetNodeStatsRequest(), metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"


def test_default_token_is_demanded_and_a_wrong_one_refused(node):
    """The raylet's own gRPC door: no token, a wrong one, the right one, in either header that Ray uses."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    token = os.environ.get("RAY_AUTH_TOKEN") or open(path).read().strip()
    assert call_raylet(node, []) == "UNAUTHENTICATED"
    assert call_raylet(node, [("authorization", "Bearer 0000" + token[4:])]) == "UNAUTHENTICATED"
    assert call_raylet(node, [("authorization", token)]) == "UNAUTHENTICATED"
    assert call_raylet(node, [("authorization", f"Bearer {token}x")]) == "UNAUTHENTICATED"
    assert call_raylet(node, [("authorization", f"Bearer {token}")]) == "OK"


def test_no_token_and_a_log_in_json():
    """RAY_AUTH_MODE=disabled: a node works, and its raylet answers a call without a token. RAY_BACKEND_LOG_JSON=1: each line of
    the raylet's log is an object with Ray's members."""
    with short_directory() as directory:
        out = run_program(
            """
            import json, os, sys
            sys.path.insert(0, sys.argv[1])
            import harness, ray, test_lifecycle
            with harness.local_node(num_cpus=1) as node:
                square = ray.remote(lambda x: x * x)
                print(ray.get(square.remote(12)), test_lifecycle.call_raylet(node, []))
                # The last line may still be written.
                for line in (node.logs / "raylet.out").read_text().splitlines()[:-1]:
                    print("LOG", line)
            """,
            os.path.dirname(__file__),
            environment=clean_environment(RAY_AUTH_MODE="disabled", RAY_BACKEND_LOG_JSON="1", HOME=directory, E2E_TMP=directory),
        )
        log = [json.loads(line.removeprefix("LOG ")) for line in out.splitlines() if line.startswith("LOG ")]
        said = [line for line in out.splitlines() if not line.startswith("LOG ")]
        assert said[-1].split() == ["144", "OK"]
        assert len(log) > 3
        for line in log:
            assert list(line)[:6] == ["asctime", "levelname", "message", "component", "filename", "lineno"], line
            assert time.strptime(line["asctime"].split(",")[0], "%Y-%m-%d %H:%M:%S") and line["levelname"] in "TDIWE"
            assert line["component"] == "raylet" and isinstance(line["lineno"], int)
        assert not os.path.exists(os.path.join(directory, ".ray", "auth_token"))


@pytest.mark.parametrize("bad", ["--no_such_flag=1", "--num_initial_python_workers=abc"])
def test_bad_raylet_flag_is_refused(bad):
    """An unknown flag or a value of the wrong type ends the raylet at once, with an error that names the flag."""
    done = subprocess.run([harness.installed_raylet(), bad], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert bad.split("=")[0].strip("-") in done.stdout + done.stderr


def test_drivers_with_a_wrong_token_or_none_are_refused(strangers):
    """A driver that brings another token, or none, can't join."""
    for program in strangers:
        out, _ = program.communicate(timeout=110)
        assert out.split() in (["AuthenticationError"], ["ConnectionError"])
