"""kvmpy's numbers, names and structures against the kernel header the compiler has here.

``CPPFLAGS="-I…"`` before pytest tries another kernel's headers.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmpy._native import ffi
from kvmpy.abi import capabilities, constants, exits, ioctls

CC = [*shlex.split(os.environ.get("CC", "cc")), *shlex.split(os.environ.get("CPPFLAGS", ""))]
INCLUDES = "#include <stddef.h>\n#include <stdio.h>\n#include <linux/version.h>\n#include <linux/kvm.h>\n"

# A header of a later kernel may have more than kvmpy knows, this one and those before it may not.
KNOWN_KERNEL = (6, 12)

OTHER_ARCHITECTURES = re.compile(r"KVM_(S390|PPC|ARM|RISCV|LOONGARCH|MIPS)_|.*_SPAPR_TCE|.*_ARM_|.*_MTE_")
NOT_ON_X86 = {
    "KVM_ALLOCATE_RMA",
    "KVM_DIRTY_TLB",
    "KVM_GET_ONE_REG",
    "KVM_SET_ONE_REG",
    "KVM_GET_REG_LIST",
}
# In headers for the sake of old programs; no kernel of the last ten years answers them.
REMOVED = {
    "KVM_SET_MEMORY_REGION",
    "KVM_SET_MEMORY_ALIAS",
    "KVM_ASSIGN_PCI_DEVICE",
    "KVM_DEASSIGN_PCI_DEVICE",
    "KVM_ASSIGN_IRQ",
    "KVM_ASSIGN_DEV_IRQ",
    "KVM_DEASSIGN_DEV_IRQ",
    "KVM_ASSIGN_SET_INTX_MASK",
    "KVM_ASSIGN_SET_MSIX_NR",
    "KVM_ASSIGN_SET_MSIX_ENTRY",
    "KVM_TRACE_ENABLE",
    "KVM_TRACE_PAUSE",
    "KVM_TRACE_DISABLE",
    "KVM_DEBUG_GUEST",
}


class Header:
    """The header: macros by name, its text after the preprocessor, and values the compiler computes from it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        lines = self._preprocess("-dM").splitlines()
        found = (re.match(r"#define (KVM_\w+)\s+(\S.*)", line) for line in lines)
        self.macros = {match[1]: match[2] for match in found if match}
        self.text = self._preprocess()

    def _preprocess(self, *flags: str) -> str:
        command = [*CC, "-E", *flags, "-x", "c", "-"]
        return subprocess.run(command, input=INCLUDES, text=True, check=True, capture_output=True).stdout

    def has_struct(self, name: str) -> bool:
        return re.search(rf"struct {name}\s*\{{", self.text) is not None

    def values(self, expressions: list[str]) -> list[int]:
        source = self.directory / "values.c"
        program = self.directory / "values"
        prints = "".join(f'\tprintf("%llu\\n", (unsigned long long)({text}));\n' for text in expressions)
        source.write_text(f"{INCLUDES}int main(void)\n{{\n{prints}\treturn 0;\n}}\n")
        subprocess.run([*CC, "-o", str(program), str(source)], check=True, capture_output=True, text=True)
        output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
        return [int(line) for line in output.split()]

    def kernel(self) -> tuple[int, int]:
        (code,) = self.values(["LINUX_VERSION_CODE"])
        return code >> 16, code >> 8 & 0xFF


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    return Header(tmp_path_factory.mktemp("header"))


def ioctl_macros(header: Header) -> set[str]:
    """Ioctls of x86 in the header. One may be an alias of another macro (the deprecated ones)."""
    names = {
        name for name, text in header.macros.items() if re.search(r"\b_IO[RW]{0,2}\(|__KVM_DEPRECATED", text)
    }
    names -= NOT_ON_X86 | REMOVED
    return {name for name in names if not OTHER_ARCHITECTURES.match(name)}


def known_ioctls() -> dict[str, ioctls.Ioctl]:
    return {name: value for name, value in vars(ioctls).items() if isinstance(value, ioctls.Ioctl)}


def known_numbers(module: Any) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if name.startswith("KVM_")}


def tolerated(header: Header, names: set[str]) -> set[str]:
    """What may be missing: nothing, unless the header is of a later kernel than the one kvmpy follows."""
    return names if header.kernel() > KNOWN_KERNEL else set()


def test_the_header_is_really_read(header: Header) -> None:
    assert "KVM_GET_REGS" in ioctl_macros(header)
    assert len(ioctl_macros(header)) > 80
    assert header.values(["KVM_API_VERSION"]) == [12]


def test_every_ioctl_number_is_the_compilers(header: Header) -> None:
    shared = [name for name in known_ioctls() if name in header.macros]
    assert len(shared) > 80
    numbers = dict(zip(shared, header.values(shared), strict=True))
    assert {name: known_ioctls()[name].number for name in shared} == numbers


