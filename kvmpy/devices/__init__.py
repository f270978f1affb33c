"""Devices of a PC without PCI: pure objects, one a file, that know nothing of buses, engines or stdout.

Nothing is imported here, so that a program pays only for the devices it uses:
``from kvmpy.devices.serial import Serial``.
"""
