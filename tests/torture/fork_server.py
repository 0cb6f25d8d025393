"""`mbert` in a fresh process a hundred times over, without a hundred imports of torch: a server that forks.

The server imports everything once, runs nothing, and forks a child for every command; the child arms the fault library for
itself, calls the command line's own `main` with its own arguments and environment, and dies or leaves like any process.

    with Server(folder) as server:
        ended = server.run(["run", "small.toml"], cwd=place, fault=Fault("*.tmp", "w", 3, "middle"))

`python fork_server.py` is the server itself: a request a line on stdin, an answer a line on stdout.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODES = {"none": 0, "before": 1, "middle": 2, "after": 3, "fail": 4, "half, then fail": 5, "timer": 6}
LINE = re.compile(r"(\d+)([ !])(\w) (-?\d+) (.*)")
KILLS = ("before", "middle", "after")


@dataclass(frozen=True)
class Fault:
    """The `number`-th call of these kinds (letters of faults.c) whose path below the run's folder matches `pattern`, disturbed.

    value  an errno for the modes that fail, a signal for the timer, which goes off `microseconds` after the call
    """

    pattern: str = "*"
    kinds: str = ""
    number: int = 0
    mode: str = "none"
    value: int = 0
    microseconds: int = 0

    def __str__(self) -> str:
        what = {"timer": f"{signal.Signals(self.value).name if self.value else ''} {self.microseconds / 1e6:.3f} s after"}
        how = what.get(self.mode, self.mode) + (f" {errno.errorcode[self.value]}" if "fail" in self.mode else "")
        return f"{how} {self.kinds}#{self.number} {self.pattern}"


@dataclass(frozen=True)
class Call:
    """One call that the library saw."""

    nanoseconds: int
    disturbed: bool
    kind: str
    bytes: int
    path: str


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the signal that killed it."""

    code: int
    out: str
    err: str
    seconds: float
    ended: int
    log: Path | None

    @property
    def calls(self) -> list[Call]:
        return read_calls(self.log) if self.log else []

    @property
    def disturbed(self) -> Call | None:
        """The call that was disturbed, if the run came to it."""
        return next((call for call in self.calls if call.disturbed), None)


def read_calls(log: Path) -> list[Call]:
    """What the library told, call by call."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return [_call(line) for line in text.splitlines()]


def _call(line: str) -> Call:
    """`123456789!w 17 run/x`, or with a space instead of the mark."""
    nanoseconds, mark, kind, size, path = LINE.fullmatch(line).groups()
    return Call(int(nanoseconds), mark == "!", kind, int(size), path)


def missing() -> str | None:
    """Why nothing can be injected on this machine; None where it can."""
    if sys.platform != "linux":
        return "faults are injected by LD_PRELOAD and /proc, which are Linux's"
    return None if shutil.which("cc") else "there is no C compiler (cc) to build the fault library with"


def build_library(folder: Path) -> Path:
    """The library, compiled into `folder`."""
    library = folder / "libfaults.so"
    if not library.is_file():
        command = ["cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(library), str(HERE / "faults.c"), "-ldl"]
        subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """Of a process that carries the library: offline, one thread, our own sources."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MBERT_", "PYTEST_", "COV_"))}
    return kept | {
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "300",
    }


class Server:
    """The client's side. One command at a time; for two at a time take two servers."""

    def __init__(self, folder: Path, library: Path | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.number = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            env=environment(library or build_library(folder)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "server.err").open("w"),
            text=True,
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the fork server is gone: " + (self.folder / "server.err").read_text()[-4000:])
        return json.loads(line)

    def run(
        self,
        arguments: list[str],
        *,
        cwd: Path,
        variables: dict[str, str],
        fault: Fault | None = None,
        watch: Path | None = None,
        timeout: float = 300.0,
        learn: bool = False,
    ) -> Ended:
        """Runs `mbert ARGUMENTS`.

        fault  counts and disturbs calls below `watch` (default: cwd); without one, nothing is counted
        learn  imports afterwards what the command imported, so that the next one need not; for a first, undisturbed run
        """
        self.number += 1
        names = {name: str(self.folder / f"{self.number}.{name}") for name in ("out", "err", "log", "modules")}
        answer = self.ask(
            argv=["mbert", *arguments],
            cwd=str(cwd),
            variables=variables,
            arm=_armed(fault, os.path.realpath(watch or cwd), names["log"]) if fault else None,
            out=names["out"],
            err=names["err"],
            modules=names["modules"] if learn else None,
            timeout=timeout,
        )
        if learn:
            self.ask(modules=names["modules"])
        out, err = (Path(names[name]).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
        for name in ("out", "err"):
            Path(names[name]).unlink()
        log = Path(names["log"]) if fault else None
        return Ended(answer["code"], out, err, answer["seconds"], answer["ended"], log)


def _armed(fault: Fault, root: str, log: str) -> list[Any]:
    return [root, fault.pattern, fault.kinds, fault.number, MODES[fault.mode], fault.value, fault.microseconds, log]


def at(fault: Fault, **changed: Any) -> Fault:
    """The same fault, changed."""
    return replace(fault, **changed)


# The server's side


def serve() -> None:
    """Answers requests until stdin ends."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    _import_all()
    for line in requests:
        request = json.loads(line)
        answer = _run(request) if "argv" in request else _import(Path(request["modules"]))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _import_all() -> None:
    import pkgutil
    from importlib import import_module

    import microbert_cli

    for module in pkgutil.walk_packages(microbert_cli.__path__, "microbert_cli."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                import_module(module.name)


def _import(listed: Path) -> dict[str, Any]:
    from importlib import import_module

    for name in listed.read_text().split():
        with contextlib.suppress(Exception):
            import_module(name)
    return {"threads": len(os.listdir("/proc/self/task"))}


def _run(request: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_child(request)
    handle = os.pidfd_open(child)
    if not select.select([handle], [], [], request["timeout"])[0]:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    ended = time.monotonic_ns()
    os.close(handle)
    return {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - started, "ended": ended}


def _be_child(request: dict[str, Any]) -> None:
    code = 1
    try:
        os.chdir(request["cwd"])
        os.environ.update(request["variables"])
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
        sys.argv = request["argv"]
        _work_in_small_pieces()
        before = set(sys.modules)
        if request["arm"]:
            *texts, number, mode, value, microseconds, log = request["arm"]
            arm = ctypes.CDLL(None).faults_arm
            encoded = [ctypes.c_char_p(text.encode()) for text in texts]
            arm(*encoded, ctypes.c_long(number), mode, value, ctypes.c_long(microseconds), ctypes.c_char_p(log.encode()))
        from microbert_cli.cli.main import main

        try:
            main()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
        if request["modules"]:
            Path(request["modules"]).write_text("\n".join(sorted(set(sys.modules) - before)))
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        code = 70
    finally:
        os._exit(code)


def _work_in_small_pieces() -> None:
    """Shards of ten rows, and a teacher cache that is written through at every chunk: more places to be stopped at."""
    from microbert_cli.augmentation.algorithm import DatasetAugmenter
    from microbert_cli.distillation import teacher_cache

    with contextlib.suppress(AttributeError):
        teacher_cache.FLUSH_SECONDS = -1.0
        DatasetAugmenter.shards.__defaults__ = (10,)
        DatasetAugmenter.rows_of.__defaults__ = (10,)


if __name__ == "__main__":
    serve()
