"""Preparing: with an apt that is ours, so that nothing is fetched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hosts_helpers import bzimage, elf, module, read_cpio, vmlinux, xz

from scripts.hostlab import packages, prepare, stage_python
from scripts.hostlab.errors import HostsError

PACKAGE = "linux-image-9.9-amd64"
SCRIPTS = {
    "apt-cache": f"""
        case "$1 $2" in
        "depends linux-image-amd64") printf 'linux-image-amd64\\n  Depends: {PACKAGE}\\n' ;;
        "policy {PACKAGE}") printf '{PACKAGE}:\\n  Installed: (none)\\n  Candidate: 9.9.1-1\\n' ;;
        "policy nothing") printf 'nothing:\\n  Candidate: (none)\\n' ;;
        esac""",
    "apt-get": f'echo "$@" >> "$HOSTS_CALLS"; for last; do :; done; : > "{PACKAGE}_9.9.1-1_amd64.deb"',
    "dpkg-deb": 'mkdir -p "$3" && cp -r "$HOSTS_TREE/." "$3"',
}


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt with one kernel. Returns a file with a line for each thing it was asked to fetch."""
    programs, tree, calls = tmp_path / "bin", tmp_path / "tree", tmp_path / "calls"
    programs.mkdir()
    for name, text in SCRIPTS.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    (programs / "busybox").write_bytes(elf([(1, 0, b"static")]))
    (programs / "busybox").chmod(0o755)
    (tree / "boot").mkdir(parents=True)
    (tree / "boot" / "vmlinuz-9.9").write_bytes(bzimage(xz(vmlinux())))
    (tree / "lib" / "modules").mkdir(parents=True)
    for name in ("kvm-amd", "kvm-intel", "kvm", "virtio_pci", "9p", "9pnet_virtio", "overlay"):
        depends = "kvm" if name.startswith("kvm-") else ""
        (tree / "lib" / "modules" / f"{name}.ko").write_bytes(module(depends, signature=b"s" * 99))
    calls.touch()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOSTS_TREE", str(tree))
    monkeypatch.setenv("HOSTS_CALLS", str(calls))
    return calls


def quiet(_: str) -> None: ...


class TestKernel:
    def test_is_fetched_unpacked_and_kept(self, apt: Path, cache_of_its_own: Path) -> None:
        made = prepare.prepare_kernel(fresh=False, say=quiet)
        assert made.version == "9.9.1-1"
        assert made.vmlinux.read_bytes() == vmlinux()
        assert cache_of_its_own in made.vmlinux.parents
        found = read_cpio(made.initramfs.read_bytes())
        assert found["init"].mode & 0o111
        assert found["bin/sh"].data == b"busybox"
        assert found["modules/kvm-amd.order"].data == b"kvm\nkvm_amd\n"
        assert found["modules/kvm_amd.ko"].data == module("kvm")
        leftovers = [path.name for path in cache_of_its_own.iterdir() if not path.name.startswith("kernel-")]
        assert leftovers == []

    def test_a_second_time_nothing_is_fetched_or_made(self, apt: Path) -> None:
        first = prepare.prepare_kernel(fresh=False, say=quiet)
        before = first.initramfs.stat().st_mtime_ns
        said: list[str] = []
        assert prepare.prepare_kernel(fresh=False, say=said.append) == first
        assert prepare.prepare_kernel(fresh=True, say=said.append) == first  # the same version
        assert len(apt.read_text().splitlines()) == 1
        assert first.initramfs.stat().st_mtime_ns == before
        assert said == []

    def test_without_apt_what_is_there_is_used(self, apt: Path) -> None:
        made = prepare.prepare_kernel(fresh=False, say=quiet)
        break_program(apt, "apt-cache")
        break_program(apt, "apt-get")
        assert prepare.prepare_kernel(fresh=False, say=quiet) == made

    @pytest.mark.parametrize("program", ["apt-cache", "apt-get"])
    def test_without_apt_and_with_nothing_there_it_fails(self, apt: Path, program: str) -> None:
        break_program(apt, program)
        with pytest.raises(HostsError, match=rf"{program} .*: no network; as root: apt-get update"):
            prepare.prepare_kernel(fresh=False, say=quiet)

    def test_an_interrupted_preparation_is_done_again(self, apt: Path) -> None:
        made = prepare.prepare_kernel(fresh=False, say=quiet)
        made.vmlinux.unlink()  # it is written last
        assert prepare.prepare_kernel(fresh=False, say=quiet).vmlinux.exists()

    def test_another_busybox_makes_another_archive(self, apt: Path) -> None:
        first = prepare.prepare_kernel(fresh=False, say=quiet)
        (apt.parent / "bin" / "busybox").write_bytes(elf([(1, 0, b"another")]))
        assert prepare.prepare_kernel(fresh=False, say=quiet).initramfs != first.initramfs

    def test_a_busybox_with_shared_libraries_is_refused(self, apt: Path) -> None:
        (apt.parent / "bin" / "busybox").write_bytes(elf([(3, 0, b"/lib/ld.so")]))
        with pytest.raises(HostsError, match=r"needs shared libraries.*busybox-static"):
            prepare.prepare_kernel(fresh=False, say=quiet)


