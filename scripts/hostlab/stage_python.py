"""Puts a Python fit for a small, slow machine into a directory; run by the Python to be copied.

Everything lies where it lies here, so nothing has to be told where things are. The standard library without
its tests and graphics, and the packages that kvmpy needs, are brought as compiled files only; libraries
without their symbols.

    python stage_python.py identity PROJECT         # print what the copy depends on, to see if an old one
    will do python stage_python.py stage PROJECT DIRECTORY
"""

from __future__ import annotations

import importlib.metadata as metadata
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

# Of the standard library: large, and of no use without a screen, a user or a compiler.
LEFT_OUT = {
    *(
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "ensurepip",
        "lib2to3",
        "pydoc_data",
        "site-packages",
    ),
    *(
        "dist-packages",
        "__pycache__",
        "distutils",
        "venv",
        "__phello__",
        "dbm",
        "sqlite3",
        "curses",
        "turtle.py",
    ),
}
# Of what kvmpy's packages ask for: rich loads these only to colour source and to set Markdown.
PACKAGES_LEFT_OUT = {"pygments", "markdown-it-py", "mdurl"}


def main(words: list[str]) -> None:
    project = Path(words[1])
    if words[0] == "identity":
        print("\n".join(identity(project)))
    else:
        stage(project, Path(words[2]))


def identity(project: Path) -> Iterator[str]:
    """What the copy is made from: this script, the interpreter, the packages."""
    yield Path(__file__).read_text()
    yield f"{sys.version} {sys.prefix} {sys.base_prefix}"
    for dist in distributions(project):
        yield f"{dist.metadata['Name']} {dist.version} {dist.locate_file('')}"


def distributions(project: Path) -> list[metadata.Distribution]:
    """kvmpy's run-time dependencies as installed, and theirs; those of the translate engine if they are there."""
    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    wanted: list[str] = [*about["dependencies"]]
    extra: list[str] = about.get("optional-dependencies", {}).get("translate", [])
    wanted += [text for text in extra if is_installed(name_of(text))]
    found: dict[str, metadata.Distribution] = {}
    while wanted:
        requirement = wanted.pop()
        name = name_of(requirement)
        if name in found or name in PACKAGES_LEFT_OUT or "extra ==" in requirement:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if ";" not in requirement:  # for another Python or system, then
                raise SystemExit(
                    f"{name} isn't installed in {sys.prefix}: pip install -e {project}"
                ) from None
            continue
        wanted += found[name].requires or []
    return [found[name] for name in sorted(found)]


def name_of(requirement: str) -> str:
    """The package that a requirement is about: "cffi>=1.17" is about cffi."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def is_installed(name: str) -> bool:
    return any(True for _ in metadata.Distribution.discover(name=name))


def stage(project: Path, root: Path) -> None:
    """Put it all below ``root``."""
    interpreter = Path(sys.executable).resolve()
    copy(interpreter, root)
    link(Path(sys.executable), interpreter, root)
    for marker in (Path(sys.prefix) / "pyvenv.cfg", Path(sys.base_prefix) / "pyvenv.cfg"):
        if marker.exists():
            copy(marker, root)
    for file in library_files(Path(sysconfig.get_path("stdlib"))):
        bring(file, root)
    for dist in distributions(project):
        for entry in dist.files or []:
            file = Path(str(dist.locate_file(entry)))
            if file.suffix not in (".a", ".pyc") and ".." not in entry.parts and file.is_file():
                bring(file, root)
    for needed in shared_libraries(root):
        copy(needed, root)
    strip(root)


def library_files(top: Path) -> Iterator[Path]:
    for entry in sorted(top.iterdir()):
        if entry.name in LEFT_OUT or entry.name.startswith("config-") or entry.suffix in (".a", ".pyc"):
            continue
        if entry.is_dir():
            yield from library_files(entry)
        else:
            yield entry


def bring(file: Path, root: Path) -> None:
    """A Python file compiled, beside where its source would be; another as it is."""
    if file.suffix != ".py":
        copy(file, root)
        return
    target = below(root, file).with_suffix(".pyc")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        py_compile.compile(str(file), str(target), doraise=True)
    except py_compile.PyCompileError:
        copy(file, root)  # a template, or for another version


def copy(file: Path, root: Path) -> None:
    target = below(root, file)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def link(name: Path, to: Path, root: Path) -> None:
    """The name an interpreter is called by decides which environment it is in."""
    target = below(root, name)
    if name != to and not target.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(to)


def shared_libraries(root: Path) -> set[Path]:
    """Libraries that the programs and modules below ``root`` are linked with, and the loader itself."""
    found: set[Path] = set()
    for file in elf_files(root):
        original = Path("/") / file.relative_to(root)
        output = subprocess.run(["ldd", str(original)], capture_output=True, text=True, check=False).stdout
        found.update(Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+)", output, re.MULTILINE))
    return found


def elf_files(root: Path) -> Iterator[Path]:
    for file in sorted(root.rglob("*")):
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as stream:
                if stream.read(4) == b"\x7fELF":
                    yield file


def strip(root: Path) -> None:
    """Without debug information: megabytes that would have to be read into the emulator for nothing."""
    files = [str(file) for file in elf_files(root)]
    if files and shutil.which("strip"):
        subprocess.run(["strip", "--strip-unneeded", *files], capture_output=True, check=False)


def below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


if __name__ == "__main__":
    main(sys.argv[1:])
