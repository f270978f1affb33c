"""Failed calls in words: as kvmpy.kvm has them, with KVM's names."""

from __future__ import annotations

import os

from kvmpy.errors import KvmError


def check(result: int, call: str, who: str, detail: str = "") -> None:
    """KvmError for a negative errno: ``KVM_SET_SREGS on vCPU 0: EINVAL``, with ``detail`` behind it."""
    if result < 0:
        import errno

        name = errno.errorcode.get(-result, str(-result))
        what = detail or os.strerror(-result)
        raise KvmError(f"{call} on {who} (translate engine): {name}: {what}", -result)
