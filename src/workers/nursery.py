"""Forks Ray workers from a process that has imported Ray, so that each costs milliseconds instead of a second.

Standard input is a stream socket to the node. Each message is one line of JSON. From the node: {"id", "argv", "env"}:
fork a worker. To the node: {"ready": threads}, {"id", "pid"} or {"id", "error"}, and {"exit": pid, "code" or "signal"}.
The end of the socket is the end of this process; workers notice the end of the node by themselves.
"""
import gc
import json
import os
import selectors
import signal
import socket
import sys

MAX_LINE_BYTES = 1 << 20


def import_as_worker(script):
    """Imports what the worker's script imports at its start, as if the script itself ran."""
    # Where Python puts the directory of a script; `-c` has put an empty string there, which would mean the current one.
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(script)
    import ray  # noqa: F401
    import ray._private.async_compat  # noqa: F401
    import ray._private.node  # noqa: F401
    import ray._private.parameter  # noqa: F401
    import ray._private.ray_logging  # noqa: F401
    import ray._private.runtime_env.setup_hook  # noqa: F401
    import ray._private.utils  # noqa: F401
    import ray._private.worker  # noqa: F401
    import ray.actor  # noqa: F401


def threads():
    return len(os.listdir("/proc/self/task"))


def become_worker(argv, env):
    """Runs a worker's script in this forked process. Does not return."""
    os.environ.update(env)
    if "numpy.random" in sys.modules:
        # Python reseeds its own generator after a fork; numpy's would give every worker the same numbers.
        sys.modules["numpy.random"].seed()
    sys.argv = argv[1:]
    script = sys.argv[0]
    with open(script, "rb") as f:
        code = compile(f.read(), script, "exec")
    main = type(sys)("__main__")
    main.__file__ = script
    main.__builtins__ = __builtins__
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


class Nursery:
    def __init__(self, control, wake):
        self.control = control
        self.wake = wake
        self.inbox = b""

    def send(self, message):
        # The node reads at once; where it doesn't, it is better to wait here than to lose a message.
        self.control.sendall(json.dumps(message).encode() + b"\n")

    def fork(self, request):
        try:
            pid = os.fork()
        except OSError as error:
            self.send({"id": request["id"], "error": f"fork: {error}"})
            return
        if pid == 0:
            raise BecomeWorker(request)
        try:
            # From both sides, so that the group exists whoever runs first.
            os.setpgid(pid, pid)
        except OSError:
            pass  # The child has done it, or has ended.
        self.send({"id": request["id"], "pid": pid})

    def reap(self):
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if os.WIFSIGNALED(status):
                self.send({"exit": pid, "signal": os.WTERMSIG(status), "core": os.WCOREDUMP(status)})
            else:
                self.send({"exit": pid, "code": os.WEXITSTATUS(status)})

    def read(self):
        received = self.control.recv(65536)
        if not received:
            sys.exit(0)
        self.inbox += received
        while True:
            line, newline, rest = self.inbox.partition(b"\n")
            if not newline:
                break
            self.inbox = rest
            self.fork(json.loads(line))
        if len(self.inbox) > MAX_LINE_BYTES:
            sys.exit("a request to the nursery is too long")

    def run(self):
        with selectors.DefaultSelector() as selector:
            selector.register(self.control, selectors.EVENT_READ, self.read)
            selector.register(self.wake, selectors.EVENT_READ, self.woken)
            while True:
                for key, _ in selector.select():
                    key.data()

    def woken(self):
        self.wake.recv(4096)
        self.reap()


class BecomeWorker(BaseException):
    """Unwinds the nursery's stack in a forked child, so that a worker doesn't run on top of it."""

    def __init__(self, request):
        self.request = request


def serve(script):
    control = socket.socket(fileno=os.dup(0))
    os.set_inheritable(control.fileno(), False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    import_as_worker(script)
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    # Keeps the collector from touching, and so copying, what all workers share.
    gc.collect()
    gc.freeze()
    nursery = Nursery(control, wake)
    nursery.send({"ready": threads()})
    try:
        nursery.run()
    except BecomeWorker as leave:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (control, wake, waker):
            end.close()
        return leave.request


if __name__ == "__main__":
    request = serve(sys.argv[1])
    become_worker(request["argv"], request["env"])
