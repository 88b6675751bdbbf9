"""Commands as children of one process that has everything imported, each with a fault that befalls it."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import selectors
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import fairsisa.cli.forgetting
import fairsisa.cli.proving
import fairsisa.cli.verbs  # noqa: F401 - the children shall find it imported
from fairsisa.cli.composing import compose
from fairsisa.cli.main import run_command
from fairsisa.models.classifier import Classifier

PACKAGE = str(Path(__file__).resolve().parents[1] / "fairsisa") + os.sep
KILLED = -signal.SIGKILL
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
RENAMES = {"os.rename": "rename", "os.link": "link"}
CHANGES = {"os.mkdir": "mkdir", "os.remove": "unlink", "os.rmdir": "rmdir"}
ENDS, BEGINS = frozenset(("unlink", "rmdir")), frozenset(("mkdir",))
GROWS = frozenset(("open", "mkdir", "link", "fsync"))
MIGHTY = (0, 1, 2)
"""The capabilities of root to pass over owners and permissions of files: see capabilities(7)."""


@dataclass(frozen=True)
class Fault:
    """What befalls a command, and when.

    That is at write boundary `at`; at the first one whose place is not in `beyond`, syncs aside, before which the files
    are as before the next; at training step `step`; or after `after` seconds.

    `kind` is "none" (only count the boundaries), "signal" (`number` is sent), "full" (from then on, no file grows), or
    "powerless" (the process obeys permissions, as any but root does). `clock` is by how many seconds the clock goes
    back whenever it is read.
    """

    kind: str = "none"
    at: int | None = None
    beyond: tuple[str, ...] | None = None
    step: int | None = None
    after: float | None = None
    number: int = signal.SIGKILL
    clock: float = 0.0


@dataclass(frozen=True)
class Boundary:
    """A write about to happen: which call, on which file, and where in the package, innermost last."""

    call: str
    path: str
    site: tuple[str, ...]

    @property
    def place(self) -> str:
        """The call, and the way through the package that leads to it."""
        return place_of(self.call, self.site)


@dataclass(frozen=True)
class Attempt:
    """How a command ended: its exit status, negative for a signal; what it said; the boundaries it came to."""

    code: int
    said: str
    boundaries: tuple[Boundary, ...]
    fired: bool
    seconds: float


def place_of(call: str, site: Sequence[str]) -> str:
    """Return what tells boundaries of one kind from those of another."""
    return " ".join((call, *site))


class Zygote:
    """A handle on a process that has imported the package once, and forks a child for every command."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, str(Path(__file__).resolve())]
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg", "COLUMNS": "1000"}
        environment = {**os.environ, **single, **environment}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )

    def run(self, root: Path, words: Sequence[str], fault: Fault | None = None) -> Attempt:
        """Run a command in the folder `root`; boundaries are writes below it."""
        told = {"root": str(root), "words": list(words), "fault": asdict(fault or Fault())}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "Expected an answer of the process that runs the commands; it ended."
        values = json.loads(line)
        met = tuple(Boundary(call, path, tuple(site)) for call, path, site in values.pop("boundaries"))
        return Attempt(boundaries=met, **values)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextmanager
def zygote(**environment: str) -> Iterator[Zygote]:
    """Give a zygote, and end it afterwards."""
    made = Zygote(environment)
    try:
        yield made
    finally:
        made.close()


# In the child


class Watch:
    """Counts the writes of this process below a folder, and lets the fault happen at the one it is for."""

    def __init__(self, root: Path, fault: Fault, tell: Callable[[list[Any]], None]) -> None:
        self.root, self.fault, self.tell = f"{root}{os.sep}", fault, tell
        self.count, self.refusing, self.busy = 0, False, False

    def __call__(self, call: str, path: str) -> None:
        """Come to a boundary; OSError where the disk is full by now."""
        if self.busy or not path.startswith(self.root) or path.endswith(".lock"):
            return
        if os.path.lexists(path) != (call in ENDS) and call in (*ENDS, *BEGINS):
            return  # nothing would change
        self.busy = True
        try:
            site = _site(sys._getframe(1))
            self.tell(["boundary", call, path.removeprefix(self.root), site])
            beyond = self.fault.beyond
            new = beyond is not None and call != "fsync" and place_of(call, site) not in beyond
            if self.count == self.fault.at or new:
                self.strike()
            self.count += 1
        finally:
            self.busy = False
        if self.refusing and call in GROWS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def strike(self) -> None:
        """Let the fault happen."""
        self.tell(["fired"])
        if self.fault.kind == "signal":
            os.kill(os.getpid(), self.fault.number)
        if self.fault.kind == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            self.refusing = True


def _site(frame: FrameType | None) -> list[str]:
    found = []
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            found.append(f"{name.removeprefix(PACKAGE)}:{frame.f_lineno}")
        frame = frame.f_back
    return found[::-1]


