"""Every error kvmpy raises on purpose: one line that names the thing, the value, the limit and the remedy."""

from __future__ import annotations


class KvmpyError(Exception):
    """Base of all errors raised by kvmpy; ``str()`` is one line fit for a user's terminal."""


class UsageError(KvmpyError):
    """An argument that can't be right: a negative memory size, 5000 vCPUs, an unknown engine."""


class ImageError(KvmpyError):
    """A guest image that can't be loaded: damaged, too large, for another machine."""


class GuestMemoryError(KvmpyError):
    """A guest physical address outside the memory slots, or memory the host can't provide."""


class BusError(KvmpyError):
    """A port or MMIO range that can't be attached, or (strict) an access that nobody owns."""


class DeviceError(KvmpyError):
    """A device set up, driven or restored in a way its data sheet doesn't allow."""


class EngineError(KvmpyError):
    """No engine can run the machine here; the message says why and what would help."""


class KvmError(KvmpyError):
    """A KVM ioctl failed; ``errno`` holds the kernel's number."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno
