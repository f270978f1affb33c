"""The kernel's words: KVM's ioctl numbers, constants and names, as in ``linux/kvm.h``. No input or output."""
