"""Assembly and C of tests made into guest code, by the compiler that is there; kept by content."""

from __future__ import annotations

import os

from kvmpy.errors import UsageError
from kvmpy.testing.problems import AssemblyError, NoCompiler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

SCHEMA = 2
INCLUDE = os.path.join(os.path.dirname(__file__), "include")
NAMES = {"asm": "asm", "c": "c"}
BITS = {"real": 16, "protected": 32, "long": 64}
COMMON = ("-m64", "-c", "-x")
LINK = (
    "-m64",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-z,max-page-size=4096",
)
# Ring 0 without FPU state: no vector registers; interrupts may come: no red zone.
C_FLAGS = (
    "-O1", "-std=gnu11", "-ffreestanding", "-fno-pic", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none", "-mno-red-zone", "-mgeneral-regs-only", "-mcmodel=small", "-Wall", "-Werror=implicit",
)  # fmt: skip
C_START = """__asm__(
".pushsection .text.first, \\"ax\\"; _start: call main; out %al, $0xf4; 1: cli; hlt; jmp 1b; .popsection");"""


class Assertion:
    """An ``ASSERT`` in guest code: where it was written, its text, and how its values are found."""

    __slots__ = ("file", "kind", "line", "text")

    def __init__(self, line: int, file: str, text: str, kind: int) -> None:
        self.line = line
        self.file = file
        self.text = text
        self.kind = kind


class Program:
    """Guest code: ``data`` for memory at ``at``, ``entry``, symbols, assertions by address.

    ``source`` is the text it came from, ``path`` a file with ``data`` in it (for running it by hand).
    """

    def __init__(
        self,
        data: bytes,
        at: int,
        entry: int,
        *,
        symbols: dict[str, int] | None = None,
        assertions: dict[int, Assertion] | None = None,
        language: str = "",
        source: str = "",
        path: str = "",
    ) -> None:
        self.data = data
        self.at = at
        self.entry = entry
        self.symbols = symbols or {}
        self.assertions = assertions or {}
        self.language = language
        self.source = source
        self.path = path

    def symbol_near(self, address: int) -> str:
        """``name+0x3`` for an address inside the program; "" outside."""
        if not self.at <= address < self.at + len(self.data):
            return ""
        below = [(value, name) for name, value in self.symbols.items() if value <= address]
        value, name = max(below, default=(self.at, "start"))
        return name if value == address else f"{name}+{address - value:#x}"


class Builder:
    """Makes programs and keeps them in ``directory``, by a hash of everything that goes into them."""

    def __init__(self, directory: str, cc: str | None = None) -> None:
        self.directory = directory
        self.cc = cc or os.environ.get("CC") or "cc"
        self._programs: dict[tuple[str, str, str, int], Program] = {}

    def build(self, language: str, source: str, mode: str, at: int) -> Program:
        """The program for ``source``; ``language`` is "asm" or "c", ``mode`` real, protected or long.

        Raises AssemblyError (lines count from the source's first), NoCompiler, UsageError.
        """
        key = (language, source, mode, at)
        found = self._programs.get(key)
        if found is None:
            found = self._programs[key] = self._load_or_make(*key)
        return found

    def _load_or_make(self, language: str, source: str, mode: str, at: int) -> Program:
        if mode not in BITS:
            raise UsageError(f"mode {mode!r}: one of {', '.join(BITS)}")
        if language == "c" and mode != "long":
            raise UsageError(f"C in {mode} mode: guests in C run in long mode")
        name = os.path.join(self.directory, self._digest(language, source, mode, at))
        if not os.path.exists(f"{name}.json"):
            self._make(name, language, source, mode, at)
        return _read(name, language, source)

    def _digest(self, language: str, source: str, mode: str, at: int) -> str:
        from hashlib import sha256

        content = [
            repr((SCHEMA, language, source, mode, at, self._compiler_version(), C_FLAGS, LINK, C_START))
        ]
        for file in ("kvmpy.h", "flat.ld"):
            with open(os.path.join(INCLUDE, file), encoding="utf-8") as opened:
                content.append(opened.read())
        return sha256("\0".join(content).encode()).hexdigest()[:24]

    def _compiler_version(self) -> object:
        """Cheap, and another one after an upgrade; None without a compiler: then only the cache can help."""
        from shutil import which

        path = which(self.cc.split()[0])
        return None if path is None else (self.cc, os.stat(path).st_mtime_ns)

    def _make(self, name: str, language: str, source: str, mode: str, at: int) -> None:
        from tempfile import TemporaryDirectory

        os.makedirs(self.directory, exist_ok=True)
        with TemporaryDirectory(prefix=".build-", dir=self.directory) as scratch:
            elf = os.path.join(scratch, "guest.elf")
            self._compile(scratch, language, source, mode)
            script = ("-Wl,-T," + os.path.join(INCLUDE, "flat.ld"), f"-Wl,--defsym=LOAD_ADDRESS={at:#x}")
            self._run(
                language, [*LINK, *script, "-Wl,-e,LOAD_ADDRESS", "-o", elf, os.path.join(scratch, "guest.o")]
            )
            _store(elf, scratch, name, at)

    def _compile(self, scratch: str, language: str, source: str, mode: str) -> None:
        path = os.path.join(scratch, "guest." + ("c" if language == "c" else "S"))
        start = C_START if language == "c" else f".code{BITS[mode]}\n.text"
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'{start}\n#line 1 "{NAMES[language]}"\n{source}\n')
        kind = "c" if language == "c" else "assembler-with-cpp"
        flags = C_FLAGS if language == "c" else ("-Wa,--fatal-warnings",)
        self._run(
            language, [*COMMON, kind, *flags, "-I", INCLUDE, "-o", os.path.join(scratch, "guest.o"), path]
        )

    def _run(self, language: str, arguments: Sequence[str]) -> None:
        import subprocess

        environment = {**os.environ, "LC_ALL": "C"}
        try:
            done = subprocess.run(
                [*self.cc.split(), *arguments],
                env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            )  # fmt: skip
        except OSError:
            what = "assembly" if language == "asm" else "C"
            raise NoCompiler(
                f"{what} needs a C compiler and {self.cc!r} can't be run: install the package gcc, or set CC"
            ) from None
        if done.returncode:
            raise AssemblyError(done.stderr.strip() or f"{self.cc} failed with status {done.returncode}")


