"""Why ``/dev/kvm`` can't be used here, and exactly what would help."""

from __future__ import annotations

import errno
import os

from kvmpy.kvm.processor import active_part, processor, wanted_part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

READ_WRITE = 0o060


class User:
    """Who asks: effective user id, name, and the groups of this process and of the user's next login."""

    __slots__ = ("groups", "login_groups", "name", "uid")

    def __init__(self, uid: int, name: str, groups: Collection[int], login_groups: Collection[int]) -> None:
        self.uid = uid
        self.name = name
        self.groups = groups
        self.login_groups = login_groups

    @classmethod
    def current(cls) -> User:
        """The user of this process."""
        import pwd

        uid = os.geteuid()
        groups = {os.getegid(), *os.getgroups()}
        try:
            entry = pwd.getpwuid(uid)
            return cls(uid, entry.pw_name, groups, os.getgrouplist(entry.pw_name, entry.pw_gid))
        except (KeyError, OSError):
            return cls(uid, "$USER", groups, ())


def why_not(path: str, error: OSError, root: str = "/", user: User | None = None) -> str:
    """One line for an ``error`` from opening ``path`` (/dev/kvm): the reason, and the commands that help.

    ``root`` stands for ``/`` when /proc and /sys are read.
    """
    if error.errno in (errno.EACCES, errno.EPERM):
        return _forbidden(path, error, user or User.current())
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        what = "doesn't exist" if error.errno == errno.ENOENT else "is there but no KVM answers"
        return f"{path} {what}: {_absent(path, root)}"
    return f"{path} can't be opened: {error.strerror}"


def describe(path: str) -> str:
    """A file's mode and owners in ls's words: "crw-rw---- root:kvm". OSError if it isn't there."""
    from stat import filemode

    status = os.stat(path)
    return f"{filemode(status.st_mode)} {_user_name(status.st_uid)}:{_group_name(status.st_gid)}"


def _forbidden(path: str, error: OSError, user: User) -> str:
    said = f"{path} can't be opened: permission denied"
    if error.errno == errno.EPERM or user.uid == 0:
        return f"{said} even for root: start the container with --device {path}"
    try:
        status = os.stat(path)
    except OSError:
        return f"{said}: ask for access to it"
    group = _group_name(status.st_gid)
    said = f"{said} ({describe(path)})"
    if status.st_mode & READ_WRITE != READ_WRITE or status.st_gid == 0:
        group = "kvm" if _group_exists("kvm") else ""
        if not group:
            return f"{said}: let every user in with: sudo chmod 666 {path}"
        give = f"sudo chown root:kvm {path} && sudo chmod 660 {path}"
        return f"{said}: give it to group kvm: {give} && sudo usermod -aG kvm {user.name}, and log in again"
    if status.st_gid in user.login_groups:
        return (
            f"{said}: you are in group {group} from your next login on: log in again, or run: newgrp {group}"
        )
    return f"{said}: add yourself to group {group}: sudo usermod -aG {group} {user.name}, and log in again"


def _absent(path: str, root: str) -> str:
    machine = os.uname().machine
    if machine != "x86_64":
        return f"kvmpy needs an x86-64 machine, this is {machine}"
    cpu = processor(root)
    if active_part(cpu, root):
        return f"KVM runs outside this container or chroot: start it with --device {path}"
    module = wanted_part(cpu)
    if module:
        return f"load KVM: sudo modprobe {module}"
    if "hypervisor" in cpu.flags:
        return "this virtual machine has no nested virtualization: switch it on where the machine is run"
    names = {"Intel": "VT-x", "AMD": "SVM (AMD-V)"}
    what = names.get(cpu.vendor, "VT-x or SVM (AMD-V)")
    return f"the processor offers no virtualization: switch on {what} in the firmware's set-up"


def _group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_exists(name: str) -> bool:
    import grp

    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True
