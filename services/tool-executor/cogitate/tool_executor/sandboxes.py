"""Runs the tool `python`: each call in a sandbox of its own, made before it is needed.

A sandbox is a bubblewrap process whose interpreter is up and waits for its program on standard
input. It runs one program and is gone. Whatever ends the call, the sandbox is killed and waited
for; it ends with this process, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import platform
import re
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cogitate.kit import telemetry
from cogitate.kit.tasks import Supervisor
from cogitate.tool_executor.config import ToolExecutorConfig
from cogitate.tool_executor.core import arguments, output, python, sandbox, seccomp
from cogitate.tool_executor.core.invoke import failure
from cogitate.tool_executor.core.output import Cut
from cogitate.tool_executor.core.policy import Grant
from cogitate.tool_executor.core.sandbox import Programs
from cogitate.tool_executor.core.types import Call, Outcome, Tool, ToolError
from cogitate.tool_executor.runners import Emit, crashed, mark

logger = logging.getLogger(__name__)

_PROBE_S = 10.0
_RETRY_S = 5.0
_READ_BYTES = 65536
# How long bubblewrap is waited for to say which process it started, before it is given up.
_LOOKS, _LOOK_S = 1000, 0.01
_PIPE_BYTES = 65536  # what a pipe holds unless told otherwise
_CHILD = re.compile(rb'"child-pid": (\d+)')
_ERROR_BYTES = 4096  # of the end of what the code wrote to its standard error
# Says the version and whether each wall stands. Where one does not, no code is ever run.
_PROBE = b"""
import os, platform, socket
def refused(act, *arguments):
    try:
        act(*arguments)
    except OSError:
        return True
