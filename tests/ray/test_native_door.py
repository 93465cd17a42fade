"""One engine behind two doors: what a native client puts, Ray's processes read; what it leases, Ray's tasks wait for.

Ray's own raylet has no second door; on it the same is done by a Ray actor, which is what both have to look like.
"""

import contextlib
import os
import pathlib
import subprocess
import tempfile

import ray

import harness
from harness import OURS

#: Removed with this process; short, since paths of sockets are.
DIRECTORY = tempfile.TemporaryDirectory(prefix="rd-")
SOCKET = pathlib.Path(DIRECTORY.name) / "door"
ENVIRONMENT = {"RAYLET_URING_SOCKET": str(SOCKET)}
NODE = {"num_cpus": 2}
TEXT = "bytes of a native client, long enough to be an object of its own" * 40


def example():
    """The native client: an example of the transport crate, beside the binary under test or where it was built."""
    given = os.environ.get("RAYLET_URING_EXAMPLES")
    profile = pathlib.Path(given) if given else harness.our_binary().parent / "examples"
    path = profile / "beside_ray"
    assert path.exists(), f"{path} is not there: run `make test-ray`, or `cargo build --release -p raylet-transport --examples`"
    return path


class OfRay:
    """Stands in for a native client on Ray's own raylet."""

    def __init__(self, cpus):
        @ray.remote(num_cpus=cpus)
        class Holder:
            def put(self, text):
                return [ray.put(text.encode())]

        self.holder = Holder.remote()
        self.ref = harness.get(self.holder.put.remote(TEXT))[0]

    def reference(self):
        """The object, as Ray names it."""
        return self.ref

    def give_back(self):
        """The lease ends."""
        ray.kill(self.holder)


class Native:
    """A native client that has put an object and holds a lease."""

    def __init__(self, cpus):
        self.process = subprocess.Popen(
            [example(), SOCKET, str(cpus), TEXT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.id = bytes.fromhex(self.process.stdout.readline())
        assert self.process.stdout.readline() == "leased\n"

    def reference(self):
        """The object, as Ray names it. Ray wants to know an owner: here it is whoever asks."""
        worker = ray._private.worker.global_worker.core_worker
        _, owner, status = worker.serialize_object_ref(ray.put(b""))
        ref = ray.ObjectRef(self.id)
        worker.deserialize_and_register_object_ref(self.id, ray.ObjectRef.nil(), owner, status)
        return ref

    def give_back(self):
        """The lease ends, and the process."""
        self.process.stdin.close()
        assert self.process.wait(harness.PATIENCE_S) == 0
        self.process.stdout.close()


@contextlib.contextmanager
def client(cpus):
    """A client with a lease of so many CPUs."""
    started = Native(cpus) if OURS else OfRay(cpus)
    try:
        yield started
    except BaseException:
        if OURS:
            started.process.kill()
            started.process.wait()
        raise


def test_ray_reads_what_a_native_client_has_put(node):
    """The driver and a worker each find the same bytes in the node's object store."""

    @ray.remote
    def read(refs):
        return ray.get(refs[0], timeout=harness.PATIENCE_S)

    with client(1) as native:
        ref = native.reference()
        assert harness.get(ref) == TEXT.encode()
        assert harness.get(read.remote([ref])) == TEXT.encode()
        native.give_back()


def test_both_doors_lease_from_the_same_resources(node):
    """While a native client has both CPUs no task of Ray runs; when it gives them back the task does."""

    @ray.remote(num_cpus=1)
    def one():
        return 1

    assert harness.get(one.remote()) == 1
    harness.wait_until(lambda: ray.available_resources().get("CPU") == 2, "the task's CPU is free again")
    with client(2) as native:
        waiting = one.remote()
        assert ray.wait([waiting], timeout=3) == ([], [waiting]), "no CPU is left"
        harness.wait_until(lambda: ray.available_resources().get("CPU", 0) == 0, "Ray sees that no CPU is left")
        native.give_back()
        assert harness.get(waiting) == 1
