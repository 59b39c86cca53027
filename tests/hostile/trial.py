"""Cases in processes with limits on memory, time and descriptors, and with a canary for what they touch.

Cases of one kind share a process until one of them kills it or takes too long; that one has failed, and the next begin
in a new process.
"""

import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from helpers.processes import start
from helpers.servers import Answer, serving

CPU_SECONDS = 10  # for one case
WALL_SECONDS = 120  # a machine may be busy
SPARE_MEMORY = 1 << 30  # bytes, beside twice the file
SPARE_DESCRIPTORS = 64
LONGEST_LINE = 4000  # characters
# Events of Python's audit hooks that a case may never cause.
_PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "urllib.Request")
_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")

Write = Callable[[Path], Any]  # writes the case into an empty folder


class Case(NamedTuple):
    """Hostile content and the command that is given it: the path `path` in the folder that `write` filled."""

    write: Write
    path: str = "file"
    commands: Sequence[Sequence[str]] = (("inspect", "{path}"),)
    answer: Answer | None = None  # of a server at {address}, which the commands may ask


@dataclass
class Canary:
    """Notes programs, sockets and files outside the folder of a case, while one is watched."""

    folder: str = ""
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder:
            return
        if event.startswith((*_PROGRAMS, *_NETWORK)):
            self.seen.append(f"{event}{arguments[:2]}"[:200])
        elif event in _CHANGES and isinstance(arguments[0], str | bytes):
            self.seen.append(f"{event} {os.fsdecode(arguments[0])}"[:200])
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path, _, flags = arguments
            name = os.path.abspath(os.fsdecode(path))
            writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if (writes and name != os.devnull) or not name.startswith((self.folder, *_readable())):
                self.seen.append(f"open {name} {'to write' if writes else 'to read'}")

    @contextmanager
    def watch(self, folder: Path) -> Iterator[list[str]]:
        self.folder, self.seen = str(folder), []
        try:
            yield self.seen
        finally:
            self.folder = ""


def _readable() -> tuple[str, ...]:
    """Where libraries and this package read themselves."""
    import twinlens

    libraries = [entry for entry in sys.path if "site-packages" in entry or "python3" in entry]
    return (
        sys.prefix,
        sys.base_prefix,
        *libraries,
        *twinlens.__path__,
        str(Path(__file__).parents[1]),  # a warning shows its line
        os.path.join(tempfile.gettempdir(), "sound-"),  # the pictures of an index, which has their paths
        "/proc/self",
        "/proc/mounts",
        "/sys/",
        "/usr/",
        "/etc/",
        "/dev/",
    )


