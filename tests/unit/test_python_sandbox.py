"""The sandbox as values: its command line, its filter, and what is said of its ends."""

from __future__ import annotations

import signal
import struct
from itertools import pairwise

import pytest
from cogitate.tool_executor.core import output, python, sandbox, seccomp
from cogitate.tool_executor.core.sandbox import Programs, SandboxLimits
from cogitate.tool_executor.core.types import ToolError

pytestmark = pytest.mark.unit

LIMITS = SandboxLimits(
    memory_bytes=1 << 29, cpu_s=10, threads_count=32, tmp_bytes=1 << 24, files_count=64
)
PROGRAMS = Programs("/usr/bin/bwrap", "/usr/bin/prlimit", "/usr/bin/python3.11", "/usr")

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# read, write, execve, openat, futex, exit_group, getrandom, mmap
NEEDED = {
    "x86_64": (0, 1, 59, 257, 202, 231, 318, 9),
    "aarch64": (63, 64, 221, 56, 98, 94, 278, 222),
}
CLONE = {"x86_64": 56, "aarch64": 220}


def verdict(program: bytes, architecture: int, number: int, first_argument: int = 0) -> int:
    """Runs a filter as the kernel does: jumps count from the next instruction."""
    data = struct.pack("<IIQ", number, architecture, 0) + struct.pack("<Q", first_argument)
    steps = list(struct.iter_unpack("<HBBI", program))
    at = loaded = 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("<I", data, operand)
        elif code == 0x06:
            return int(operand)
        else:
            holds = {
                0x15: loaded == operand,
                0x35: loaded >= operand,
                0x45: bool(loaded & operand),
            }[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_every_system_call(machine: str) -> None:
    program, architecture = seccomp.program(machine), ARCHITECTURES[machine]
    assert program is not None and len(program) % 8 == 0
    refused = {each[machine == "aarch64"] for each in seccomp.REFUSED.values()} - {None}
    for number in range(600):
        expected = EPERM if number in refused else ENOSYS if number == 435 else ALLOW
        if number != CLONE[machine]:
            assert verdict(program, architecture, number) == expected, number
    assert all(verdict(program, architecture, n) == ALLOW for n in NEEDED[machine])
    thread = 0x3D0F00  # what glibc asks for
    assert verdict(program, architecture, CLONE[machine], thread) == ALLOW
    for process in (17, 0x4111, 0x10000000 | 17):  # fork, vfork, a new user namespace
        assert verdict(program, architecture, CLONE[machine], process) == EPERM
    assert verdict(program, architecture, 0x40000000) == EPERM
    for foreign in {0x40000003, *ARCHITECTURES.values()} - {architecture}:
        assert verdict(program, foreign, 0) == KILL


def test_a_machine_without_a_table_has_no_filter() -> None:
    assert seccomp.program("riscv64") is None


def test_the_command_line_has_every_wall() -> None:
    line = sandbox.command(PROGRAMS, LIMITS, 7, 8)
    before, after = line[: line.index("--")], line[line.index("--") + 1 :]
    assert line[0] == "/usr/bin/bwrap"
    for wall in (
        "--unshare-all --unshare-user --disable-userns --as-pid-1 --die-with-parent --new-session "
        "--clearenv"
    ).split():
        assert wall in before
    pairs = list(pairwise(before))
    for wall in [("--cap-drop", "ALL"), ("--uid", "65534"), ("--seccomp", "7"), ("--info-fd", "8")]:
        assert wall in pairs
    # Nothing from the host is writable, and nothing is mounted after the root became read-only.
    assert not {"--bind", "--bind-try", "--share-net", "--proc", "--dev"} & set(before)
    mounts = [n for n, word in enumerate(before) if word.endswith(("bind", "bind-try", "tmpfs"))]
    assert max(mounts) < before.index("--remount-ro")
    assert before[before.index("--remount-ro") + 1] == "/"
    assert before[before.index("--tmpfs") - 1] == str(LIMITS.tmp_bytes)
    assert after[0] == "/usr/bin/prlimit"
    for limit in ("--as=536870912", "--cpu=10", "--nproc=32", "--fsize=16777216", "--nofile=64"):
        assert limit in after
    assert after[after.index("--") + 1 :] == ["/usr/bin/python3.11", "-I", "-u", "-X", "utf8", "-"]


def test_an_interpreter_of_its_own_is_mounted_and_root_becomes_nobody() -> None:
    own = Programs("/b", "/p", "/opt/py/bin/python3", "/opt/py", setpriv="/usr/bin/setpriv")
    line = sandbox.command(own, LIMITS, 7, 8)
    assert line[:5] == [
        "/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--",
    ]  # fmt: skip
    assert ["--ro-bind", "/opt/py", "/opt/py"] == line[line.index("/opt/py") - 1 :][:3]
    inside = Programs("/b", "/p", "/usr/local/bin/python3", "/usr/local")
    assert sandbox.command(inside, LIMITS, 7, 8).count("--ro-bind") == 1


@pytest.mark.parametrize(
    ("exit_code", "error", "said"),
    [
        (0, "a warning", ""),
        (1, "", "The code ended with exit code 1."),
        (3, "Traceback", "The code ended with exit code 3."),
        (1, 'File "<stdin>", line 7, in f\nValueError: no\n\n', "ValueError: no (line 7)"),
        (
            1,
            '  File "<stdin>", line 1\n    x=\n      ^\nSyntaxError: bad',
            "SyntaxError: bad (line 1)",
        ),
        (128 + signal.SIGSEGV, "", "The code crashed with SIGSEGV."),
        (128 + 9, "", "The code was killed: for memory, or 10 s of processor time."),
        (1, "bwrap: Can't find /srv/x", "The sandbox could not be started."),
        (255, "", "The code ended with exit code 255."),
        (-9, "", "The code ended with exit code -9."),
    ],
)
def test_an_end_is_one_sentence(exit_code: int, error: str, said: str) -> None:
    assert sandbox.ending(exit_code, error, LIMITS) == said


def test_the_last_error_is_shortened() -> None:
    assert len(sandbox.last_error("x" * 10_000)) == sandbox.MAX_NOTE_CHARS
    assert sandbox.last_error("\n \n") == ""


def test_what_was_printed_makes_room_for_why_it_ended() -> None:
    printed, note = "é" * 100, "ValueError: no (line 1)"
    whole = python.result(printed, note, is_truncated=False, max_bytes=200 + 1 + len(note))
    assert (whole.text, whole.is_error, whole.is_truncated) == (f"{printed}\n{note}", True, False)
    for limit in range(1, 250):
        cut = python.result(printed, note, is_truncated=False, max_bytes=limit)
        assert len(cut.text.encode()) <= limit and cut.is_error
        if limit > len(note) + 1:
            assert cut.text.endswith(note)
    assert python.result("a\n", "b.", is_truncated=False, max_bytes=9).text == "a\nb."


def test_printing_nothing_is_said_and_a_cut_is_marked() -> None:
    silent = python.result("", "", is_truncated=False, max_bytes=100)
    assert (silent.text, silent.is_error) == (python.NOTHING, False)
    full = python.result("x" * 50, "", is_truncated=False, max_bytes=50)
    assert (full.text, full.is_truncated) == ("x" * 50, False)
    more = python.result("x" * 50, "", is_truncated=True, max_bytes=50)
    assert more.is_truncated and not more.is_error
    assert more.text == "x" * (50 - len(output.MARK)) + output.MARK


@pytest.mark.parametrize(
    "arguments",
    [{}, {"code": 1}, {"code": "1", "x": 2}, {"code": "a\0b"}, {"code": "\ud800"}],
)
def test_what_is_no_program_is_told_to_the_model(arguments: dict[str, object]) -> None:
    with pytest.raises(ToolError) as caught:
        python.code_of(arguments)  # type: ignore[arg-type]
    assert str(caught.value).endswith(".")


def test_the_tool_says_what_it_can() -> None:
    tool = python.tool("3.12.1", 5.0)
    assert (tool.name, tool.origin, tool.repeatable, tool.run) == ("python", "sandbox", True, None)
    assert "3.12.1" in tool.description and "5 s" in tool.description
    assert python.code_of({"code": "é"}) == "é".encode()