def test_no_x86_ioctl_of_the_header_is_missing(header: Header) -> None:
    missing = ioctl_macros(header) - set(known_ioctls())
    assert missing - tolerated(header, missing) == set()


def test_the_ioctls_older_headers_lack_have_the_kernels_numbers() -> None:
    """Linux 6.8 and 6.11 added these: their numbers as those headers give them."""
    assert ioctls.KVM_SET_USER_MEMORY_REGION2.number == 0x40A0AE49
    assert ioctls.KVM_SET_MEMORY_ATTRIBUTES.number == 0x4020AED2
    assert ioctls.KVM_CREATE_GUEST_MEMFD.number == 0xC040AED4
    assert ioctls.KVM_PRE_FAULT_MEMORY.number == 0xC040AED5


@pytest.mark.parametrize(
    ("prefix", "module"), [("KVM_CAP_", capabilities), ("KVM_EXIT_", exits)], ids=["capabilities", "exits"]
)
def test_no_capability_or_exit_of_the_header_is_missing(header: Header, prefix: str, module: Any) -> None:
    missing = {name for name in header.macros if name.startswith(prefix)} - set(known_numbers(module))
    assert missing - tolerated(header, missing) == set()


@pytest.mark.parametrize("prefix", ["KVM_INTERNAL_ERROR_", "KVM_SYSTEM_EVENT_", "KVM_MSR_EXIT_REASON_"])
def test_no_sub_code_of_an_exit_is_missing(header: Header, prefix: str) -> None:
    names = {name for name in header.macros if name.startswith(prefix) and not name.endswith("_VALID_MASK")}
    missing = names - set(known_numbers(exits))
    assert names
    assert missing - tolerated(header, missing) == set()


@pytest.mark.parametrize("module", [capabilities, exits, constants], ids=lambda module: module.__name__)
def test_every_constant_has_the_headers_value(header: Header, module: Any) -> None:
    known = known_numbers(module)
    shared = [name for name in known if name in header.macros]
    assert len(shared) > 50
    assert {name: known[name] for name in shared} == dict(zip(shared, header.values(shared), strict=True))


# Structures

# Padding to which later headers gave another name.
RENAMED = {"kvm_run.hypercall.pad"}


def structures() -> list[str]:
    return [name for name in ffi.list_types()[1] if name.startswith("kvm_")]


def fields(kind: Any, path: str = "") -> Iterator[tuple[str, int, int]]:
    """Path, offset and size of every named field, those of anonymous members included."""
    for name, field in kind.fields:
        if not name:
            for inner, offset, size in fields(field.type, path):
                yield inner, field.offset + offset, size
            continue
        flexible = field.type.kind == "array" and field.type.length is None
        yield f"{path}{name}", field.offset, -1 if flexible else ffi.sizeof(field.type)
        if field.type.kind in ("struct", "union"):
            for inner, offset, size in fields(field.type, f"{path}{name}."):
                yield inner, field.offset + offset, size


def test_every_structure_has_the_size_the_compiler_gives_it(header: Header) -> None:
    names = [name for name in structures() if header.has_struct(name)]
    assert len(names) > 60
    sizes = header.values([f"sizeof(struct {name})" for name in names])
    assert {name: ffi.sizeof(f"struct {name}") for name in names} == dict(zip(names, sizes, strict=True))


def test_every_field_has_the_offset_and_size_the_compiler_gives_it(header: Header) -> None:
    ours: dict[str, tuple[int, int]] = {}
    expressions: list[str] = []
    for name in structures():
        if not header.has_struct(name):
            continue
        for path, offset, size in fields(ffi.typeof(f"struct {name}")):
            if f"{name}.{path}" in RENAMED:
                continue
            ours[f"{name}.{path}"] = (offset, size)
            expressions.append(f"offsetof(struct {name}, {path})")
            known = f"sizeof(((struct {name} *)0)->{path})"
            expressions.append(known if size >= 0 else "-1LL")
    numbers = header.values(expressions)
    pairs = zip(numbers[::2], (value if value < 1 << 63 else -1 for value in numbers[1::2]), strict=True)
    assert len(ours) > 400
    assert ours == dict(zip(ours, pairs, strict=True))


def test_structures_that_older_headers_lack_are_declared_by_kvmpy() -> None:
    for name in ("userspace_memory_region2", "memory_attributes", "create_guest_memfd", "pre_fault_memory"):
        assert ffi.sizeof(f"struct kvm_{name}") > 0
    fault = {name: field.offset for name, field in ffi.typeof("struct kvmpy_memory_fault").fields or ()}
    assert fault == {"flags": 0, "gpa": 8, "size": 16}
