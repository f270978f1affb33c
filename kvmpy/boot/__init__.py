"""Image formats: bytes in, memory contents and entry state out. One module a format.

``load(data, options)`` recognises the format unless ``options.format`` forces it.
"""

from kvmpy.boot.loader import FORMATS, load, read
from kvmpy.boot.payload import BootOptions, Chunk, Payload
from kvmpy.boot.signature import recognise

__all__ = ["FORMATS", "BootOptions", "Chunk", "Payload", "load", "read", "recognise"]
