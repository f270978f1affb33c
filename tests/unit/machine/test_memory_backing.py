"""What guest memory is made of on the host."""

from __future__ import annotations

import gc
import mmap
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmpy.errors import GuestMemoryError, UsageError
from kvmpy.machine import backing
from kvmpy.machine.backing import HUGE_PAGE, Backing, anonymous, file, memfd

PAGE = 4096
Make = Callable[..., Backing]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()


def mapped(address: int) -> bool:
    spans = [line.split()[0].split("-") for line in mappings()]
    return any(int(first, 16) <= address < int(last, 16) for first, last in spans)


@pytest.mark.parametrize("make", [anonymous, memfd])
def test_fresh_memory_is_zero_and_writable(make: Make) -> None:
    with make(1 << 20) as memory:
        assert memory.view.nbytes == memory.size == 1 << 20
        assert bytes(memory.view[:4096]) == bytes(4096)
        memory.view[-1] = 7
        assert memory.slice(memory.size - 2, 2).tolist() == [0, 7]
        assert mapped(memory.address)


def test_far_more_than_the_host_has_can_be_mapped() -> None:
    if "2" in Path("/proc/sys/vm/overcommit_memory").read_text():
        pytest.skip("/proc/sys/vm/overcommit_memory is 2: the host reserves memory when it is mapped")
    with anonymous(1 << 42) as memory:
        memory.view[1 << 41] = 1


def test_what_the_host_refuses() -> None:
    with pytest.raises(
        GuestMemoryError, match=r"guest memory: the host can't map 4096 TiB: Cannot allocate memory"
    ):
        anonymous(1 << 52)


@pytest.mark.parametrize("size", [0, -4096, 100, 4097, 1 << 53])
@pytest.mark.parametrize("make", [anonymous, memfd])
def test_bad_sizes(make: Make, size: int) -> None:
    with pytest.raises(UsageError, match="guest memory"):
        make(size)


def test_unknown_kind_of_huge_page() -> None:
    with pytest.raises(UsageError, match="huge pages are 'thp', 'hugetlb' or None, not '1G'"):
        anonymous(4096, huge="1G")


def test_memfd_is_shared_through_its_descriptor() -> None:
    with memfd(8192, name="kvmpy-test") as one:
        assert any("kvmpy-test" in line for line in mappings())
        with file(one.fd, shared=True) as other, file(one.fd, offset=4096) as own:
            one.view[4096:4100] = b"both"
            assert bytes(other.view[4096:4100]) == b"both"
            own.view[0] = ord("B")
            assert bytes(own.view[:4]) == b"Both"
            assert bytes(one.view[4096:4100]) == b"both"


def test_private_file_keeps_writes_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"A" * 4096 + b"B" * 4096)
    path.chmod(0o400)
    with file(path, offset=4096) as memory:
        assert memory.size == 4096
        memory.view[:4] = b"mine"
        assert bytes(memory.view[:5]) == b"mineB"
    assert path.read_bytes() == b"A" * 4096 + b"B" * 4096


def test_shared_file_takes_the_writes(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    with file(path, 8192, shared=True, create=True) as memory:
        memory.view[8191] = 9
    assert path.read_bytes() == bytes(8191) + b"\x09"
    with file(path, 16384, shared=True, create=True) as memory:
        assert memory.view[8191] == 9
    assert path.stat().st_size == 16384


def test_readonly_file_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "rom"
    path.write_bytes(b"R" * 4096)
    with file(path, readonly=True) as memory:
        assert memory.view.readonly
        assert not memory.writable
        with pytest.raises(TypeError):
            memory.view[0] = 1


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(8192))
    bad: list[tuple[type[Exception], str, dict[str, object]]] = [
        (UsageError, "offset 100 is not a multiple of the page size 4096", {"offset": 100}),
        (UsageError, "offset -4096 is not", {"offset": -4096}),
        (UsageError, "0 bytes is too small", {"size": 0}),
        (UsageError, "0 bytes is too small", {"offset": 8192}),
        (UsageError, "create needs a size, shared=True and not readonly", {"create": True}),
        (
            GuestMemoryError,
            "has 8192 bytes, too short for 8192 bytes at offset 4096",
            {"size": 8192, "offset": 4096},
        ),
    ]
    before = descriptors()
    for kind, message, options in bad:
        with pytest.raises(kind, match=message) as caught:
            file(path, **options)  # type: ignore[arg-type]
        assert str(path) in str(caught.value)
    path.write_bytes(bytes(5000))
    with pytest.raises(UsageError, match="5000 bytes is not a multiple"):
        file(path)
    assert descriptors() == before


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, message in [
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path, "not a regular file"),
        (tmp_path / "fifo", "not a regular file"),
        ("/dev/null", "not a regular file"),
        ("a\0b", "null"),
    ]:
        with pytest.raises(GuestMemoryError, match=message):
            file(path)
    with pytest.raises(GuestMemoryError, match="Bad file descriptor"):
        file(99999)


