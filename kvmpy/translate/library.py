"""Finding the Unicorn library of the installed package, without importing the package (which loads ctypes)."""

from __future__ import annotations

import os
from importlib.machinery import PathFinder

from kvmpy._native import ffi, lib
from kvmpy.errors import EngineError

VERSION = "2.1.4"
REMEDY = "pip install 'kvmpy[translate]'"
NAME = "libunicorn.so.2"


def find() -> str:
    """The path of the library; EngineError, with the remedy, where there is none."""
    spec = PathFinder.find_spec("unicorn")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = os.path.join(folder, "lib", NAME)
        if os.path.exists(path):
            return path
    missing = "isn't installed" if spec is None else f"is installed without its {NAME}"
    raise EngineError(f"the Python package unicorn {missing}: {REMEDY}")


def load(path: str | None = None) -> None:
    """Loads the library and checks that it is the one this engine knows; a second time does nothing.

    Raises EngineError with the reason and the remedy.
    """
    path = path or find()
    reason = lib.kvmpy_translate_load(os.fsencode(path))
    if reason != ffi.NULL:
        why = ffi.string(reason).decode(errors="replace")
        raise EngineError(
            f"{path} can't be used ({why}); the translate engine needs unicorn {VERSION}: {REMEDY}"
        )
