"""Makes a Debian package and a wheel of a built executable.

    python3 scripts/package/package.py --binary target/.../raylet-uring --out target/package

Needs dpkg-deb, objcopy and objdump (binutils). The wheel is tagged for the oldest glibc that the executable runs on, so
that pip refuses it elsewhere.
"""

import argparse
import base64
import gzip
import hashlib
import io
import os
import pathlib
import platform
import re
import shutil
import subprocess
import tempfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
# Every file has this date in the archives: what is built twice is the same.
EPOCH = (1980, 1, 1, 0, 0, 0)
DESCRIPTION = "The node service of a Ray cluster, thread-per-core on io_uring"


def run(*command, **options):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout


class Built:
    """The executable, stripped, with what it needs and what was generated from it."""

    def __init__(self, binary, scratch):
        self.version = run(str(binary), "--version").split()[1]
        self.machine = platform.machine()
        self.binary = scratch / "raylet-uring"
        run("objcopy", "--strip-debug", str(binary), str(self.binary))
        self.generated = scratch / "generated"
        run(str(self.binary), "generate", str(self.generated))
        symbols = run("objdump", "-T", str(self.binary))
        versions = {tuple(int(n) for n in v.split(".")) for v in re.findall(r"GLIBC_([0-9.]+)", symbols)}
        self.glibc = max(versions)[:2]
        self.libraries = set(re.findall(r"NEEDED\s+(\S+)", run("objdump", "-p", str(self.binary))))


# The Debian package of each library that the executable may need. Any other is a mistake in how it was linked.
DEBIAN_LIBRARIES = {
    "libc.so.6": None,
    "libm.so.6": None,
    "ld-linux-x86-64.so.2": None,
    "ld-linux-aarch64.so.1": None,
    "libgcc_s.so.1": "libgcc-s1",
    "libudev.so.1": "libudev1",
}


def depends(built):
    unknown = built.libraries - DEBIAN_LIBRARIES.keys()
    if unknown:
        raise SystemExit(f"package: the executable needs {', '.join(sorted(unknown))}: link it as `make package` does")
    packages = {DEBIAN_LIBRARIES[library] for library in built.libraries} - {None}
    return ", ".join([f"libc6 (>= {built.glibc[0]}.{built.glibc[1]})", *sorted(packages)])


def install(source, root, path, mode=0o644):
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def debian(built, out, scratch):
    root = scratch / "debian"
    install(built.binary, root, "usr/bin/raylet-uring", 0o755)
    install(REPOSITORY / "tuning/systemd/raylet-uring.service", root, "usr/lib/systemd/system/raylet-uring.service")
    install(HERE / "debian/default", root, "etc/default/raylet-uring")
    install(REPOSITORY / "README.md", root, "usr/share/doc/raylet-uring/README.md")
    completions = {
        "raylet-uring.bash": "usr/share/bash-completion/completions/raylet-uring",
        "_raylet-uring": "usr/share/zsh/vendor-completions/_raylet-uring",
        "raylet-uring.fish": "usr/share/fish/vendor_completions.d/raylet-uring.fish",
    }
    for name, path in completions.items():
        install(built.generated / name, root, path)
    pages = root / "usr/share/man/man1"
    pages.mkdir(parents=True)
    for page in sorted(built.generated.glob("*.1")):
        (pages / f"{page.name}.gz").write_bytes(gzip.compress(page.read_bytes(), mtime=0))
    size_kib = sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) // 1024
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(built.machine, built.machine)
    control = root / "DEBIAN"
    control.mkdir()
    (control / "control").write_text(
        f"Package: raylet-uring\nVersion: {built.version}\nArchitecture: {architecture}\n"
        f"Maintainer: raylet-uring <raylet-uring@localhost>\nSection: net\nPriority: optional\n"
        f"Installed-Size: {size_kib}\nDepends: {depends(built)}\nDescription: {DESCRIPTION}\n"
        " Grants worker leases, runs the worker pool and keeps the shared-memory object store\n"
        " of a machine. An unmodified Ray runs on it after `raylet-uring attach`.\n"
    )
    (control / "conffiles").write_text("/etc/default/raylet-uring\n")
    for script in ("postinst", "prerm", "postrm"):
        install(HERE / "debian" / script, control, script, 0o755)
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    package = out / f"raylet-uring_{built.version}_{architecture}.deb"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}
    run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(root), str(package), env=environment)
    return package


def wheel(built, out):
    distribution = f"raylet_uring-{built.version}"
    tag = f"py3-none-manylinux_{built.glibc[0]}_{built.glibc[1]}_{built.machine}"
    info = f"{distribution}.dist-info"
    files = {
        f"raylet_uring/{name}": ((HERE / "raylet_uring" / name).read_bytes(), 0o644)
        for name in ("__init__.py", "__main__.py")
    }
    files[f"{distribution}.data/scripts/raylet-uring"] = (built.binary.read_bytes(), 0o755)
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: raylet-uring\nVersion: {built.version}\nSummary: {DESCRIPTION}\n"
        f"License: Apache-2.0\nRequires-Python: >=3.10\nDescription-Content-Type: text/markdown\n\n".encode()
        + (REPOSITORY / "README.md").read_bytes(),
        0o644,
    )
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: raylet-uring\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
        0o644,
    )
    record = io.StringIO()
    for name, (content, _) in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.write(f"{name},sha256={digest},{len(content)}\n")
    record.write(f"{info}/RECORD,,\n")
    files[f"{info}/RECORD"] = (record.getvalue().encode(), 0o644)
    path = out / f"{distribution}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (content, mode) in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = (0o100000 | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=pathlib.Path, required=True, help="the executable, as built")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory for the packages")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        built = Built(arguments.binary, scratch)
        for package in (debian(built, arguments.out, scratch), wheel(built, arguments.out)):
            print(f"{package}  {package.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