def memory() -> tuple[int, int]:
    """Return the bytes of this process's address space, and those resident at most since `forget_peak`."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmSize"].split()[0]) * 1024, int(status["VmHWM"].split()[0]) * 1024


def attempt(arguments: Iterable[str]) -> str:
    """Run the command line; return "answered", "refused", or what is wrong with how it ended."""
    from twinlens.cli import main

    sys.argv = ["twinlens", *arguments]
    printed, errors = io.StringIO(), io.StringIO()
    code: Any = 0
    with redirect_stdout(printed), redirect_stderr(errors):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    lines = errors.getvalue().splitlines()
    if code == 0:
        said = (printed.getvalue() + errors.getvalue()).replace("\n", "")
        return "answered" if said.isprintable() else f"it prints {ascii(said)[-300:]}"
    warnings, line = lines[:-1], "".join(lines[-1:])  # of names that it does not know, and what a run is about to do
    if code != 1 or not line.startswith("twinlens: ") or len(warnings) > 5 or "Traceback" in warnings[:1]:
        return f"exit code {code}, {len(lines)} lines: {' / '.join(lines)[-300:]}"
    for word in ("Unexpected ", "Out of memory", "MemoryError", "nable to allocate", "annot allocate", "too many open"):
        if word in line:
            return f"the line {line[:300]}"
    if not "".join(lines).isprintable() or len("".join(lines)) > LONGEST_LINE:
        return f"{len(''.join(lines))} characters, {''.join(lines).isprintable()=}"
    return "refused"


def examine(case: Case, canary: Canary) -> str:
    """Write a case into a folder, run its commands, and return the first fault, or the last outcome."""
    with serving(case.answer) if case.answer else nullcontext("no:where") as address:
        return _examine(case, canary, address)


def _examine(case: Case, canary: Canary, address: str) -> str:
    outcome, asked = "", ("'{}', {}".format(*address.split(":")), f"http://{address}/")
    root = Path(tempfile.mkdtemp(prefix="case-"))
    folder = root / "folder"
    folder.mkdir()
    try:
        case.write(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        before = sorted(root.rglob("*"))
        allowed = SPARE_MEMORY + 2 * size
        for command in case.commands:
            names = {"path": folder / case.path, "out": root / "out", "address": address}
            arguments = [part.format(**names) for part in command]
            Path("/proc/self/clear_refs").write_text("5")  # forgets what was the most until now
            space, resident = memory()
            used = time.process_time()
            unlimited = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (space + allowed, unlimited[1]))
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            try:
                with canary.watch(root) as seen:
                    outcome = attempt(arguments)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                resource.setrlimit(resource.RLIMIT_AS, unlimited)
            used = time.process_time() - used
            taken = memory()[1] - resident
            if outcome not in ("answered", "refused"):
                return f"{command[0]}: {outcome}"
            if used > CPU_SECONDS:
                return f"{command[0]}: {used:.0f} s"
            if taken > allowed:
                return f"{command[0]}: {taken >> 20:,} MiB for {size:,} bytes"
            made = [str(root / ".out.")] if outcome == "answered" else []  # `convert` makes a folder
            if command[0] == "embed":  # whose folder says why no image could be read
                made.append(str(root / "out"))
                shutil.rmtree(root / "out", ignore_errors=True)
            if foreign := [event for event in seen if not any(name in event for name in (*made, *asked))]:
                return f"{command[0]}: {foreign[0]} and {len(foreign) - 1} more"
            if outcome == "refused" and sorted(root.rglob("*")) != before:
                return f"{command[0]}: left files behind"
            _remove_outputs(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return outcome


def _remove_outputs(root: Path) -> None:
    for path in root.glob("out*"):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)


def examine_all(module: str, names: Sequence[str], report: Path) -> None:
    """Examine cases by their names, in this process; write each name before and its outcome after."""
    cases = import_module(module).cases(names)
    for source in ("clip-shapes", "siglip-shapes"):  # imports what commands use
        assert attempt(["inspect", source]) == "answered"
    canary = Canary()
    sys.addaudithook(canary)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + SPARE_DESCRIPTORS, opened + SPARE_DESCRIPTORS))
    with report.open("a") as file:
        for name in names:
            file.write(f"{name}\t")
            file.flush()
            try:
                outcome = examine(cases[name], canary)
            except Exception as error:
                outcome = f"the suite itself failed: {error!r}"
            file.write(f"{' '.join(outcome.split())}\n")
            file.flush()


def outcomes(
    module: str,
    names: Sequence[str],
    folder: Path,
    examine: Callable[..., None] = examine_all,
    *given: str,
) -> dict[str, str]:
    """Return the outcome of each case: "answered", "refused", or a fault. `given` comes first to `examine`."""
    found: dict[str, str] = {}
    report, log = folder / "report", folder / "log"
    while pending := [name for name in names if name not in found]:
        report.write_text("")
        process = start(examine, *given, module, pending, report, output=log)
        hung = _wait(process, report)
        lines = [line.split("\t") for line in report.read_text().splitlines()]
        found |= {line[0]: line[1] for line in lines if len(line) == 2 and line[1]}
        if unfinished := [name for name in pending if name not in found][:1]:
            how = f"more than {WALL_SECONDS} s" if hung else f"killed the process ({process.exitcode})"
            found[unfinished[0]] = f"{how} {log.read_text()[-200:]}"
    return found


def _wait(process: BaseProcess, report: Path) -> bool:
    """Wait for a process; kill it, and return True, once its report has not grown for a while."""
    size, since = -1, time.monotonic()
    while process.exitcode is None:
        process.join(0.5)
        if (now := report.stat().st_size) != size:
            size, since = now, time.monotonic()
        if time.monotonic() - since > WALL_SECONDS:
            process.kill()
            process.join()
            return True
    return False