def _store(elf: str, scratch: str, name: str, at: int) -> None:
    """Takes the ELF apart once; what is kept needs no ELF reader. The .json comes last: it vouches for the .bin."""
    import json

    data, symbols, notes = _take_apart(elf)
    assertions = {
        address: [line, _text(data, at, file), _text(data, at, text), kind]
        for address, line, file, text, kind in notes
    }
    with open(os.path.join(scratch, "bin"), "wb") as file:
        file.write(data)
    with open(os.path.join(scratch, "json"), "w", encoding="utf-8") as notes_file:
        entry = symbols.get("_start", at)
        json.dump({"at": at, "entry": entry, "symbols": symbols, "assertions": assertions}, notes_file)
    for suffix in ("bin", "json"):
        os.replace(os.path.join(scratch, suffix), f"{name}.{suffix}")


def _take_apart(path: str) -> tuple[bytes, dict[str, int], list[tuple[int, ...]]]:
    """(memory contents, symbols, the assertions' five words each)."""
    import struct

    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    with open(path, "rb") as file:
        elf = ELFFile(file)
        image = elf.get_section_by_name(".image")
        data = bytes(image.data()) if image is not None else b""
        table = elf.get_section_by_name(".symtab")
        symbols: dict[str, int] = {
            symbol.name: int(symbol["st_value"])
            for symbol in (table.iter_symbols() if isinstance(table, SymbolTableSection) else ())
            if symbol.name
            and symbol["st_info"]["type"] not in ("STT_SECTION", "STT_FILE")
            and isinstance(symbol["st_shndx"], int)
        }
        noted = elf.get_section_by_name(".kvmpy_assert")
        words = list(struct.iter_unpack("<5Q", noted.data())) if noted is not None else []
    return data, symbols, words


def _text(data: bytes, at: int, address: int) -> str:
    start = address - at
    return data[start : data.index(b"\0", start)].decode("utf-8", "replace")


def _read(name: str, language: str, source: str) -> Program:
    import json

    with open(f"{name}.json", encoding="utf-8") as file:
        kept: dict[str, Any] = json.load(file)
    with open(f"{name}.bin", "rb") as image:
        data = image.read()
    assertions = {int(address): Assertion(*note) for address, note in kept["assertions"].items()}
    return Program(
        data, kept["at"], kept["entry"],
        symbols=kept["symbols"], assertions=assertions, language=language, source=source, path=f"{name}.bin",
    )  # fmt: skip
