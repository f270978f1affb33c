"""What a test of a guest fails with, besides the assertions in the test itself."""

from __future__ import annotations

from kvmpy.errors import KvmpyError


class GuestHang(KvmpyError):
    """The guest was still running when the test's time was up."""


class GuestAssertion(KvmpyError):
    """An ``ASSERT`` in the guest didn't hold."""


class AssemblyError(KvmpyError):
    """Assembly or C that the compiler refuses."""


class CannotRun(KvmpyError):
    """Here the test can't run: a skip with this reason, or a failure with ``--kvmpy-no-skip``."""


class NoCompiler(CannotRun):
    """There is no compiler, and what it would make isn't in the cache."""


class SerialError(KvmpyError):
    """What was expected on the serial line didn't come."""


class GoldenError(KvmpyError):
    """A golden trace that is missing or damaged."""
