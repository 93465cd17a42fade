"""Hosts on one machine: a network namespace each, and a switch between them whose cables can be pulled. Needs root."""

import contextlib
import os
import subprocess
import sys
import textwrap

import psutil

import harness

#: The interpreter whose Ray runs on the hosts.
PYTHON = sys.executable


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