def test_closing_unmaps_and_twice_is_fine() -> None:
    memory = memfd(1 << 20)
    address, before = memory.address, descriptors()
    memory.close()
    memory.close()
    assert not mapped(address)
    assert descriptors() < before
    assert memory.closed
    assert memory.fd == -1
    with pytest.raises(GuestMemoryError, match=r"memfd, 1 MiB\) is closed"):
        _ = memory.view


def test_a_view_keeps_the_mapping() -> None:
    memory = anonymous(1 << 20)
    whole = memory.view
    part = whole[4096:4100]
    memory.close()
    del whole
    part[:] = b"live"
    assert bytes(part) == b"live"
    assert mapped(memory.address)
    del part
    memory.map = None  # type: ignore[assignment]
    assert not mapped(memory.address)


def test_forgotten_memory_warns_and_is_unmapped() -> None:
    memory = memfd(1 << 20)
    address, fd = memory.address, memory.fd
    with pytest.warns(ResourceWarning, match="<Backing memfd 1 MiB at 0x"):
        del memory
        gc.collect()
    assert not mapped(address)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_populate_keeps_contents() -> None:
    with anonymous(64 * 4096) as memory:
        memory.view[PAGE] = 5
        memory.populate()
        assert memory.view[PAGE] == 5
        assert resident(memory) == memory.size


def test_populate_on_kernels_without_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backing, "_MADV_POPULATE_WRITE", 9999)
    with anonymous(64 * 4096) as memory:
        memory.view[PAGE] = 5
        memory.populate()
        assert memory.view[PAGE] == 5
        assert resident(memory) == memory.size


def resident(memory: Backing) -> int:
    """Bytes, from the page tables: smaps may show it together with a mapping that lies beside it."""
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(memory.address // PAGE * 8)
        entries = pagemap.read(memory.size // PAGE * 8)
    return sum(entry >> 7 for entry in entries[7::8]) * PAGE  # bit 63: present


def from_smaps(memory: Backing, field: str) -> int:
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{memory.address:x}-"))
    return next(int(line.split()[1]) << 10 for line in lines[start:] if line.startswith(f"{field}:"))


def test_transparent_huge_pages_start_where_the_guest_has_them() -> None:
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("/sys/kernel/mm/transparent_hugepage/enabled is never")
    with anonymous(8 << 20, huge="thp") as memory, anonymous(8 << 20, huge="thp", phase=0x5000) as odd:
        assert memory.kind == "anonymous+thp"
        assert memory.address % HUGE_PAGE == 0
        assert odd.address % HUGE_PAGE == 0x5000
        memory.view[-1] = 1
        assert memory.view.nbytes == 8 << 20


@pytest.mark.parametrize(("switch", "make"), [("enabled", anonymous), ("shmem_enabled", memfd)])
def test_no_transparent_huge_pages_is_a_warning(
    switch: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / switch).write_text("always madvise [never]\n")
    monkeypatch.setattr(backing, "_THP", f"{tmp_path}/")
    with pytest.warns(RuntimeWarning, match=f"no transparent huge pages: {tmp_path}/{switch} says never"):
        make(4 << 20, huge="thp").close()
    (tmp_path / switch).write_text("[madvise] never\n")
    with pytest.warns(RuntimeWarning, match="64 KiB is less than one of them"):
        make(65536, huge="thp").close()
    (tmp_path / switch).unlink()
    with pytest.warns(RuntimeWarning, match=f"{switch}: No such file"):
        make(4 << 20, huge="thp").close()


def free_huge_pages() -> int:
    path = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    return int(path.read_text()) if path.exists() else 0


@pytest.mark.parametrize("make", [anonymous, memfd])
def test_hugetlb(make: Make) -> None:
    if free_huge_pages() < 4:
        pytest.skip("fewer than 4 free 2 MiB pages in /sys/kernel/mm/hugepages")
    with make(8 << 20, huge="hugetlb") as memory:
        assert memory.kind == f"{make.__name__}+hugetlb"
        assert memory.address % HUGE_PAGE == 0
        memory.view[-1] = 1
        assert from_smaps(memory, "KernelPageSize") == HUGE_PAGE


@pytest.mark.parametrize("make", [anonymous, memfd])
def test_hugetlb_falls_back_with_a_warning(make: Make) -> None:
    size = (free_huge_pages() + 8) * HUGE_PAGE
    before = descriptors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with make(size, huge="hugetlb") as memory:
            memory.view[-1] = 1
            assert "hugetlb" not in memory.kind
    assert "guest memory gets no hugetlb pages (" in str(caught[0].message)
    assert "/proc/sys/vm/nr_hugepages" in str(caught[0].message)
    assert descriptors() == before


@pytest.mark.parametrize("make", [anonymous, memfd])
def test_hugetlb_of_an_odd_size_falls_back(make: Make) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(65536, huge="hugetlb").close()
    assert "no hugetlb pages (64 KiB is not a multiple of 2 MiB" in str(caught[0].message)


def test_zapping_constants() -> None:
    with anonymous(4096) as memory, memfd(4096) as shared:
        assert memory.zap == mmap.MADV_DONTNEED
        assert shared.zap == mmap.MADV_REMOVE
