"""The packages of `make package`: installed into clean places and removed again, and what is in them.

RAYLET_PACKAGES names the directory with the packages (default: target/package).
"""

import base64
import csv
import hashlib
import io
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = pathlib.Path(os.environ.get("RAYLET_PACKAGES", REPOSITORY / "target/package"))
UNIT = "usr/lib/systemd/system/raylet-uring.service"
# dpkg calls programs that are not in everybody's PATH.
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
# How exposed `systemd-analyze security` may call the unit: 0 is not at all, 10 is in full; a unit without hardening has 9.6.
EXPOSURE_MAX = 2.5


def the_only(pattern):
    found = sorted(PACKAGES.glob(pattern))
    assert len(found) == 1, f"{pattern} in {PACKAGES}: {found}; run `make package`"
    return found[0]


def run(*command, code=0, **options):
    done = subprocess.run(
        [str(word) for word in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )
    assert done.returncode == code, f"{command}: {done.returncode}, not {code}\n{done.stdout}"
    return done.stdout


class Root:
    """A directory with dpkg's records and nothing else."""

    def __init__(self, path):
        self.path = path
        records = path / "var/lib/dpkg"
        for name in ("info", "updates", "triggers"):
            (records / name).mkdir(parents=True)
        (records / "status").touch()

    def dpkg(self, *arguments):
        # As root of a user namespace where this isn't root.
        ours = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
        options = [f"--root={self.path}", "--force-script-chrootless", "--force-depends", "--force-not-root"]
        return run(*ours, "dpkg", *options, *arguments, env={**os.environ, "PATH": PATH, "LC_ALL": "C"})

    def files(self):
        """All files but dpkg's own records."""
        found = {str(p.relative_to(self.path)) for p in self.path.rglob("*") if not p.is_dir()}
        return {name for name in found if not name.startswith("var/lib/dpkg/")}


@pytest.fixture
def root(tmp_path):
    return Root(tmp_path / "root")


@pytest.fixture
def installed(root):
    root.dpkg("--install", the_only("*.deb"))
    return root


def test_the_debian_package_is_installed_and_removed(root):
    assert root.files() == set()
    root.dpkg("--install", the_only("*.deb"))
    files = root.files()
    for name in ("usr/bin/raylet-uring", UNIT, "etc/default/raylet-uring", "usr/share/man/man1/raylet-uring-doctor.1.gz"):
        assert name in files
    assert "install ok installed" in (root.path / "var/lib/dpkg/status").read_text()
    assert run(root.path / "usr/bin/raylet-uring", "--version").startswith("raylet-uring ")
    root.dpkg("--remove", "raylet-uring")
    assert root.files() == {"etc/default/raylet-uring"}, "settings stay until the package is purged"
    root.dpkg("--purge", "raylet-uring")
    assert root.files() == set()


def test_removing_the_package_takes_back_what_tune_set(installed):
    for name, text in {
        "proc/sys/vm/swappiness": "60",
        "proc/self/status": "Cpus_allowed_list:\t0",
        "sys/devices/system/cpu/online": "0",
        "proc/meminfo": "MemTotal: 1048576 kB\nMemAvailable: 1048576 kB",
    }.items():
        path = installed.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    run(installed.path / "usr/bin/raylet-uring", "tune", "--apply", "--root", installed.path)
    written = installed.path / "etc/sysctl.d/90-raylet-uring.conf"
    assert "vm.swappiness = 10\n" in written.read_text()
    installed.dpkg("--remove", "raylet-uring")
    assert not written.exists()
    assert (installed.path / "proc/sys/vm/swappiness").read_text().strip() == "60"


def test_the_package_names_what_the_executable_needs(installed):
    control = run("dpkg-deb", "--info", the_only("*.deb"))
    assert re.search(r"Depends: libc6 \(>= 2\.\d+\)", control)
    needed = run("objdump", "-p", installed.path / "usr/bin/raylet-uring")
    assert "libhwloc" not in needed, "hwloc is linked in"
    # Files of a package belong to root, whoever built it.
    owners = {line.split()[1] for line in run("dpkg-deb", "--contents", the_only("*.deb")).splitlines()}
    assert owners == {"root/root"}


def verify(root, tmp_path, change=lambda unit: unit):
    """What systemd has to say about the unit: an exit status and text."""
    unit = (root.path / UNIT).read_text().replace("/usr/bin/raylet-uring", str(root.path / "usr/bin/raylet-uring"))
    copy = tmp_path / "raylet-uring.service"
    copy.write_text(change(unit))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.returncode, done.stdout


def test_systemd_accepts_the_unit_and_would_not_accept_a_broken_one(installed, tmp_path):
    code, text = verify(installed, tmp_path)
    assert code == 0 and str(tmp_path / "raylet-uring.service") not in text, text
    code, text = verify(installed, tmp_path, lambda unit: unit.replace("WatchdogSec=60", "WatchdogSecs=60"))
    assert "WatchdogSecs" in text, text
    code, text = verify(installed, tmp_path, lambda unit: unit.replace("bin/raylet-uring", "bin/no-such"))
    assert code != 0, text


def test_the_unit_is_hardened(installed, tmp_path):
    def exposure(unit):
        copy = tmp_path / "raylet-uring.service"
        copy.write_text(unit)
        text = run("systemd-analyze", "security", "--offline=true", "--no-pager", copy)
        return float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)[1])

    unit = (installed.path / UNIT).read_text()
    assert exposure(unit) <= EXPOSURE_MAX
    bare = re.sub(r"(?m)^(Protect|Private|Restrict|System|Capability|NoNew|Dynamic|Lock)\w*=.*\n", "", unit)
    assert exposure(bare) > 2 * EXPOSURE_MAX, "the measure measures"


