"""The unit of the packages, started for real: a systemd of its own in namespaces, with a root of its own. Needs root.

RAYLET_URING_BIN names the executable (default: target/release/raylet-uring).
"""

import os
import pathlib
import signal
import subprocess
import time

import psutil
import pytest

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
BINARY = pathlib.Path(os.environ.get("RAYLET_URING_BIN", REPOSITORY / "target/release/raylet-uring")).resolve()
UNIT = REPOSITORY / "tuning/systemd/raylet-uring.service"
SYSTEMD = "/lib/systemd/systemd"
PATIENCE_S = 60
#: All that the unit's own dependencies name. Nothing of the machine's own units is known to this systemd.
TARGETS = ("sysinit", "basic", "shutdown", "umount", "network-online", "multi-user", "idle")
TARGET = "[Unit]\nDefaultDependencies=no\n"
#: Small, and soon found not to answer.
QUICK = """[Service]
WatchdogSec=10
Environment=RAYLET_URING_OBJECT_STORE_MEMORY_BYTES=64M
StandardError=append:/var/node.log
"""


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def control_group():
    """A control group of the unified hierarchy that is nobody's yet."""
    mounts = (line.split(" - ") for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines())
    places = [left.split()[4] for left, right in mounts if right.split()[0] == "cgroup2"]
    assert places, "no unified hierarchy of control groups is mounted"
    group = pathlib.Path(places[0]) / f"raylet-unit-{os.getpid()}"
    group.mkdir()
    return group


def remove(group):
    """Control groups go from the innermost on, once their processes are gone."""

    def is_gone():
        for path in sorted(group.rglob("*/"), key=lambda path: -len(path.parts)):
            if path.is_dir():
                try:
                    path.rmdir()
                except OSError:
                    return False
        try:
            group.rmdir()
        except OSError:
            return False
        return True

    wait_until(is_gone, f"{group} is still in use")


class Machine:
    """What runs below a systemd of its own."""

    def __init__(self, place):
        units, root = place / "units", place / "root"
        drop_in = units / "raylet-uring.service.d"
        drop_in.mkdir(parents=True)
        root.mkdir()
        (units / UNIT.name).write_text(UNIT.read_text())
        (drop_in / "quick.conf").write_text(QUICK)
        for name in TARGETS:
            (units / f"{name}.target").write_text(TARGET)
        self.group = control_group()
        self.log = place / "log"
        environment = [
            f"PATH={os.environ['PATH']}", "container=raylet-test", "SYSTEMD_UNIT_PATH=/etc/systemd/system",
            "SYSTEMD_GENERATOR_PATH=/nowhere",
        ]
        systemd = [SYSTEMD, "--system", "--unit=idle.target", "--log-target=console", "--show-status=no"]
        inside = [str(HERE / "boot.sh"), root, BINARY, units, "env", "-i", *environment, *systemd]
        namespaces = ["--mount", "--pid", "--fork", "--cgroup", "--ipc", "--uts", "--net", "--kill-child"]
        # The shell joins the group before the namespace of groups is made, so that the group is its root.
        joined = f"echo $$ >{self.group}/cgroup.procs && exec \"$@\""
        with open(self.log, "wb") as log:
            self.outer = subprocess.Popen(
                ["sh", "-c", joined, "sh", "unshare", *namespaces, *map(str, inside)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )
        self.first = None
        try:
            self.first = wait_until(self.first_process, "systemd does not start")
            wait_until(lambda: self.run("systemctl", "is-system-running", check=False).strip() == "running", "it boots")
        except BaseException:
            print(self.log.read_text(errors="replace"))
            self.end()
            raise

    def first_process(self):
        """The first process inside, once it is systemd."""
        assert self.outer.poll() is None, self.log.read_text(errors="replace")
        children = psutil.Process(self.outer.pid).children()
        return next((child.pid for child in children if child.name() == "systemd"), None)

    def run(self, *command, check=True):
        inside = ["nsenter", f"--target={self.first}", "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"]
        done = subprocess.run([*inside, *command], capture_output=True, text=True, timeout=PATIENCE_S)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}\n{self.logs()}"
        return done.stdout

    def logs(self):
        """What systemd and the node said."""
        node = self.run("sh", "-c", "systemctl status --no-pager raylet-uring; cat /var/node.log 2>&1", check=False)
        return f"{self.log.read_text(errors='replace')}\n{node}"

    def show(self, *names):
        """Properties of the unit."""
        text = self.run("systemctl", "show", "raylet-uring", *(f"--property={name}" for name in names))
        properties = dict(line.split("=", 1) for line in text.splitlines())
        return properties[names[0]] if len(names) == 1 else [properties[name] for name in names]

    def main_process(self):
        """What /proc says of the node."""
        text = self.run("cat", f"/proc/{self.show('MainPID')}/status")
        return dict(line.split(":\t", 1) for line in text.splitlines())

    def end(self):
        # The first process of the namespace goes with it, and all others with that.
        self.outer.send_signal(signal.SIGKILL)
        self.outer.wait()
        remove(self.group)


@pytest.fixture
def machine(tmp_path):
    booted = Machine(tmp_path)
    yield booted
    booted.end()


def test_the_unit_runs_hardened_is_restarted_when_it_hangs_and_stops(machine):
    # `start` returns once the node has said that it is ready.
    machine.run("systemctl", "start", "raylet-uring")
    assert machine.show("ActiveState", "SubState") == ["active", "running"]
    assert machine.show("StatusText").startswith("a node of its own"), machine.show("StatusText")
    process = machine.main_process()
    assert "0" not in process["Uid"].split(), "DynamicUser"
    assert int(process["CapEff"], 16) == 0 and process["NoNewPrivs"] == "1" and process["Seccomp"] == "2"
    assert machine.show("LimitMEMLOCK", "LimitNOFILE") == ["infinity", "1048576"]
    assert machine.run("stat", "-L", "-c", "%a", "/run/raylet-uring").strip() == "700"
    status = ["env", "RAYLET_URING_RUNTIME_DIR=/run/raylet-uring", "raylet-uring", "status"]
    assert "64.00 MiB" in machine.run(*status)

    # One that does not answer is ended and started again.
    before, restarts = machine.show("MainPID"), int(machine.show("NRestarts"))
    machine.run("kill", "-STOP", before)
    wait_until(lambda: int(machine.show("NRestarts")) > restarts, "the watchdog notices")
    wait_until(lambda: machine.show("ActiveState") == "active" and machine.show("MainPID") not in ("0", before), "it is back")
    assert "64.00 MiB" in machine.run(*status)

    machine.run("systemctl", "stop", "raylet-uring")
    assert machine.show("ActiveState", "Result", "ExecMainStatus") == ["inactive", "success", "0"]
    assert machine.run("ls", "/run").find("raylet-uring") == -1, "its directory goes with it"
