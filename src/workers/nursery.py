"""Forks Ray workers from a process that has imported Ray, so that each costs milliseconds instead of half a second.

Standard input is a stream socket to the node, from which Python has read this text (see `nursery_spec`). Each message is one
line of JSON. From the node: {"id", "argv", "oom_score_adjustment"}: fork a worker. To the node: {"ready": true} or
{"unfit": why}, {"id", "pid"} or {"id", "error"}, {"exit": pid, "code" or "signal"}, and {"stale": path} where what was imported
has changed on disk. The end of the socket is the end of the node: it ends this process, and all workers that it has forked.
"""
import ast
import gc
import importlib.machinery
import json
import os
import selectors
import signal
import site
import socket
import sys

MAX_LINE_BYTES = 1 << 20
#: What an idle worker has imported besides the imports of its script.
LATER_IMPORTS = ["ray._common.usage.usage_lib"]
TITLE = "raylet-uring: worker nursery"


def import_as_worker(script):
    """Imports what the worker's script imports, as if the script itself ran; returns its code."""
    # Where Python puts the directory of a script; `-c` has put an empty string there, which would mean the current one.
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(script)
    with open(script, "rb") as file:
        source = file.read()
    imports = [node for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    imports += [ast.Import([ast.alias(name)]) for name in LATER_IMPORTS]
    module = ast.fix_missing_locations(ast.Module(imports, []))
    exec(compile(module, script, "exec"), {"__name__": "nursery_imports"})
    return compile(source, script, "exec")


def installed(script):
    """When what lies in the directories of installed packages has last changed. Packages come and go by renaming."""
    places = {script, *site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])}
    if "ray" in sys.modules:
        places.add(os.path.dirname(os.path.dirname(sys.modules["ray"].__file__)))
    times = {}
    for place in places:
        try:
            times[place] = os.stat(place).st_mtime_ns
        except OSError:
            times[place] = None
    return times


def unfit():
    """Why this process must not be forked, or None."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        return f"it has {threads} threads"
    if draw_in_child() == draw_in_child():
        return "Ray's random numbers would be the same in all its workers"
    return None


def draw_in_child():
    """A random id as a forked worker would draw it. Ray's generator isn't seeded anew after a fork, only at its first use."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, sys.modules["ray._raylet"].WorkerID.from_random().binary())
        os._exit(0)
    os.close(write)
    drawn = os.read(read, 64)
    os.close(read)
    os.waitpid(pid, 0)
    return drawn


def make_own():
    """Renews what a process draws once, at its start, and should share with no other."""
    # Python reseeds `random` after a fork by itself; numpy and multiprocessing don't.
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "multiprocessing.process" in sys.modules:
        sys.modules["multiprocessing.process"].current_process().authkey = os.urandom(32)
    if "threading" in sys.modules:
        sys.modules["threading"].main_thread()._set_native_id()


def adjust_oom_score(adjustment):
    """Adds to the inherited score. Done here, not by the node, so that a worker has it before its script begins."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            adjusted = int(file.read()) + adjustment
            file.seek(0)
            file.write(str(min(max(adjusted, -1000), 1000)))
    except OSError as error:
        print(f"can't set the OOM score of this worker; the kernel may take the node first: {error}", file=sys.stderr)


def become_worker(code, comm, request):
    """Makes this forked process what a worker is when its script begins; returns the script's code and its globals."""
    argv = request["argv"]
    make_own()
    if request["oom_score_adjustment"] is not None:
        adjust_oom_score(request["oom_score_adjustment"])
    # What `ps` shows until the worker is registered and takes a title of its own. There is room: the nursery was started with
    # the arguments of a worker.
    sys.modules["ray._raylet"].setproctitle(" ".join(argv))
    with open("/proc/self/comm", "w") as file:
        file.write(comm)
    sys.orig_argv = list(argv)
    sys.argv = argv[1:]
    script = sys.argv[0]
    main = type(sys)("__main__")
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", script)
    main.__file__ = script
    main.__cached__ = None
    main.__annotations__ = {}
    main.__builtins__ = __builtins__
    sys.modules["__main__"] = main
    return code, main.__dict__


class Nursery:
    def __init__(self, control, wake, installed):
        self.control = control
        self.wake = wake
        self.inbox = b""
        self.installed = installed
        self.workers = set()

    def end(self):
        """The node is gone. One that ends in order has ended its workers before; these would outlive one that was killed."""
        for pid in self.workers:
            try:
                os.killpg(pid, signal.SIGKILL)
            except OSError:
                pass  # It has ended.
        os._exit(0)  # At once: exit handlers of what was imported belong to workers.

    def send(self, message):
        # The node reads at once; where it doesn't, it is better to wait here than to lose a message.
        try:
            self.control.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.end()

    def fork(self, request, script):
        now = installed(script)
        changed = [place for place in now if now[place] != self.installed.get(place)]
        if changed:
            self.send({"stale": changed[0]})
            os._exit(0)
        try:
            pid = os.fork()
        except OSError as error:
            self.send({"id": request["id"], "error": f"fork: {error}"})
            return
        if pid == 0:
            raise BecomeWorker(request)
        self.workers.add(pid)
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
            self.workers.discard(pid)
            if os.WIFSIGNALED(status):
                self.send({"exit": pid, "signal": os.WTERMSIG(status), "core": os.WCOREDUMP(status)})
            else:
                self.send({"exit": pid, "code": os.WEXITSTATUS(status)})

    def read(self):
        received = self.control.recv(65536)
        if not received:
            self.end()
        self.inbox += received
        while True:
            line, newline, rest = self.inbox.partition(b"\n")
            if not newline:
                break
            self.inbox = rest
            request = json.loads(line)
            self.fork(request, request["argv"][1])
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
    """Forks workers as asked. Returns in each of them: its script's code, the name of a process and the request."""
    control = socket.socket(fileno=os.dup(0))
    os.set_inheritable(control.fileno(), False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    with open("/proc/self/comm") as file:
        comm = file.read().strip()
    before = installed(script)
    code = import_as_worker(script)
    nursery = Nursery(control, None, installed(script) | before)
    why = unfit()
    if why:
        nursery.send({"unfit": why})
        os._exit(1)
    sys.modules["ray._raylet"].setproctitle(TITLE)
    nursery.wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    # Keeps the collector from touching, and so copying, what all workers share.
    gc.collect()
    gc.freeze()
    nursery.send({"ready": True})
    try:
        nursery.run()
    except BecomeWorker as leave:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (control, nursery.wake, waker):
            end.close()
        return code, comm, leave.request


if __name__ == "__main__":
    # Run by the text that has run this one, so that a worker has one frame more than a plain one, not three.
    worker = become_worker(*serve(sys.argv[1]))
