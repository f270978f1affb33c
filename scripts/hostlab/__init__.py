"""Emulated VT-x and AMD-V hosts: a whole Linux with KVM in QEMU or Bochs, and the hardware suite run in it.

``scripts/hosts`` is the command line. What happens on this machine is here; what happens inside a host is in
``inside/`` and ``init``. Standard library only, and nothing of kvmpy: hosts can be prepared before kvmpy is
built.
"""
