"""Looking up KVM's names by number, and what an errno of an ioctl means."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from kvmpy.abi import capabilities, errnos, exits, ioctls


def every_ioctl() -> list[ioctls.Ioctl]:
    kinds = (ioctls.SYSTEM, ioctls.VM, ioctls.VCPU, ioctls.DEVICE)
    return list({request.name: request for kind in kinds for request in ioctls.of_kind(kind)}.values())


def test_each_ioctl_is_declared_under_its_own_name() -> None:
    for request in every_ioctl():
        assert getattr(ioctls, request.name) is request


def test_whole_numbers_are_unique_and_low_bytes_are_not() -> None:
    numbers = [request.number for request in every_ioctl()]
    assert len(set(numbers)) == len(numbers)
    shared = {
        number & 0xFF for number in numbers if sum(other & 0xFF == number & 0xFF for other in numbers) > 1
    }
    assert {0x67, 0x9F, 0xA0, 0xA2, 0xA3, 0xA5} <= shared


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0xC008AE67, "KVM_IRQ_LINE_STATUS"),
        (0x4010AE67, "KVM_REGISTER_COALESCED_MMIO"),
        (0x8070AE9F, "KVM_GET_PIT2"),
        (0x8040AE9F, "KVM_GET_VCPU_EVENTS"),
        (0x0000AE80, "KVM_RUN"),
    ],
)
def test_an_ioctl_is_found_by_its_whole_number(number: int, name: str) -> None:
    found = ioctls.find(number)
    assert found is not None
    assert found.name == name
    assert int(found.__index__()) == number
    assert repr(found) == f"<{name} {number:#x}>"


def test_a_foreign_number_is_nobodys() -> None:
    assert ioctls.find(0x67) is None
    assert ioctls.find(0x5401) is None


def test_ioctls_are_grouped_by_the_kind_of_file_descriptor() -> None:
    def names(kind: str) -> set[str]:
        return {request.name for request in ioctls.of_kind(kind)}

    assert {"KVM_CREATE_VM", "KVM_CHECK_EXTENSION", "KVM_GET_MSRS"} <= names(ioctls.SYSTEM)
    assert {"KVM_CREATE_VCPU", "KVM_CHECK_EXTENSION", "KVM_ENABLE_CAP"} <= names(ioctls.VM)
    assert {"KVM_RUN", "KVM_ENABLE_CAP", "KVM_GET_MSRS"} <= names(ioctls.VCPU)
    assert names(ioctls.DEVICE) == {"KVM_SET_DEVICE_ATTR", "KVM_GET_DEVICE_ATTR", "KVM_HAS_DEVICE_ATTR"}
    assert "KVM_RUN" not in names(ioctls.VM)


def test_asking_an_ioctl_for_something_else_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ioctls.KVM_RUN.nonsense


def test_importing_the_numbers_does_not_import_ctypes() -> None:
    """ioctl-opt brings in ctypes; nobody pays for that before an ioctl is issued."""
    program = "import sys, kvmpy.kvm; sys.exit('ctypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_capabilities_have_names() -> None:
    assert capabilities.name(0) == "KVM_CAP_IRQCHIP"
    assert capabilities.name(231) == "KVM_CAP_USER_MEMORY2"
    assert capabilities.name(99999) == "KVM_CAP_99999"
    numbers = list(capabilities.by_name().values())
    assert numbers == sorted(set(numbers))


def test_exit_reasons_have_names() -> None:
    assert exits.reason(2) == "IO"
    assert exits.reason(39) == "MEMORY_FAULT"
    assert exits.reason(4711) == "reason 4711"
    assert sorted(exits.reasons()) == list(range(max(exits.reasons()) + 1))
    assert "IO_IN" not in exits.reasons().values()


def test_internal_errors_have_words() -> None:
    assert exits.internal_error(1) == "emulation failure"
    assert exits.internal_error(77) == "sub-error 77"


def test_every_remark_is_about_an_ioctl_and_an_errno_that_exist() -> None:
    known = {request.name for request in every_ioctl()}
    assert set(errnos.REMARKS) <= known
    for remarks in (errnos.GENERAL, *errnos.REMARKS.values()):
        for name, text in remarks.items():
            assert getattr(errno, name) > 0
            assert text and not text.endswith(".") and "\n" not in text


def test_a_remark_of_the_ioctl_goes_before_the_general_one() -> None:
    assert "interrupt controller" in errnos.remark("KVM_INTERRUPT", errno.ENXIO)
    assert errnos.remark("KVM_NMI", errno.ENXIO) == errnos.GENERAL["ENXIO"]
    assert errnos.remark("KVM_NMI", errno.EDOM) == "Numerical argument out of domain"


def test_an_errno_has_the_name_the_kernel_uses() -> None:
    assert errnos.name(22) == "EINVAL"
    assert errnos.name(95) == "EOPNOTSUPP"
    assert errnos.name(11) == "EAGAIN"
    assert errnos.name(4711) == "errno 4711"
