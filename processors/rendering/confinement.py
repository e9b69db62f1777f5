"""Takes from a rendering child what it does not need: the network, other programs, memory without
end. Standard library alone; called once, before anything is imported that starts threads.

Linux: a network namespace of its own where the system allows one, and, on x86-64 and arm64, a
filter over system calls under which sockets and other programs cannot be had at all. Elsewhere the
limits alone hold, and what keeps an engine from the network is that it has no way to ask for it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from contextlib import suppress

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2

_LOAD, _JUMP_EQUAL, _JUMP_NOT_BELOW, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 13  # EACCES
_X32 = 0x40000000

# socket, connect, accept, sendto, sendmsg, bind, listen, socketpair, accept4, execve, execveat,
# ptrace, process_vm_readv, process_vm_writev, io_uring_setup
_REFUSED = {
    "x86_64": (0xC000003E, (41, 42, 43, 44, 46, 49, 50, 53, 288, 59, 322, 101, 310, 311, 425)),
    "aarch64": (
        0xC00000B7,
        (198, 203, 202, 206, 211, 200, 201, 199, 242, 221, 281, 117, 270, 271, 425),
    ),
}


def confine(memory_bytes: int) -> list[str]:
    """Give up everything that can be given up; returns what was, for the log."""
    done = ["limits"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # macOS has the name and not the limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if _leave_network(libc):
            done.append("namespace")
        if _refuse_calls(libc, os.uname().machine):
            done.append("seccomp")
    return done


def limit_cpu(seconds: int) -> None:
    """Be ended by the system after so much more time on a processor."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _leave_network(libc: ctypes.CDLL) -> bool:
    # Root may without a user namespace, and keeps its right to read the operator's files.
    return any(libc.unshare(flags) == 0 for flags in (CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET))


def _refuse_calls(libc: ctypes.CDLL, machine: str) -> bool:
    if machine not in _REFUSED:
        return False
    program = _program(*_REFUSED[machine])
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    )
    zero = ctypes.c_ulong(0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) != 0:
        return False
    mode = ctypes.c_ulong(SECCOMP_MODE_FILTER)
    return bool(libc.prctl(PR_SET_SECCOMP, mode, header, zero, zero) == 0)


def _program(architecture: int, refused: tuple[int, ...]) -> bytes:
    """A filter in BPF: refuses these calls, those of another architecture, and x32's."""
    body = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 0, len(refused) + 3, architecture),
        (_LOAD, 0, 0, 0),
        (_JUMP_NOT_BELOW, len(refused) + 1, 0, _X32),
        *((_JUMP_EQUAL, len(refused) - i, 0, call) for i, call in enumerate(refused)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in body)
