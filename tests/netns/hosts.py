"""Hosts on one machine: a network namespace each, and a switch between them whose cables can be pulled. Needs root."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import psutil

import harness

#: The interpreter whose Ray runs on the hosts.
PYTHON = sys.executable

#: Where the GCS of the first host listens.
PORT = 6379

#: A node that is silent for some ten seconds is dead, and asks whether it is: it was cut off when that was published.
SYSTEM_CONFIG = {"raylet_liveness_self_check_interval_ms": 5000,
                 "health_check_period_ms": 500, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 8,
                 "health_check_initial_delay_ms": 0}


def ip(*words):
    """Runs `ip`; a failure shows what it said."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()} (namespaces need root)"
    return done.stdout


class Host:
    """A network namespace with an address, on the switch's network."""

    def __init__(self, hosts, number):
        self.hosts = hosts
        self.name = f"ru{os.getpid()}h{number}"
        self.cable = f"port{number}"
        self.address = f"10.77.0.{number + 1}"
        self.processes = []
        ip("netns", "add", self.name)
        ip("-n", self.name, "link", "set", "lo", "up")
        ip("-n", hosts.switch, "link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("-n", hosts.switch, "link", "set", self.cable, "master", "bridge", "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")

    def start(self, *command, log, environment):
        """Starts a process on the host; it is ended with the host, and all that it started."""
        with open(log, "ab") as output:
            child = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *map(str, command)], stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, env=environment,
            )
        self.processes.append(psutil.Process(child.pid))
        return self.processes[-1]

    def limit_sending(self, bits):
        """What the host sends leaves with so many bits in a second, as over a wire of its own."""
        ip("netns", "exec", self.name, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", f"{bits}bit",
           "burst", "256kb", "latency", "50ms")

    def program(self, source, *arguments, environment, timeout_s=120):
        """Runs Python source on the host; returns what it printed."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, PYTHON, "-c", textwrap.dedent(source), *map(str, arguments)],
            capture_output=True, text=True, timeout=timeout_s, env=environment,
        )
        assert done.returncode == 0, f"exit {done.returncode}\n--- out\n{done.stdout}\n--- err\n{done.stderr[-4000:]}"
        return done.stdout

    def everything(self):
        """All that runs on the host."""
        return [process for root in self.processes for process in [root, *harness.descendants(root)]]


class Hosts:
    """Some hosts and their switch."""

    def __init__(self, count):
        self.switch = f"ru{os.getpid()}s"
        self.hosts = []
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for number in range(count):
            self.hosts.append(Host(self, number))

    def close(self):
        """Ends everything on the hosts, by pid, and takes the network away."""
        running = [process for host in self.hosts for process in host.everything()]
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(running, timeout=30)
        for name in [host.name for host in self.hosts] + [self.switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30, check=False)


@contextlib.contextmanager
def hosts(count):
    """Hosts for the time of a test."""
    network = Hosts.__new__(Hosts)
    network.hosts = []
    try:
        network.__init__(count)
        yield network.hosts
    finally:
        network.close()


@contextlib.contextmanager
def ray_cluster(count, store_bytes=100 * harness.MIB):
    """Hosts with a node of Ray each, the head node on the first, each with a resource of its own: `host0`, `host1`, ...

    Gives the hosts, and the environment for programs on them.
    """
    # What is left of a cluster that did not start is not of this one.
    harness.failures.clear()
    with harness.short_directory() as directory, hosts(count) as machines:
        environment = harness.clean_environment(RAY_AUTH_MODE="disabled", PYTHONPATH=None)
        environment["RAY_raylet_start_wait_time_s"] = "120"
        try:
            for number, host in enumerate(machines):
                start_node(host, number, directory, store_bytes, environment)
            yield machines, environment
        except BaseException:
            # A test that fails is noted before this ends; a start is not.
            harness.failures.append("start")
            raise
        finally:
            harness.keep_logs(directory)


def start_node(host, number, directory, store_bytes, environment):
    """Starts a host's node, and waits for its raylet."""
    common = ["--block", "--num-cpus=2", f"--object-store-memory={store_bytes}", "--disable-usage-stats",
              f"--node-ip-address={host.address}", f"--resources={json.dumps({f'host{number}': 1})}"]
    role = ["--head", f"--port={PORT}", f"--temp-dir={directory}", "--include-dashboard=false",
            f"--system-config={json.dumps(SYSTEM_CONFIG)}"] if number == 0 else [f"--address=10.77.0.1:{PORT}"]
    log = pathlib.Path(directory) / f"host{number}.log"
    host.start(PYTHON, "-m", "ray.scripts.scripts", "start", *role, *common, log=log, environment=environment)
    harness.wait_until(lambda: raylet_of(host) or failed(host, log), "the host's raylet runs", timeout_s=120)
    harness.assert_raylet_under_test(raylet_of(host))


def raylet_of(host):
    """The raylet of a host, if it runs."""
    for process in host.everything():
        try:
            if pathlib.Path(process.cmdline()[0]).name == "raylet":
                return process
        except (psutil.NoSuchProcess, IndexError):
            continue
    return None


def failed(host, log):
    """Fails with the log of a host on which `ray start` ended."""
    assert host.processes[0].is_running(), log.read_text()[-2000:]