walls = [refused(socket.socket), refused(os.fork), refused(open, "/x", "w")]
walls += [refused(os.listdir, "/proc"), refused(open, "/etc/passwd"), os.getuid() == 65534]
walls += [os.environ.keys() <= {"PWD", "LC_CTYPE"}]
print(platform.python_version(), all(walls))
"""


class _Unusable(Exception):
    """No sandbox can be made; the message is for the log."""


@dataclass(slots=True, eq=False)
class _Sandbox:
    """A bubblewrap, the program in it, and the descriptors we hold of both; -1 once closed."""

    process: asyncio.subprocess.Process
    info_fd: int
    program_fd: int
    _ending: asyncio.Task[None] | None = None

    def begin(self, code: bytes) -> None:
        """Gives it its program. The pipe holds all of it, so nothing waits."""
        os.write(self.program_fd, code)
        self.program_fd = _closed(self.program_fd)

    def kill(self) -> None:
        """Ends the program, and with it its namespaces and then bubblewrap. Idempotent.

        Bubblewrap itself is left alone. Killed while it starts, it would leave a child that waits
        for it for ever; killed later, one for the system's first process to reap, maybe us.
        """
        if self.process.returncode is None and (pid := self._inner()):
            _kill_child(pid, self.process.pid)

    async def end(self) -> None:
        """Kills it, waits until it is gone, lets go of it. Idempotent; cancelled, it goes on."""
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        # An interpreter without a program ends by itself, and one with a program is soon known.
        self.program_fd = _closed(self.program_fd)
        for _ in range(_LOOKS):
            if self.process.returncode is not None or self._inner():
                break
            await asyncio.sleep(_LOOK_S)
        self.kill()
        assert self.process.stdout is not None and self.process.stderr is not None
        for stream in (self.process.stdout, self.process.stderr):
            while await stream.read(_READ_BYTES):
                pass
        await self.process.wait()
        self.info_fd = _closed(self.info_fd)

    def _inner(self) -> int:
        """Returns the process in the sandbox, as bubblewrap wrote it; 0 if it has not yet."""
        try:
            found = _CHILD.search(os.pread(self.info_fd, 256, 0))
        except OSError:
            return 0
        return int(found[1]) if found else 0


@dataclass(slots=True)
class _Capture:
    """What one program wrote: kept as far as it is shown, counted in all."""

    cut: Cut
    emit: Emit
    max_written: int
    num_written: int = 0
    error: bytes = b""

    @property
    def is_flooded(self) -> bool:
        """Whether it wrote more than it may."""
        return self.num_written > self.max_written

    def outcome(self, note: str, max_bytes: int) -> Outcome:
        """Returns what the model sees; `note` is why it did not end well, empty if it did."""
        if self.is_flooded:
            note = f"The code wrote more than {self.max_written} bytes and was stopped."
        return python.result(
            self.cut.text, note, is_truncated=self.cut.is_truncated, max_bytes=max_bytes
        )

    async def read(self, running: _Sandbox) -> int:
        """Reads all it writes until its end; returns its exit code."""
        assert running.process.stdout is not None and running.process.stderr is not None
        await asyncio.gather(
            self._read(running, running.process.stdout, self._on_output),
            self._read(running, running.process.stderr, self._on_error),
        )
        return await running.process.wait()

    async def _read(
        self, running: _Sandbox, stream: asyncio.StreamReader, take: Callable[[bytes], None]
    ) -> None:
        while data := await stream.read(_READ_BYTES):
            self.num_written += len(data)
            if not self.is_flooded:
                take(data)
            else:
                running.kill()
        take(b"")

    def _on_output(self, data: bytes) -> None:
        if piece := self.cut.feed(data, final=not data):
            self.emit(piece)

    def _on_error(self, data: bytes) -> None:
        self.error = (self.error + data)[-_ERROR_BYTES:]


class Sandboxes:
    """The runner of `python`, with a pool of sandboxes that wait."""

    is_away = False

    def __init__(self, config: ToolExecutorConfig) -> None:
        self.tools: Mapping[str, Tool] = {}
        self.slots = asyncio.Semaphore(config.python_running_count)
        self._config = config
        self._limits = config.sandbox_limits
        self._programs: Programs | None = None
        self._filter = b""
        self._warm: deque[_Sandbox] = deque()
        self._alive: set[_Sandbox] = set()
        self._opening: set[asyncio.Task[_Sandbox]] = set()
        self._wanted = asyncio.Event()
        self._supervisor = Supervisor()

    def why_not(self, name: str) -> str:
        """Says that there is no sandbox here, if that is so."""
        if name != python.NAME or self.tools:
            return ""
        return "there is no tool 'python' here: bubblewrap makes no sandbox on this machine"

    async def start(self) -> None:
        """Finds an interpreter whose sandbox holds, and starts the pool; logs once if none does."""
        try:
            version = await self._find()
        except _Unusable as problem:
            logger.warning("the tool python is not offered: %s", problem)
            return
        self.tools = {python.NAME: python.tool(version, self._config.limits.default_timeout_s)}
        self._supervisor.spawn(self._keep_warm(), name="sandbox-pool")

    async def stop(self) -> None:
        """Ends the pool and every sandbox."""
        await self._supervisor.stop()
        await asyncio.gather(*self._opening, return_exceptions=True)
        await asyncio.gather(*(each.end() for each in self._alive))
        self._alive.clear()

    async def run(self, call: Call, grant: Grant, ends: float, emit: Emit) -> Outcome:
        """Runs one program; cancelled, it kills it."""
        running: _Sandbox | None = None
        try:
            code = python.code_of(arguments.read(call.arguments_json))
            capture = _Capture(Cut(grant.max_output_bytes), emit, self._config.python_written_bytes)
            async with asyncio.timeout_at(ends):
                running = await self._take()
                running.begin(code)
                exit_code = await capture.read(running)
            error = capture.error.decode(errors="replace")
            note = sandbox.ending(exit_code, error, self._limits)
        except TimeoutError:
            mark("TOOL_TIMED_OUT")
            note = f"The code took longer than {grant.timeout_s:g} s and was stopped."
        except ToolError as objection:
            return output.fit(failure(str(objection)), grant.max_output_bytes)
        except OSError as error:
            return crashed(call.tool_name, error)
        finally:
            if running is None:
                self.slots.release()
            else:
                self._supervisor.spawn(self._end(running), name="sandbox-end")
        return capture.outcome(note, grant.max_output_bytes)

    async def _take(self) -> _Sandbox:
        """Returns a sandbox that waits, or a new one if none does."""
        while self._warm:
            waiting = self._warm.popleft()
            self._wanted.set()
            if waiting.process.returncode is None:
                return waiting
            await self._discard(waiting)
        return await self._open()

    async def _keep_warm(self) -> None:
        while True:
            try:
                while len(self._warm) < self._config.python_warm_count:
                    self._warm.append(await self._open())
            except OSError as error:
                logger.error("no sandbox could be started: %s", telemetry.stack_of(error))
                await asyncio.sleep(_RETRY_S)
            self._wanted.clear()
            await self._wanted.wait()

    async def _open(self) -> _Sandbox:
        """Starts a sandbox. Cancelled, it ends it as soon as that can be done. Raises OSError."""
        opening = asyncio.ensure_future(self._start())
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            # Not to be broken off half-way: see _Sandbox.kill.
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._on_unwanted)
            raise

    def _on_unwanted(self, opening: asyncio.Task[_Sandbox]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._supervisor.spawn(self._discard(opening.result()), name="sandbox-end")

    async def _start(self) -> _Sandbox:
        assert self._programs is not None
        info = os.memfd_create("sandbox-info")
        program_read, program_write = os.pipe()
        filter_read, filter_write = os.pipe()
        try:
            if self._config.max_arguments_bytes > _PIPE_BYTES:
                size = self._config.max_arguments_bytes
                fcntl.fcntl(program_write, fcntl.F_SETPIPE_SZ, size)
            os.write(filter_write, self._filter)
            process = await asyncio.create_subprocess_exec(
                *sandbox.command(self._programs, self._limits, filter_read, info),
                stdin=program_read,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(filter_read, info),
                env={},
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            os.close(program_write)
            os.close(info)
            raise
        finally:
            for each in (program_read, filter_read, filter_write):
                os.close(each)
        opened = _Sandbox(process, info, program_write)
        self._alive.add(opened)
        return opened

    async def _discard(self, unused: _Sandbox) -> None:
        await unused.end()
        self._alive.discard(unused)

    async def _end(self, running: _Sandbox) -> None:
        """Ends a sandbox; its slot is free when it is gone, not when its call is over."""
        await self._discard(running)
        self.slots.release()

    async def _find(self) -> str:
        """Chooses the interpreter; returns its version. Raises _Unusable, saying why."""
        found = {name: shutil.which(name) or "" for name in ("bwrap", "prlimit", "setpriv")}
        is_root = os.getuid() == 0
        if missing := [n for n, path in found.items() if not path and (n != "setpriv" or is_root)]:
            raise _Unusable(f"there is no {' and no '.join(missing)}")
        self._filter = seccomp.program(platform.machine()) or b""
        if not self._filter:
            raise _Unusable(f"there is no system call filter for {platform.machine()}")
        problems = []
        for interpreter, prefix in self._interpreters():
            self._programs = Programs(
                bwrap=found["bwrap"],
                prlimit=found["prlimit"],
                interpreter=str(interpreter),
                prefix=str(prefix),
                setpriv=found["setpriv"] if is_root else "",
            )
            try:
                return await self._probe()
            except _Unusable as problem:
                problems.append(f"{interpreter}: {problem}")
        raise _Unusable("; ".join(problems) or "there is no interpreter")

    def _interpreters(self) -> Iterator[tuple[Path, Path]]:
        """Yields interpreters with the folder they live in: as configured, else ours, Debian's."""
        if self._config.python_interpreter:
            path = Path(self._config.python_interpreter).resolve()
            yield path, path.parent.parent
            return
        prefix = Path(sys.base_prefix).resolve()
        names = [prefix / "bin" / f"python3.{sys.version_info.minor}", Path("/usr/bin/python3")]
        for path in names:
            if path.exists():
                yield path.resolve(), prefix if path.is_relative_to(prefix) else Path("/usr")

    async def _probe(self) -> str:
        """Runs a program that tries the walls; returns the version. Raises _Unusable."""
        capture = _Capture(Cut(_ERROR_BYTES), lambda piece: None, _READ_BYTES)
        running: _Sandbox | None = None
        try:
            async with asyncio.timeout(_PROBE_S):
                running = await self._open()
                running.begin(_PROBE)
                exit_code = await capture.read(running)
        except (OSError, TimeoutError) as error:
            raise _Unusable(type(error).__name__) from None
        finally:
            if running is not None:
                await self._discard(running)
        said = capture.cut.text.split()
        if exit_code != 0 or len(said) != 2 or said[1] != "True":
            reason = output.clean(capture.error.decode(errors="replace")).strip()[-200:]
            raise _Unusable(reason or "a wall does not stand")
        return said[0]


def _kill_child(pid: int, parent_pid: int) -> None:
    """Kills a child of a process. Never one that got the number of a child that is gone."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        pid_fd = os.pidfd_open(pid)
        try:
            # The fourth field, after a name in parentheses, is the parent.
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == parent_pid:
                signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
        finally:
            os.close(pid_fd)


def _closed(descriptor: int) -> int:
    if descriptor >= 0:
        os.close(descriptor)
    return -1