def break_program(apt: Path, name: str) -> None:
    (apt.parent / "bin" / name).write_text("#!/bin/sh\necho W: first >&2\necho no network >&2\nexit 100\n")


def test_what_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = {"sh": "dash", "no-such-program": "b-package", "nor-this": "a-package", "or-this": "a-package"}
    assert packages.missing_tools(tools) == ["a-package", "b-package"]
    with pytest.raises(HostsError, match=r"as root: apt-get install a-package b-package$"):
        packages.require(tools)
    packages.require({"sh": "dash"})


def test_a_package_without_a_version(apt: Path) -> None:
    with pytest.raises(HostsError, match="no version of nothing"):
        packages.candidate("nothing")


class TestPython:
    def test_a_file_is_brought_compiled_and_can_be_imported(self, tmp_path: Path) -> None:
        source = tmp_path / "lib" / "hosts_sample.py"
        source.parent.mkdir()
        source.write_text("VALUE = 42\n")
        root = tmp_path / "root"
        stage_python.bring(source, root)
        place = stage_python.below(root, source.parent)
        assert [file.name for file in place.iterdir()] == ["hosts_sample.pyc"]
        code = (
            f"import sys; sys.path.insert(0, {str(place)!r}); import hosts_sample; print(hosts_sample.VALUE)"
        )
        assert subprocess.check_output([sys.executable, "-c", code], text=True) == "42\n"

    def test_one_that_does_not_compile_is_brought_as_it_is(self, tmp_path: Path) -> None:
        source = tmp_path / "template.py"
        source.write_text("def {name}(:\n")
        stage_python.bring(source, tmp_path / "root")
        assert stage_python.below(tmp_path / "root", source).read_text() == source.read_text()

    def test_what_of_the_library_is_left_out(self, tmp_path: Path) -> None:
        for name in (
            "a.py",
            "test/b.py",
            "json/tests/c.py",
            "json/d.py",
            "__pycache__/e.pyc",
            "config-3/f",
            "libx.a",
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        found = [str(path.relative_to(tmp_path)) for path in stage_python.library_files(tmp_path)]
        assert found == ["a.py", "json/d.py"]

    def test_the_needed_packages_are_known_by_the_project(self, root: Path) -> None:
        names = {dist.metadata["Name"].lower() for dist in stage_python.distributions(root)}
        assert {"cffi", "click", "rich"} <= names
        assert not names & {"pygments", "pytest"}

    def test_an_environment_that_lacks_one_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["no-such-package>=1"]\n')
        with pytest.raises(SystemExit, match="no-such-package isn't installed"):
            stage_python.distributions(tmp_path)

    def test_the_translate_engine_comes_along_where_it_is_installed(self, tmp_path: Path) -> None:
        for package, there in (("pytest", True), ("no-such-package", False)):
            (tmp_path / "pyproject.toml").write_text(
                f'[project]\ndependencies = []\noptional-dependencies.translate = ["{package}>=1"]\n'
            )
            names = {dist.metadata["Name"] for dist in stage_python.distributions(tmp_path)}
            assert (package in names) is there

    def test_libraries_come_along(self, tmp_path: Path) -> None:
        program = Path(sys.executable).resolve()
        stage_python.copy(program, tmp_path)
        names = {path.name for path in stage_python.shared_libraries(tmp_path)}
        assert "libc.so.6" in names
        assert any(name.startswith("ld-linux") for name in names)
