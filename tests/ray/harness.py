"""Nodes for the end-to-end suite: start Ray, find its raylet, prove which one it is, leave nothing behind.

`RAYLET_UNDER_TEST` chooses what the suite expects to be running:

* ``ours`` (the default): the Ray installation of the running interpreter has raylet-uring attached;
* ``stock``: it has Ray's own raylet. The suite passes on both, so that it is a judge and not a mirror.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time

import psutil

MIB = 1024 * 1024
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
KEPT_LOGS = REPOSITORY / "target" / "e2e-logs"

UNDER_TEST = os.environ.get("RAYLET_UNDER_TEST", "ours")
if UNDER_TEST not in ("ours", "stock"):
    raise SystemExit(f"RAYLET_UNDER_TEST: expected 'ours' or 'stock', got {UNDER_TEST!r}")
OURS = UNDER_TEST == "ours"

#: How long a condition that must come true may take on a busy two-core machine.
PATIENCE_S = 60.0
#: Whether this process is root, which some clean-up guarantees (OOM score, namespaces) depend on.
IS_ROOT = os.geteuid() == 0


def our_binary():
    """Path of the built raylet-uring that the suite measures the running one against."""
    return pathlib.Path(os.environ.get("RAYLET_URING_BIN", REPOSITORY / "target" / "release" / "raylet-uring"))


def change_bytes(path):
    """Flips a byte in each MiB of a file, behind the back of whoever wrote it."""
    with open(path, "r+b") as file:
        for offset in range(5000, path.stat().st_size, MIB):
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 255]))


def wait_until(condition, what, timeout_s=PATIENCE_S, every_s=0.05):
    """Polls `condition` until it returns something true, and returns that; fails naming `what`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what} (last: {value!r})")
        time.sleep(every_s)


def get(refs, timeout_s=60):
    """`ray.get` with a time limit: a hang is a failure of one test, with GetTimeoutError, not of the whole run."""
    import ray

    return ray.get(refs, timeout=timeout_s)


# ---------------------------------------------------------------------------------------------------------------
# Which raylet is it?


def installed_raylet():
    """The path from which this interpreter's Ray starts its raylet (ray/_private/services.py, RAYLET_EXECUTABLE)."""
    import ray

    return pathlib.Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"


def sha256(path):
    """Checksum of a file, in hex. Follows /proc/PID/exe, so it works on a binary that was replaced on disk."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def assert_raylet_under_test(raylet):
    """Asserts that the process `raylet` (psutil.Process) runs the executable that this run is about."""
    exe = f"/proc/{raylet.pid}/exe"
    running = sha256(exe)
    assert running == sha256(installed_raylet()), f"{os.readlink(exe)} is not the raylet of this Ray installation"
    status = subprocess.run(
        [our_binary(), "attach", "--status", sys.executable], capture_output=True, text=True, timeout=60
    ) if our_binary().exists() else None
    if OURS:
        assert our_binary().exists(), f"{our_binary()} is not built: run `make build`"
        assert running == sha256(our_binary()), (
            f"the running raylet {os.readlink(exe)} is not {our_binary()}: "
            f"run `{our_binary()} attach {sys.executable}`"
        )
        assert status.returncode == 0, f"attach --status denies it: {status.stdout}{status.stderr}"
    else:
        assert not our_binary().exists() or running != sha256(our_binary()), "raylet-uring is running, not the stock one"
        assert status is None or status.returncode != 0, f"attach --status claims the stock one: {status.stdout}"


def raylet_of_session(session_dir):
    """The psutil.Process of the raylet that serves `session_dir`, found by its --raylet_socket_name."""
    needle = os.path.join(os.path.realpath(session_dir), "sockets", "raylet")

    def find():
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if command and os.path.basename(command[0]) == "raylet" and any(needle in part for part in command[1:]):
                return process
        return None

    return wait_until(find, f"a raylet serving {needle}")


# ---------------------------------------------------------------------------------------------------------------
# Processes


def descendants(root):
    """All live descendants of a psutil.Process, itself excluded."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return root.children(recursive=True)
    return []


def is_alive(process):
    """Whether a psutil.Process runs (a zombie does not)."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def survivors(processes):
    """Those of `processes` (psutil.Process) that still run."""
    return [process for process in processes if is_alive(process)]


def assert_all_gone(processes, what, timeout_s=PATIENCE_S):
    """Asserts that each of `processes` ends by itself; ends by pid whatever did not, so that a failure leaves nothing."""
    try:
        wait_until(lambda: not survivors(processes), what, timeout_s)
    except AssertionError:
        left = [f"{process.pid} {' '.join(process.cmdline())[:120]}" for process in survivors(processes)]
        raise AssertionError(f"{what}: still running after {timeout_s:g} s: {left}") from None
    finally:
        for process in survivors(processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def workers_of(raylet):
    """Worker processes of a raylet (psutil.Process): its descendants that are not agents."""
    return [process for process in descendants(raylet) if is_worker(process)]


def is_worker(process):
    """Whether a process is a Ray worker, by command line (before it takes its title) or by title (ray::NAME)."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        command = " ".join(process.cmdline())
        return "default_worker.py" in command or (command.startswith("ray::") and "Agent" not in command)
    return False


