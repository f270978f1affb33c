"""From a failed ioctl to one line that says what, on which object, why, and what the kernel's documentation adds."""

from __future__ import annotations

from kvmpy.abi.errnos import name, remark
from kvmpy.errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
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
