"""Huge pages for a while: reserved in the kernel's pool, and given back."""

from __future__ import annotations

import contextlib
from pathlib import Path

POOL = Path("/proc/sys/vm/nr_hugepages")
PAGE_BYTES = 2 << 20


class NoHugePages(Exception):
    """The machine has no huge pages to give."""


def _resize(pages: int) -> int:
    try:
        POOL.write_text(f"{pages}\n")
        return int(POOL.read_text())
    except OSError as error:
        raise NoHugePages(f"cannot set {POOL} to {pages}: {error}; run as root, or reserve them before") from error


def _free() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("HugePages_Free:"):
            return int(line.split()[1])
    return 0


@contextlib.contextmanager
def reserved(size_bytes: int):
    """At least so many bytes of free 2 MiB pages; the pool has its old size afterwards."""
    if size_bytes <= 0:
        yield
        return
    if not POOL.exists():
        raise NoHugePages(f"{POOL} is not there: this kernel has no huge pages")
    before, missing = int(POOL.read_text()), -(-size_bytes // PAGE_BYTES) - _free()
    if missing <= 0:
        yield
        return
    try:
        got = _resize(before + missing)
        if got < before + missing:
            raise NoHugePages(f"the kernel found {got - before} of {missing} huge pages: memory is in use or in pieces")
        yield
    finally:
        with contextlib.suppress(NoHugePages):
            _resize(before)