def agents_of(raylet):
    """The raylet's two agents by kind: {'DashboardAgent': psutil.Process, 'RuntimeEnvAgent': psutil.Process}."""
    found = {}
    for process in descendants(raylet):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            command = " ".join(process.cmdline())
            for kind, script in (("DashboardAgent", "dashboard/agent.py"), ("RuntimeEnvAgent", "runtime_env/agent/main.py")):
                if f"ray::{kind}" in command or script in command:
                    found[kind] = process
    return found


def both_agents_of(raylet):
    """As agents_of, once both run: a raylet may hold them back while its first driver starts."""
    return wait_until(lambda: len(found := agents_of(raylet)) == 2 and found, "both agents run")


def process_exists(pid):
    """Whether a process of this id runs (a zombie does not)."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return is_alive(psutil.Process(pid))
    return False


def memory_available():
    """Bytes that this machine can still give, by /proc/meminfo and by /dev/shm, whichever is less."""
    return min(psutil.virtual_memory().available, shutil.disk_usage("/dev/shm").free)


def free_port():
    """A TCP port of the loopback interface that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---------------------------------------------------------------------------------------------------------------
# A node


@contextlib.contextmanager
def short_directory():
    """A temporary directory whose path leaves room for Ray's socket names (a Unix socket path has 107 bytes)."""
    path = tempfile.mkdtemp(prefix="ru", dir=os.environ.get("E2E_TMP", "/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Node:
    """A running local node: what the tests ask of it."""

    def __init__(self, session_dir, raylet, address):
        self.session_dir = session_dir
        self.raylet = raylet
        self.address = address

    @property
    def logs(self):
        """The session's log directory."""
        return pathlib.Path(self.session_dir) / "logs"

    @property
    def sockets(self):
        """The two Unix sockets that the raylet serves."""
        directory = pathlib.Path(self.session_dir) / "sockets"
        return [directory / "raylet", directory / "plasma_store"]

    def workers(self):
        """Worker processes, live."""
        return workers_of(self.raylet)

    def record(self):
        """The node's entry in the GCS node table."""
        import ray

        return next(node for node in ray.nodes() if node["Alive"])

    def stats(self, objects=False):
        """NodeManagerService.GetNodeStats, asked over gRPC."""
        from ray._private.internal_api import node_stats

        record = self.record()
        return node_stats(record["NodeManagerAddress"], record["NodeManagerPort"], include_memory_info=objects)

    def store(self):
        """The store's figures (ObjectStoreStats of GetNodeStats)."""
        return self.stats().store_stats

    def wait_for_store_below(self, limit_bytes, what):
        """Waits until the store holds less than `limit_bytes`."""
        import gc

        def fell():
            gc.collect()
            return self.store().object_store_bytes_used < limit_bytes

        wait_until(fell, f"{what}: store below {limit_bytes} bytes", every_s=0.2)


@contextlib.contextmanager
def local_node(**settings):
    """`ray.init()` of a local node in a directory of its own, its raylet checked, its end checked too.

    `settings` go to ray.init. The node has no dashboard unless asked for: it costs ten processes.
    """
    import ray

    options = {
        "num_cpus": 4,
        "object_store_memory": 300 * MIB,
        "include_dashboard": False,
        "log_to_driver": False,
        "configure_logging": False,
    }
    options.update(settings)
    with short_directory() as directory:
        mine_before = {process.pid for process in descendants(psutil.Process())}
        context = ray.init(address="local", _temp_dir=directory, **options)
        started = []
        try:
            session_dir = context.address_info["session_dir"]
            raylet = raylet_of_session(session_dir)
            assert_raylet_under_test(raylet)
            node = Node(session_dir, raylet, context.address_info["gcs_address"])
            yield node
        finally:
            started = [process for process in descendants(psutil.Process()) if process.pid not in mine_before]
            ray.shutdown()
            keep_logs(directory)
            assert_all_gone(started, "the node's processes end with ray.shutdown()")
        if OURS:
            left = [path for path in node.sockets if path.exists()]
            assert not left, f"sockets left behind: {left}"


#: Set by conftest.py when a test fails, so that the session's logs outlive the session.
failures = []


def keep_logs(directory):
    """Copies the log directories of the sessions under `directory` to target/e2e-logs if a test has failed."""
    if not failures:
        return
    name = failures[-1].replace("/", "_").replace("::", ".")
    for logs in pathlib.Path(directory).glob("session_2*/logs"):
        shutil.copytree(logs, KEPT_LOGS / f"{name}.{os.getpid()}", dirs_exist_ok=True, ignore_dangling_symlinks=True)
    failures.clear()


# ---------------------------------------------------------------------------------------------------------------
# Clusters of several nodes on this machine


def raylet_executables():
    """The two raylets by kind, 'ours' and 'stock': what is attached keeps Ray's own beside itself. A kind that is missing is left out."""
    installed = installed_raylet()
    kept = installed.with_name("raylet.stock")
    found = {"stock": kept if kept.exists() else installed, "ours": our_binary()}
    return {kind: path for kind, path in found.items() if path.exists()}


#: The other kind than the one under test, for clusters of both; where ours is not built, a cluster of Ray's own alone.
OTHER = "ours" if not OURS and our_binary().exists() else "stock"


class ClusterNode:
    """A node of a Cluster."""

    def __init__(self, kind, node):
        self.kind = kind
        self.node = node
        self.raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        self.id = node.node_id
        self.killed = False

    def kill(self):
        """Ends the raylet as a machine ends: at once. What it had started ends by itself, as on a machine it would."""
        left = descendants(self.raylet)
        self.killed = True
        self.raylet.kill()
        assert_all_gone([self.raylet], "the raylet ends")
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


class Cluster:
    """Several nodes of one cluster, each with a raylet of its own, and the driver connected to the head node."""

    def __init__(self, directory):
        from ray.cluster_utils import Cluster as RayCluster

        self.directory = directory
        self.cluster = RayCluster(shutdown_at_exit=False)
        self.nodes = []

    def add(self, kind=UNDER_TEST, **settings):
        """Starts a node with the raylet of a kind; `settings` are those of ray.cluster_utils.Cluster.add_node. The first is the head."""
        from ray._private import services

        executable = pathlib.Path(self.directory) / kind / "raylet"
        executable.parent.mkdir(exist_ok=True)
        if not executable.exists():
            executable.symlink_to(raylet_executables()[kind])
        options = {"num_cpus": 2, "object_store_memory": 100 * MIB, "include_dashboard": False}
        if not self.nodes:
            options["temp_dir"] = self.directory
        options.update(settings)
        before, services.RAYLET_EXECUTABLE = services.RAYLET_EXECUTABLE, str(executable)
        try:
            node = ClusterNode(kind, self.cluster.add_node(**options))
        finally:
            services.RAYLET_EXECUTABLE = before
        self.nodes.append(node)
        assert sha256(f"/proc/{node.raylet.pid}/exe") == sha256(raylet_executables()[kind]), f"not the {kind} raylet"
        return node

    def connect(self):
        """Connects this process as a driver, and waits until every node that was started takes part."""
        import ray

        ray.init(address=self.cluster.address, log_to_driver=False, configure_logging=False)
        self.wait_for_nodes()

    def alive(self):
        """Ids of the nodes that the GCS takes for alive."""
        import ray

        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def wait_for_nodes(self):
        """Waits until the GCS knows of each node whether it lives, and has its resources."""
        import ray

        expected = {node.id for node in self.nodes if not node.killed}
        wait_until(lambda: self.alive() == expected, "the GCS knows who lives")
        wait_until(
            lambda: set(ray._private.state.available_resources_per_node()) == expected, "the GCS knows who has what"
        )

    def remove(self, node):
        """Ends a node in order."""
        self.cluster.remove_node(node.node)
        node.killed = True

    def stop(self):
        """Ends the driver's connection, then all nodes; asserts that nothing is left."""
        import ray

        mine = [process for node in self.nodes for process in [node.raylet, *descendants(node.raylet)]]
        ray.shutdown()
        keep_logs(self.directory)
        for node in reversed(self.nodes):
            node.node.kill_all_processes(check_alive=False, allow_graceful=not node.killed, wait=True)
        ray._common.utils.reset_ray_address()
        assert_all_gone(mine, "the nodes' processes end with the cluster")


@contextlib.contextmanager
def cluster():
    """An empty Cluster in a directory of its own; stopped at the end."""
    with short_directory() as directory:
        running = Cluster(directory)
        try:
            yield running
        finally:
            running.stop()


# ---------------------------------------------------------------------------------------------------------------
# Programs in processes of their own


def clean_environment(**changes):
    """The environment for a child, without the settings by which Ray would find another cluster. None removes a name."""
    environment = {
        name: value for name, value in os.environ.items()
        if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR")
    }
    for name, value in changes.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = str(value)
    return environment


def run_program(source, *arguments, timeout_s=90, expect=0, environment=None):
    """Runs Python source as a program of its own; returns its standard output. `expect=None` takes any exit status."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout_s, env=environment or clean_environment(),
    )
    if expect is not None:
        assert done.returncode == expect, f"exit {done.returncode}\n--- out\n{done.stdout}\n--- err\n{done.stderr[-4000:]}"
    return done.stdout


@contextlib.contextmanager
def background_program(source, *arguments, environment=None):
    """A Python program of its own, standard output readable by line; killed at the end if it still runs."""
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(source), *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment or clean_environment(),
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
        child.wait(timeout=PATIENCE_S)
        child.stdout.close()