def allowed_calls(names):
    """The system calls of systemd's sets, with the sets that they include."""
    sets, current = {}, None
    for line in run("systemd-analyze", "syscall-filter", "--no-pager").splitlines():
        if line.startswith("@"):
            current = sets.setdefault(line.strip(), [])
        elif current is not None and line.strip() and not line.strip().startswith("#"):
            current.append(line.strip())
    calls = set()
    for name in names:
        calls |= allowed_calls_of(sets, name)
    return calls


def allowed_calls_of(sets, name):
    if not name.startswith("@"):
        return {name}
    return set().union(*(allowed_calls_of(sets, member) for member in sets[name]))


def test_the_units_filter_lets_through_what_a_node_calls(installed):
    """A node of an ordinary user, from its start to its end, makes no call that the unit forbids."""
    unit = (installed.path / UNIT).read_text()
    allowed = allowed_calls(re.search(r"(?m)^SystemCallFilter=(.*)$", unit)[1].split())
    assert {"io_uring_enter", "mbind"} <= allowed and "reboot" not in allowed
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        binary = shutil.copy(installed.path / "usr/bin/raylet-uring", place)
        trace = pathlib.Path(place) / "calls"
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
        node = ["--object-store-memory=64M", f"--runtime-dir={place}/nodes"]
        # strace passes the signal on that ends the node.
        started = subprocess.Popen(
            [*user, "strace", "-f", "-c", "-U", "name,calls", "-I", "never", "-o", trace, binary, *node],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        try:
            lines = []
            for line in started.stdout:
                lines.append(line)
                if line.strip() == "ready":
                    break
            pid = re.search(r"raylet-uring \S+ \(pid (\d+)\)", "".join(lines))
            assert pid, lines
            os.kill(int(pid[1]), signal.SIGTERM)
            started.communicate(timeout=60)
            assert started.returncode == 0
        finally:
            started.kill()
        rows = [line.split() for line in trace.read_text().splitlines()]
        called = {row[0] for row in rows if len(row) == 2 and row[1].isdigit() and row[0] != "total"}
    assert {"io_uring_setup", "mmap"} <= called
    assert called - allowed == set()


def test_completions_and_man_pages_are_sound(installed):
    share = installed.path / "usr/share"
    completions = share / "bash-completion/completions/raylet-uring"
    complete = "COMP_WORDS=(raylet-uring do); COMP_CWORD=1; _raylet__uring raylet-uring do raylet-uring"
    assert run("bash", "-c", f"source {completions}; {complete}; echo ${{COMPREPLY[@]}}").split() == ["doctor"]
    pages = sorted((share / "man/man1").glob("*.gz"))
    assert {"raylet-uring.1.gz", "raylet-uring-tune.1.gz"} <= {page.name for page in pages}
    for page in pages:
        text = run("zcat", page)
        assert text.startswith(".ie") or text.startswith(".TH"), page
        assert ".SH NAME" in text and ".SH SYNOPSIS" in text, page


def test_the_wheel_records_what_it_has():
    with zipfile.ZipFile(the_only("*.whl")) as wheel:
        names = wheel.namelist()
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        rows = list(csv.reader(io.StringIO(wheel.read(record).decode())))
        assert sorted(row[0] for row in rows) == sorted(names)
        for name, digest, size in rows:
            if name != record:
                content = wheel.read(name)
                expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                assert (digest, int(size)) == (f"sha256={expected}", len(content)), name


def test_the_wheel_is_installed_and_removed(tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    before = {str(path) for path in (tmp_path / "venv").rglob("*") if "__pycache__" not in str(path)}
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run(*pip, "install", "--no-index", the_only("*.whl"))
    ours = tmp_path / "venv/bin/raylet-uring"
    assert run(ours, "--version").startswith("raylet-uring ")
    assert run(python, "-m", "raylet_uring", "--version") == run(ours, "--version")
    located = run(python, "-c", "import raylet_uring; print(raylet_uring.executable())").strip()
    assert os.path.samefile(located, ours)
    # There is no Ray here, which is said of this interpreter: attach goes to the right one.
    assert str(tmp_path / "venv") in run(python, "-m", "raylet_uring", "attach", code=2)
    run(*pip, "uninstall", "--yes", "raylet-uring")
    after = {str(path) for path in (tmp_path / "venv").rglob("*") if "__pycache__" not in str(path)}
    assert after == before
