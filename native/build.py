"""Builds what isn't Python: the cffi module ``kvmpy._native`` out of native/, and the guests of guest_images/.

setuptools calls :class:`BuildNative` for every way of building (wheel, sdist, editable install). Every ``*.c`` in this
folder is compiled; every ``*.cdef`` declares to cffi what Python may call. A new C file needs no list to be edited.

``KVMPY_CFLAGS`` is appended to the compiler's flags (``-Werror`` in CI, ``-fsanitize=…`` for the sanitizer runs).
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sysconfig
from pathlib import Path
from types import ModuleType

from cffi import FFI
from setuptools import Extension
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MODULE = "kvmpy._native"
CFLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-fvisibility=hidden"]
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def declarations() -> str:
    """All declarations for cffi, in the order of the files' names."""
    return "\n".join(path.read_text() for path in sorted(HERE.glob("*.cdef")))


def make_ffi() -> FFI:
    """cffi's builder for the module; the C files are compiled beside it, so its own source is just headers."""
    ffi = FFI()
    ffi.cdef(declarations())
    headers = sorted(
        path.name for path in HERE.glob("*.h") if path.name not in ("bytes.h", "kvmpy_handler.h")
    )
    ffi.set_source(MODULE, "".join(f'#include "{name}"\n' for name in headers))
    return ffi


def _image_builder() -> ModuleType:
    """native/images.py, loaded by path: while a package is built native/ is no package on sys.path."""
    spec = importlib.util.spec_from_file_location("kvmpy_image_builder", HERE / "images.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildNative(build_ext):  # type: ignore[misc]
    """``build_ext`` that writes cffi's glue first and assembles the bundled guests afterwards."""

    def finalize_options(self) -> None:
        super().finalize_options()
        for extension in self.extensions:
            if extension.name == MODULE:
                self._describe(extension)

    def _describe(self, extension: Extension) -> None:
        extension.sources = sorted(os.path.relpath(path, ROOT) for path in HERE.glob("*.c"))
        extension.depends = sorted(
            os.path.relpath(path, ROOT)
            for pattern in ("*.h", "*.cdef", "*.py")
            for path in HERE.glob(pattern)
        )
        extension.include_dirs = [str(HERE)]
        extension.libraries = ["dl", "pthread", "rt"]
        extension.extra_compile_args = CFLAGS + shlex.split(os.environ.get("KVMPY_CFLAGS", ""))
        extension.extra_link_args = shlex.split(os.environ.get("KVMPY_LDFLAGS", ""))
        if not FREE_THREADED:  # the stable ABI doesn't exist for free-threaded builds yet
            extension.py_limited_api = True
            extension.define_macros = [("Py_LIMITED_API", "0x030B0000")]

    def build_extension(self, extension: Extension) -> None:
        glue = Path(self.build_temp) / "_native_glue.c"
        glue.parent.mkdir(parents=True, exist_ok=True)
        make_ffi().emit_c_code(str(glue))
        extension.sources = [*extension.sources, str(glue)]
        super().build_extension(extension)
        self._build_images()

    def _images(self) -> Path:
        return Path(self.build_lib) / "kvmpy" / "_images"

    def _build_images(self) -> None:
        compiler = os.environ.get("CC") or self.compiler.compiler[0]
        build_images = _image_builder().build_images
        build_images(ROOT / "guest_images", self._images(), compiler)
        build_images(ROOT / "guest_images" / "lab", self._images() / "lab", compiler)

    def copy_extensions_to_source(self) -> None:
        """Editable installs and ``--inplace``: the images go where the extension goes."""
        super().copy_extensions_to_source()
        shutil.copytree(self._images(), ROOT / "kvmpy" / "_images", dirs_exist_ok=True)

    def get_source_files(self) -> list[str]:
        """What an sdist needs on top of the Python packages."""
        files: list[str] = super().get_source_files()
        extra = [*HERE.iterdir(), *(ROOT / "guest_images").rglob("*")]
        return sorted({*files, *(os.path.relpath(path, ROOT) for path in extra if path.is_file())})

    def get_outputs(self) -> list[str]:
        outputs: list[str] = super().get_outputs()
        return outputs + sorted(str(path) for path in self._images().rglob("*") if path.is_file())
