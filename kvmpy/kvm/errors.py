"""From a failed ioctl to one line: what, on which object, why, and what the kernel's documentation adds."""

from __future__ import annotations

from errno import EINVAL

from kvmpy.abi.errnos import name, remark
from kvmpy.errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy._native import CData
    from kvmpy.abi.ioctls import Ioctl


def failed(request: Ioctl, who: str, errno: int, detail: str = "") -> KvmError:
    """The error for ``request`` having given ``errno`` on the object that calls itself ``who`` ("vCPU 0").

    ``detail`` says what was asked ("slot 3, 0x1000 bytes at 0x0"); "" leaves it out.

    >>> str(failed(ioctls.KVM_INTERRUPT, "vCPU 0", 6))
    'KVM_INTERRUPT on vCPU 0: ENXIO: an interrupt controller in the kernel exists: raise a line …'
    """
    said = f"{request.name} on {who}"
    if detail:
        said += f" ({detail})"
    text = remark(request.name, errno)
    return KvmError(f"{said}: {name(errno)}: {text}", errno)


def refused(request: Ioctl, who: str, why: str) -> KvmError:
    """The error for an ioctl that isn't even tried, since the kernel would read or write beyond a buffer."""
    return KvmError(f"{request.name} on {who}: {why}", EINVAL)


def bad_sregs(request: Ioctl, who: str, sregs: CData) -> KvmError:
    """The error for a ``struct kvm_sregs *`` or ``kvm_sregs2 *`` with EINVAL: names the rule of the CPU that its
    values break, as far as it can be told."""
    from kvmpy.x86.explain import explain_sregs
    from kvmpy.x86.segments import DescriptorTable, Segment

    segments = {
        name: Segment(**{field: getattr(register, field) for field in Segment.__slots__})
        for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
        for register in [getattr(sregs, name)]
    }
    broken = explain_sregs(
        cr0=sregs.cr0,
        cr3=sregs.cr3,
        cr4=sregs.cr4,
        cr8=sregs.cr8,
        efer=sregs.efer,
        segments=segments,
        gdt=DescriptorTable(sregs.gdt.base, sregs.gdt.limit),
        idt=DescriptorTable(sregs.idt.base, sregs.idt.limit),
    )
    if not broken:
        return failed(request, who, EINVAL)
    return KvmError(f"{request.name} on {who}: EINVAL: {broken[0]}", EINVAL)
