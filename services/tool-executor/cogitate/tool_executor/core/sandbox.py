"""What a sandbox is made of: the command line that makes one, and what its end means.

The walls, all set up before the first line of the code: new user, mount, process, network, IPC,
host name and cgroup namespaces without a way to make more; a root of its own, read-only, with
`/usr`, the interpreter, `/dev/{null,zero,random,urandom}` and an empty `/tmp` of limited size; no
`/proc`, no `/etc` but the linker's cache; no environment; no capabilities; the filter of
`core/seccomp.py`; limits of memory, processor, threads, files.

Invariants (tests/unit/test_python_sandbox.py, test_the_command_line_has_every_wall):

1. Nothing is mounted writable but `/tmp`, and the remount of the root comes after the last mount.
2. What the code is told about its end is one sentence, without a path of the host.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import PurePosixPath

UID = 65534
_DEVICES = ("null", "zero", "random", "urandom")
MAX_NOTE_CHARS = 400
_LINE = re.compile(r'File "<stdin>", line (\d+)')
# How the programs that make a sandbox begin what they say when they cannot.
_OURS = ("setpriv: ", "bwrap: ", "prlimit: ")
_KILLED = 128  # what a shell, and bwrap, add to the number of a signal


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What the code of one call may use. `cpu_s` is processor time, of all its threads."""

    memory_bytes: int
    cpu_s: int
    threads_count: int
    tmp_bytes: int
    files_count: int


@dataclass(frozen=True, slots=True)
class Programs:
    """Absolute paths of what a sandbox is started with; `setpriv` empty unless we are root."""

    bwrap: str
    prlimit: str
    interpreter: str
    prefix: str
    setpriv: str = ""


def command(programs: Programs, limits: SandboxLimits, seccomp_fd: int, info_fd: int) -> list[str]:
    """Returns the command that runs, in a sandbox, the Python program on its standard input.

    It reads the filter from `seccomp_fd` and says on `info_fd` which process is the sandboxed one.
    """
    mounts = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/lib", "/lib"]
    mounts += ["--ro-bind-try", "/lib64", "/lib64"]
    mounts += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    if not PurePosixPath(programs.prefix).is_relative_to("/usr"):
        mounts += ["--ro-bind", programs.prefix, programs.prefix]
    for device in _DEVICES:
        mounts += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    mounts += ["--size", str(limits.tmp_bytes), "--tmpfs", "/tmp", "--remount-ro", "/"]
    return [
        *_as_nobody(programs.setpriv),
        programs.bwrap,
        # --unshare-all only tries for a user namespace; without one we do not run.
        "--unshare-all", "--unshare-user", "--disable-userns",
        # The program is the first process of its namespace: when it ends, so does everything.
        "--as-pid-1", "--die-with-parent", "--new-session", "--clearenv",
        "--uid", str(UID), "--gid", str(UID), "--cap-drop", "ALL", "--hostname", "sandbox",
        *mounts,
        "--chdir", "/tmp", "--seccomp", str(seccomp_fd), "--info-fd", str(info_fd), "--",
        *_limited(programs.prlimit, limits),
        programs.interpreter, "-I", "-u", "-X", "utf8", "-",
    ]  # fmt: skip


def _as_nobody(setpriv: str) -> list[str]:
    # Root's processes are not counted against RLIMIT_NPROC, and own every file under /usr.
    if not setpriv:
        return []
    return [setpriv, f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--"]


def _limited(prlimit: str, limits: SandboxLimits) -> list[str]:
    return [
        prlimit,
        f"--as={limits.memory_bytes}",
        f"--cpu={limits.cpu_s}",
        f"--nproc={limits.threads_count}",
        f"--fsize={limits.tmp_bytes}",
        f"--nofile={limits.files_count}",
        "--core=0",
        "--msgqueue=0",
        "--memlock=0",
        "--",
    ]


def ending(exit_code: int, error: str, limits: SandboxLimits) -> str:
    """Returns what to say of an end by itself; empty if all went well. `error` is its stderr."""
    if exit_code == 0:
        return ""
    if exit_code == _KILLED + signal.SIGKILL:
        return f"The code was killed: for memory, or {limits.cpu_s} s of processor time."
    if exit_code > _KILLED and (name := _signal_name(exit_code - _KILLED)):
        return f"The code crashed with {name}."
    line = last_error(error)
    if line.startswith(_OURS):
        return "The sandbox could not be started."
    if exit_code == 1 and line:
        return line
    return f"The code ended with exit code {exit_code}."


def last_error(error: str) -> str:
    """Returns the last line of a traceback with the line of the code it came from, shortened."""
    lines = [line for line in error.splitlines() if line.strip()]
    if not lines:
        return ""
    text = lines[-1].strip()[:MAX_NOTE_CHARS]
    # Only the last traceback, and in it the innermost line of the code itself.
    numbers = _LINE.findall("\n".join(lines))
    return f"{text} (line {numbers[-1]})" if numbers else text


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""
