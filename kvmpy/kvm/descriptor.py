"""What the objects behind a file descriptor of KVM share: owning it, and issuing its ioctls."""

from __future__ import annotations

import os

from kvmpy._native import ffi, lib
from kvmpy.abi import ioctls
from kvmpy.kvm.errors import failed
from kvmpy.owned import Owned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy._native import CData, CType
    from kvmpy.abi.ioctls import Ioctl

_ioctl = lib.kvmpy_ioctl
_ioctl_value = lib.kvmpy_ioctl_value
_typeof = ffi.typeof
new = ffi.new
NULL = ffi.NULL


class Descriptor(Owned):
    """Owns one file descriptor. A context manager; closing twice is fine; forgetting it is a ResourceWarning.

    Attributes: ``fd`` (-1 once closed) and ``label``, what error messages call it ("vCPU 0").
    """

    __slots__ = ("__weakref__", "fd", "label")

    def __init__(self, fd: int, label: str) -> None:
        self.fd = fd
        self.label = label

    def close(self) -> None:
        """Close the file descriptor. The kernel frees a VM with the last fd of it and of its vCPUs and devices."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def closed(self) -> bool:
        return self.fd < 0

    def fileno(self) -> int:
        """The file descriptor, for ``select`` and the like; -1 once closed."""
        return self.fd

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label}{' (closed)' if self.closed else f' fd {self.fd}'}>"

    # The four ways to issue an ioctl. They don't check what kind of fd this is: the kernel does (ENOTTY).

    def call(self, request: Ioctl, argument: CData = NULL, detail: str = "") -> int:
        """Issue an ioctl with a pointer; its value (>= 0). ``detail`` says in an error what was asked.

        Interrupted calls are repeated (but not KVM_RUN). Raises KvmError.
        """
        result = _ioctl(self.fd, request.number, argument)
        if result < 0:
            raise failed(request, self.label, -result, detail)
        return result

    def call_value(self, request: Ioctl, value: int = 0, detail: str = "") -> int:
        """Issue an ioctl with an integer; its value (>= 0). Raises KvmError."""
        result = _ioctl_value(self.fd, request.number, value)
        if result < 0:
            raise failed(request, self.label, -result, detail)
        return result

    def get(self, request: Ioctl, into: CData | None) -> CData:
        """Issue an ioctl that fills a structure: ``into``, or a new one. Returns it.

        Raises KvmError; TypeError if ``into`` isn't a pointer to the ioctl's structure.
        """
        if into is None:
            into = new(pointer(request))
        else:
            check(request, into)
        self.call(request, into)
        return into

    def put(self, request: Ioctl, structure: CData, detail: str = "") -> int:
        """Issue an ioctl that reads a structure. Raises KvmError; TypeError for another structure's pointer."""
        check(request, structure)
        return self.call(request, structure, detail)

    # What every kind of fd answers.

    def _device_attr(
        self, request: Ioctl, group: int, attribute: int, address: CData | int, flags: int
    ) -> int:
        where = address if isinstance(address, int) else int(ffi.cast("uintptr_t", address))
        argument = new("struct kvm_device_attr *", (flags, group, attribute, where))
        return self.call(request, argument, f"group {group}, attribute {attribute}")

    def has_device_attr(self, group: int, attribute: int, *, flags: int = 0) -> bool:
        """Does the object have this attribute? Never raises for one that is unknown (KVM_HAS_DEVICE_ATTR)."""
        argument = new("struct kvm_device_attr *", (flags, group, attribute, 0))
        result = _ioctl(self.fd, ioctls.KVM_HAS_DEVICE_ATTR.number, argument)
        return result == 0

    def get_device_attr(self, group: int, attribute: int, address: CData | int, *, flags: int = 0) -> None:
        """Read an attribute to ``address``, a C pointer to what the attribute is (KVM_GET_DEVICE_ATTR)."""
        self._device_attr(ioctls.KVM_GET_DEVICE_ATTR, group, attribute, address, flags)

    def set_device_attr(self, group: int, attribute: int, address: CData | int, *, flags: int = 0) -> None:
        """Write an attribute from ``address``, a C pointer to what the attribute is (KVM_SET_DEVICE_ATTR)."""
        self._device_attr(ioctls.KVM_SET_DEVICE_ATTR, group, attribute, address, flags)


_pointers: dict[str, CType] = {}


def pointer(request: Ioctl) -> CType:
    """cffi's type of a pointer to the structure that ``request`` takes."""
    try:
        return _pointers[request.argument]
    except KeyError:
        found = _pointers[request.argument] = _typeof(request.argument + " *")
        return found


def check(request: Ioctl, structure: CData) -> None:
    """Raise TypeError if ``structure`` isn't a pointer to what ``request`` takes: the kernel would read or write
    beyond it."""
    if _typeof(structure) is not pointer(request):
        raise TypeError(f"{request.name} takes a {request.argument} *, not {_typeof(structure).cname}")
