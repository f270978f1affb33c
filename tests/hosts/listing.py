"""Guest code as listings, for hosts that have no assembler: the bytes in front, what they mean behind.

A line is ``HEX  INSTRUCTION`` or ``LABEL:``. tests/unit/hosts/test_hosts_listings.py assembles the right side and
compares: whoever changes a listing writes the instruction and takes the bytes from that test's message.
"""

from __future__ import annotations

import re

ORIGIN = 0x1000
"""Where the code lies, in guest physical memory."""
_LINE = re.compile(r"(?P<hex>(?:[0-9a-f]{2} )+) +(?P<instruction>\S.*)|(?P<label>\w+):")


class Code:
    """A listing: ``data`` are the bytes, ``at["label"]`` is the address of a label, ``bits`` 16, 32 or 64."""

    def __init__(self, bits: int, text: str) -> None:
        self.bits = bits
        self.text = text
        self.data = b""
        self.at: dict[str, int] = {}
        for line in text.strip().splitlines():
            found = _LINE.fullmatch(line.strip())
            if found is None:
                raise ValueError(f"a listing's line is 'HEX  INSTRUCTION' or 'LABEL:', not {line.strip()!r}")
            if found["label"]:
                self.at[found["label"]] = ORIGIN + len(self.data)
            else:
                self.data += bytes.fromhex(found["hex"])


def code(bits: int, text: str) -> Code:
    """The listing ``text`` for a CPU in 16-, 32- or 64-bit mode."""
    return Code(bits, text)
