"""Runs a seccomp filter in Python, so that a test can ask it about any call without loading it.

A program is what `seccomp_export_bpf` writes: an array of the kernel's `struct sock_filter`. The
rules come from linux/bpf_common.h (the instruction set), `seccomp_check_filter` in kernel/seccomp.c
(which instructions a seccomp filter may use), and linux/seccomp.h with
Documentation/userspace-api/seccomp_filter.rst (what a filter sees, what a return value means).
"""

from __future__ import annotations

import errno
import operator
import struct
from collections.abc import Callable, Sequence

AUDIT_ARCH_X86_64 = 0xC000003E
AUDIT_ARCH_I386 = 0x40000003
AUDIT_ARCH_AARCH64 = 0xC00000B7
X32_SYSCALL_BIT = 0x40000000

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, k
_SECCOMP_DATA = struct.Struct("=IIQ6Q")  # struct seccomp_data: nr, arch, instruction pointer, args
_WORD = struct.Struct("=I")
_MASK = 0xFFFFFFFF
_LOAD, _LOAD_X, _STORE, _STORE_X, _ALU, _JUMP, _RETURN, _MISC = range(8)
_IMMEDIATE, _ABSOLUTE, _MEMORY, _LENGTH = 0x00, 0x20, 0x60, 0x80
_PLAIN_LOADS = {kind | mode for kind in (_LOAD, _LOAD_X) for mode in (_IMMEDIATE, _MEMORY, _LENGTH)}
_NEGATE = 0x80
_TAX, _TXA = 0x07, 0x87

_ALU_OPERATIONS: dict[int, Callable[[int, int], int]] = {
    0x00: operator.add,
    0x10: operator.sub,
    0x20: operator.mul,
    0x30: operator.floordiv,
    0x40: operator.or_,
    0x50: operator.and_,
    0x60: lambda a, b: a << (b & 31),
    0x70: lambda a, b: a >> (b & 31),
    0xA0: operator.xor,
}
_JUMP_TESTS: dict[int, Callable[[int, int], bool]] = {
    0x10: operator.eq,
    0x20: operator.gt,
    0x30: operator.ge,
    0x40: lambda a, b: bool(a & b),
}
_ACTIONS = {  # linux/seccomp.h; a lower value, read as a signed number, is more restrictive
    0x80000000: "kill",  # the process
    0x00000000: "kill",  # the thread
    0x00030000: "trap",
    0x00050000: "errno",
    0x7FC00000: "notify",
    0x7FF00000: "trace",
    0x7FFC0000: "log",
    0x7FFF0000: "allow",
}
_MAX_ERRNO = 4095


def simulate(program: bytes, nr: int, args: Sequence[int] = (), arch: int = AUDIT_ARCH_X86_64) -> int:
    """What `program` returns for a call (SECCOMP_RET_*), by the rules of linux/bpf_common.h.

    Raises ValueError for an instruction that the kernel would not accept in a seccomp filter.
    """
    registers = [value & (2**64 - 1) for value in args] + [0] * (6 - len(args))
    data = _SECCOMP_DATA.pack(nr & _MASK, arch, 0, *registers)
    instructions = list(_INSTRUCTION.iter_unpack(program))
    a = x = pc = 0
    memory = [0] * 16
    while pc < len(instructions):
        code, if_true, if_false, k = instructions[pc]
        pc += 1
        kind, mode, operation = code & 0x07, code & 0xE0, code & 0xF0
        operand = x if code & 0x08 else k
        if code == _LOAD | _ABSOLUTE and k % 4 == 0 and k < len(data):
            (a,) = _WORD.unpack_from(data, k)
        elif code in _PLAIN_LOADS:
            value = len(data) if mode == _LENGTH else memory[k] if mode == _MEMORY else k
            a, x = (value, x) if kind == _LOAD else (a, value)
        elif code in (_STORE, _STORE_X):
            memory[k] = a if code == _STORE else x
        elif code == _ALU | _NEGATE:
            a = -a & _MASK
        elif kind == _ALU and code < 0x100 and operation in _ALU_OPERATIONS:
            if operation == 0x30 and operand == 0:
                return 0  # the kernel ends a program that divides by zero, with this value
            a = _ALU_OPERATIONS[operation](a, operand) & _MASK
        elif code == _JUMP:
            pc += k
        elif kind == _JUMP and code < 0x100 and operation in _JUMP_TESTS:
            pc += if_true if _JUMP_TESTS[operation](a, operand) else if_false
        elif code in (_RETURN, _RETURN | 0x10):
            return a if code & 0x10 else k
        elif code in (_TAX, _TXA):
            a, x = (a, a) if code == _TAX else (x, x)
        else:
            raise ValueError(f"instruction {pc - 1} is no seccomp one: {code:#x}, {k:#x}")
    raise ValueError("the program ends without a return")


def verdict(programs: Sequence[bytes], nr: int, args: Sequence[int] = (), arch: int = AUDIT_ARCH_X86_64) -> str:
    """What the kernel does with a call under several filters: `allow`, `errno:EPERM`, `kill` ...

    Every filter runs, and the most restrictive action holds; of equal ones, that of the filter
    installed last, which is the last in the list (seccomp_filter.rst, "Return values").
    """
    results = [0x7FFF0000, *(simulate(program, nr, args, arch) for program in reversed(programs))]
    result = min(results, key=lambda value: struct.unpack("=i", _WORD.pack(value & 0xFFFF0000))[0])
    action = _ACTIONS.get(result & 0xFFFF0000, "kill")
    if action != "errno":
        return action
    number = min(result & 0xFFFF, _MAX_ERRNO)
    return f"errno:{errno.errorcode.get(number, number)}"
