"""The second wall of the sandbox: a seccomp filter that refuses what no calculation needs.

The first wall is namespaces without a network and a read-only root. This one refuses new processes
(threads are allowed, so the address space of one process bounds all memory), sockets of every
family, memory that outlives its mapping, and the system calls kernels are attacked with.

Invariants (tests/unit/test_python_sandbox.py):

1. The program is a list of 8-byte instructions in which every jump lands inside of it
   (test_the_filter_decides_every_system_call, which runs it in an interpreter of its own).
2. A foreign architecture is killed; so a number always means the system call it is listed as.
"""

from __future__ import annotations

import struct

# Instructions of classic BPF.
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Offsets in struct seccomp_data; both architectures are little-endian.
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x00010000
# System calls of the x32 ABI have this bit; none is allowed.
_X32 = 0x40000000

# Refused with EPERM: (x86-64, aarch64), None where it does not exist.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "socket": (41, 198),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
}
_CLONE3 = 435  # on both
# Machine, as uname names it: index into the table, AUDIT_ARCH_*, clone.
_MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}


def program(machine: str) -> bytes | None:
    """Returns the filter for a machine, as `bwrap --seccomp` reads it; None for an unknown one."""
    if machine not in _MACHINES:
        return None
    column, architecture, clone = _MACHINES[machine]
    numbers = sorted(n for each in REFUSED.values() if (n := each[column]) is not None)
    # From the last instruction up, because jumps count the instructions they skip.
    tail = [
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERROR | _EPERM),
        (_RETURN, 0, 0, _ERROR | _ENOSYS),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_JUMP_SET, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERROR | _EPERM),
    ]
    refuse, unknown, threads = 1, 2, 3  # falling through allows
    checks: list[tuple[int, int, int]] = [  # instruction, operand, where in the tail if it holds
        (_JUMP_AT_LEAST, _X32, refuse),
        *((_JUMP_EQUAL, number, refuse) for number in numbers),
        # glibc takes clone when there is no clone3, and only clone's flags can be looked at.
        (_JUMP_EQUAL, _CLONE3, unknown),
        (_JUMP_EQUAL, clone, threads),
    ]
    body = [
        (code, len(checks) - index - 1 + target, 0, operand)
        for index, (code, operand, target) in enumerate(checks)
    ]
    head = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    return b"".join(struct.pack("<HBBI", *each) for each in (*head, *body, *tail))
