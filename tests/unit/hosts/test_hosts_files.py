"""What a host is made of, file by file: cpio archives, kernels, modules, disk images."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hosts_helpers import bzimage, elf, module, note, read_cpio, vmlinux, xz
from hypothesis import given
from hypothesis import strategies as st

from scripts.hostlab import cpio, disk, kernel, modules
from scripts.hostlab import elf as elf_reader
from scripts.hostlab.errors import HostsError

NAMES = st.from_regex(r"(/[a-c]{1,2}){1,3}", fullmatch=True)


class TestCpio:
    def test_directories_above_a_file_come_before_it_and_once(self) -> None:
        archive = cpio.Archive()
        archive.file("/usr/lib/a", b"1")
        archive.file("usr/lib/b", b"2")
        archive.directory("/usr")
        names = list(read_cpio(archive.finish()))
        assert names == ["usr", "usr/lib", "usr/lib/a", "usr/lib/b"]

    def test_modes_links_and_contents(self) -> None:
        archive = cpio.Archive()
        archive.file("/init", b"#!/bin/sh\n", 0o755)
        archive.link("/bin/sh", "busybox")
        found = read_cpio(archive.finish())
        assert (found["init"].mode, found["init"].data) == (0o100755, b"#!/bin/sh\n")
        assert (found["bin/sh"].kind, found["bin/sh"].data) == ("link", b"busybox")
        assert (found["bin"].kind, found["bin"].mode & 0o777) == ("directory", 0o755)

    def test_every_entry_is_a_file_of_its_own(self) -> None:
        archive = cpio.Archive()
        for number in range(10):
            archive.file(f"/f{number}", b"same")
        inodes = [entry.inode for entry in read_cpio(archive.finish()).values()]
        assert len(set(inodes)) == 10

    def test_a_path_twice_is_refused(self) -> None:
        archive = cpio.Archive()
        archive.file("/a", b"")
        with pytest.raises(ValueError, match="/a is in the archive already"):
            archive.link("a", "b")

    @given(st.dictionaries(NAMES, st.binary(max_size=9), max_size=4), st.binary(max_size=5))
    def test_archives_follow_one_another(self, files: dict[str, bytes], last: bytes) -> None:
        first, second = cpio.Archive(), cpio.Archive()
        wanted = {
            name: data for name, data in files.items() if not any(f"{name}/" in other for other in files)
        }
        for name, data in wanted.items():
            first.file(name, data)
        second.file("/last", last)
        found = read_cpio(first.finish() + second.finish())
        contents = {f"/{name}": entry.data for name, entry in found.items() if entry.kind == "file"}
        assert contents == {**wanted, "/last": last}

    def test_a_tree_with_its_links_and_programs(self, tmp_path: Path) -> None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "tool").write_bytes(b"x")
        (tmp_path / "bin" / "tool").chmod(0o700)
        (tmp_path / "bin" / "alias").symlink_to("tool")
        (tmp_path / "text").write_bytes(b"y")
        archive = cpio.Archive()
        archive.tree(tmp_path, "/opt")
        found = read_cpio(archive.finish())
        assert found["opt/bin/tool"].mode & 0o777 == 0o755
        assert found["opt/text"].mode & 0o777 == 0o644
        assert found["opt/bin/alias"].data == b"tool"

    @pytest.mark.skipif(not shutil.which("cpio"), reason="no program cpio here")
    def test_cpio_itself_reads_it(self, tmp_path: Path) -> None:
        archive = cpio.Archive()
        archive.file("/dir/odd", b"123", 0o755)
        archive.link("/ln", "dir/odd")
        subprocess.run(["cpio", "-i", "--quiet"], input=archive.finish(), cwd=tmp_path, check=True)
        assert (tmp_path / "ln").read_bytes() == b"123"


class TestElf:
    def test_notes_of_any_length(self) -> None:
        data = elf([(4, 0, note(b"A", 1, b"x") + note(b"LONG", 2, b"12345678")), (1, 0, b"no notes here")])
        assert [(n.owner, n.type, n.data) for n in elf_reader.notes(data)] == [
            (b"A", 1, b"x"),
            (b"LONG", 2, b"12345678"),
        ]

    def test_a_section_is_found_by_its_whole_name(self) -> None:
        data = elf(sections=[(b".modinfo.more", b"wrong"), (b".modinfo", b"right")])
        assert elf_reader.section(data, b".modinfo") == b"right"
        assert elf_reader.section(data, b".mod") == b""

    @pytest.mark.parametrize("data", [b"", b"\x7fELF\x01" + bytes(100), b"MZ" + bytes(100)])
    def test_what_is_no_64_bit_elf_is_refused(self, data: bytes) -> None:
        with pytest.raises(ValueError, match="not a 64-bit ELF file"):
            elf_reader.segments(data)

    def test_a_truncated_file_is_refused(self) -> None:
        with pytest.raises(ValueError, match="truncated"):
            elf_reader.section(vmlinux()[:-70], b".text")


class TestKernel:
    @pytest.mark.parametrize("sectors", [0, 1, 27])
    def test_unpacks_xz_with_its_size_behind(self, sectors: int) -> None:
        image = bzimage(xz(b"kernel" * 1000), sectors or 4)
        if not sectors:  # 0 stands for 4
            image = image[:0x1F1] + b"\0" + image[0x1F2:]
        assert kernel.unpack(image) == b"kernel" * 1000

    def test_unpacks_gzip(self) -> None:
        data = b"kernel" * 1000
        assert kernel.unpack(bzimage(gzip.compress(data) + struct.pack("<I", len(data)))) == data

    def test_says_what_it_cannot_unpack(self) -> None:
        with pytest.raises(HostsError, match=r"28 b5 2f fd .*only xz and gzip"):
            kernel.unpack(bzimage(b"\x28\xb5\x2f\xfd0000"))
        with pytest.raises(HostsError, match="no bzImage"):
            kernel.unpack(b"MZ" + bytes(2000))

    def test_flattens_with_gaps_and_finds_the_entry(self) -> None:
        image = kernel.flatten(vmlinux(entry=0x123_4560, base=0x20_0000))
        assert (image.base, image.entry) == (0x20_0000, 0x123_4560)
        assert image.data == b"text".ljust(0x2000, b"\0") + b"data"

    def test_a_kernel_without_pvh_is_refused(self) -> None:
        with pytest.raises(HostsError, match=r"no PVH entry.*CONFIG_PVH"):
            kernel.flatten(
                elf([(1, 0x100, b"x"), (4, 0, note(b"Xen", 17, bytes(8)) + note(b"XEN", 18, bytes(8)))])
            )


class TestModules:
    def test_a_signature_is_taken_off(self) -> None:
        assert modules.without_signature(module(signature=b"s" * 333)) == module()
        assert modules.without_signature(module()) == module()

    def test_a_signature_longer_than_the_file_is_refused(self) -> None:
        data = b"x" + struct.pack(">8xI", 500) + b"~Module signature appended~\n"
        with pytest.raises(ValueError, match="claims 500 bytes, the file has 1"):
            modules.without_signature(data)

    def test_what_a_module_depends_on(self) -> None:
        assert modules.depends(module("kvm,cc-p")) == ["kvm", "cc_p"]
        assert modules.depends(module("")) == []
        assert modules.depends(module(None)) == []

    def test_each_comes_after_what_it_needs_and_once(self) -> None:
        needs = {"top": ["left", "right"], "left": ["base"], "right": ["base"], "base": [], "also": ["right"]}
        order = modules.load_order(["top", "also"], needs.__getitem__)
        assert sorted(order) == sorted(needs)
        assert all(order.index(other) < order.index(name) for name in needs for other in needs[name])

    def test_order_and_contents_from_a_package(self, tmp_path: Path) -> None:
        deep = tmp_path / "kernel" / "x"
        deep.mkdir(parents=True)
        for name, depends in {"kvm-amd": "kvm,ccp", "kvm": "irqbypass", "ccp": "", "irqbypass": ""}.items():
            (deep / f"{name}.ko").write_bytes(module(depends, signature=b"sign"))
        source = modules.Modules(tmp_path)
        assert source.order("kvm-amd") == ["irqbypass", "kvm", "ccp", "kvm_amd"]
        assert source.read("kvm_amd") == module("kvm,ccp")
        with pytest.raises(HostsError, match="no module kvm_intel"):
            source.order("kvm-intel")


class TestDisk:
    IMAGE = kernel.Image(0x100_0000, b"K" * 1000 + bytes(3000), 0x123_4567)

    def pieces(self, data: bytes) -> list[tuple[int, int, int]]:
        found = []
        while True:
            piece = struct.unpack_from("<III", data, 0x108 + 12 * len(found))
            if not piece[1]:
                return found
            found.append(piece)

    def test_the_boot_sector_finds_every_piece(self) -> None:
        made = disk.build(b"\xfa" * 200, self.IMAGE, b"I" * 700, "console=x", memory=512 << 20)
        assert made.data[510:512] == b"\x55\xaa"
        assert len(made.data) == made.cylinders * 16 * 63 * 512
        entry, info_at = struct.unpack_from("<II", made.data, 0x100)
        assert entry == 0x123_4567
        memory = {
            address: made.data[sector * 512 : (sector + count) * 512]
            for sector, count, address in self.pieces(made.data)
        }
        assert memory[0x100_0000] == b"K" * 1000 + bytes(24)
        (modules_at,) = struct.unpack_from("<Q", memory[info_at], 16)
        initrd_at, size = struct.unpack_from("<QQ", memory[info_at], modules_at - info_at)
        assert memory[initrd_at][:size] == b"I" * 700
        assert initrd_at % 4096 == 0
        assert initrd_at >= 0x100_0000 + 4000

    def test_the_start_info_says_what_there_is(self) -> None:
        page = disk.start_info("a=b c", (0x500_0000, 77), memory=256 << 20)
        fields = struct.unpack_from("<IIIIQQQQII", page)
        assert fields[:4] == (0x336EC578, 1, 0, 1)
        base = fields[4] - 0x100
        assert page[fields[5] - base :].startswith(b"a=b c\0")
        entries = [struct.unpack_from("<QQI", page, fields[7] - base + 24 * n) for n in range(fields[8])]
        assert sum(size for _, size, kind in entries if kind == 1) > 250 << 20
        assert all(address + size <= 256 << 20 for address, size, kind in entries if kind == 1)
        for (first, size, _), (second, _, _) in pairwise(entries):
            assert first + size <= second

    def test_too_much_for_the_memory_is_refused(self) -> None:
        with pytest.raises(HostsError, match="the host has 128: give it more memory"):
            disk.build(b"", self.IMAGE, bytes(60 << 20), "", memory=128 << 20)

    def test_a_command_line_too_long_is_refused(self) -> None:
        assert disk.start_info("x" * 3071, (0, 0), 1 << 28)
        with pytest.raises(HostsError, match="3073 bytes: 3072 fit"):
            disk.start_info("x" * 3072, (0, 0), 1 << 28)

    @pytest.mark.skipif(not shutil.which("as"), reason="no assembler here")
    def test_the_boot_sector_can_be_assembled_and_leaves_room_for_the_list(self) -> None:
        code = disk.assemble()
        assert code[0] == 0xFA  # cli
        assert 0x100 < len(code) < 0x110
        assert code[0x100:] == bytes(len(code) - 0x100)