def _install(watch: Watch) -> None:
    """Have every way to write come by the watch: Python's own, SQLite's commits, and training steps."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and args[2] is not None and args[2] & WRITING and not isinstance(args[0], int):
            watch("open", _absolute(args[0]))
        elif event in RENAMES:
            watch(RENAMES[event], _absolute(args[1]))
        elif event in CHANGES:
            watch(CHANGES[event], _absolute(args[0], args[-1]))

    sync, connect = os.fsync, sqlite3.connect

    def fsync(descriptor: int) -> None:
        watch("fsync", _opened(descriptor))
        sync(descriptor)

    class Watched(sqlite3.Connection):
        def __init__(self, address: Any, *args: Any, **options: Any) -> None:
            super().__init__(address, *args, **options)
            path = str(address).removeprefix("file://").partition("?")[0]
            self.set_trace_callback(
                lambda statement: watch("commit", path) if statement == "COMMIT" and self.total_changes else None
            )

    os.fsync = fsync
    sqlite3.connect = lambda *args, **options: connect(*args, factory=Watched, **options)
    sys.addaudithook(hook)


def _absolute(path: Any, folder: int = -1) -> str:
    path = os.fsdecode(path)
    start = _opened(folder) if folder >= 0 else str(Path.cwd())
    return os.path.join(start, path)  # noqa: PTH118 - of strings, at every write


def _opened(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def _count_steps(watch: Watch) -> None:
    left, step = [watch.fault.step], Classifier._step

    def counted(*args: Any) -> Any:
        if left[0] == 0:
            watch.strike()
        left[0] -= 1
        return step(*args)

    Classifier._step = counted


def _turn_back(seconds: float) -> None:
    """Let every look at the clock find it earlier by so many seconds than the one before."""
    now, passed = time.time, [0.0]

    def earlier() -> float:
        passed[0] += seconds
        return now() - passed[0]

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) - timedelta(seconds=now() - earlier())

    time.time = earlier
    for name, module in list(sys.modules.items()):
        if name.startswith("fairsisa.") and getattr(module, "datetime", None) is datetime:
            module.datetime = Earlier


def _lose_power() -> None:
    """Give up root's right to pass over permissions (capset(2), version 3 of the structures)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for number in MIGHTY:
        for word in (0, 1):  # effective and permitted
            data[word] &= ~(1 << number)
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _prepare(root: Path, fault: Fault, tell: Callable[[list[Any]], None]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watch = Watch(root, fault, tell)
    if fault.clock:
        _turn_back(fault.clock)
    if fault.step is not None:
        _count_steps(watch)
    if fault.kind == "powerless":
        tell(["fired"])
        _lose_power()
    _install(watch)


def _child(root: Path, words: list[str], fault: Fault, out: int, trace: int) -> int:
    os.chdir(root)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115 - the zygote's own speaks to its parent
    try:
        _prepare(root, fault, lambda line: os.write(trace, (json.dumps(line) + "\n").encode()) and None)
        return run_command(words)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        return 99
    finally:
        sys.stdout.flush()


# In the zygote


def _attempt(root: Path, words: list[str], fault: Fault) -> dict[str, Any]:
    (out, out_end), (trace, trace_end) = os.pipe(), os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 98
        try:
            code = _child(root, words, fault, out_end, trace_end)
        finally:
            os._exit(code)
    os.close(out_end)
    os.close(trace_end)
    said, lines, timed = _listen(pid, (out, trace), fault.after)
    status = os.waitpid(pid, 0)[1]
    told = [json.loads(line) for line in lines.decode().splitlines() if line.endswith("]")]
    return {
        "code": -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status),
        "said": said.decode(),
        "boundaries": [line[1:] for line in told if line[0] == "boundary"],
        "fired": timed or ["fired"] in told,
        "seconds": time.monotonic() - start,
    }


def _listen(pid: int, pipes: tuple[int, int], after: float | None) -> tuple[bytes, bytes, bool]:
    """Read both pipes to their ends; kill the child when its time is over."""
    found, end, timed = dict.fromkeys(pipes, b""), None if after is None else time.monotonic() + after, False
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            left = None if end is None or timed else max(0.0, end - time.monotonic())
            ready = selector.select(left)
            if not ready and not timed:
                os.kill(pid, signal.SIGKILL)
                timed = True
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                found[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    return found[pipes[0]], found[pipes[1]], timed


def _serve() -> None:
    torch.set_num_threads(1)
    for root in ("train", "unlearn"):
        compose(root, ["run=anywhere"])  # what Hydra keeps between calls, the children shall find too
    for line in sys.stdin:
        told = json.loads(line)
        answer = _attempt(Path(told["root"]), told["words"], Fault(**told["fault"]))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
