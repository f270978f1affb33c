"""The bundled guests: tiny images that are built with the package and found by name.

Sources and metadata live in guest_images/; building the package turns them into kvmpy/_images/.
"""

from __future__ import annotations

from kvmpy.errors import ImageError

TYPE_CHECKING = False  # so that mypy sees the imports below and a start-up doesn't pay for them
if TYPE_CHECKING:
    from typing import Any, TypedDict

    class Needs(TypedDict):
        """What a guest needs of its machine, and how it ends."""

        cpus: int  # vCPUs it wants; it runs with any number from 1
        irqchip: str  # "none", or "kernel": interrupt controllers and timer in the kernel
        memory: int  # bytes of RAM it needs at least
        serial_input: bool  # it reads the serial port
        paravirt: bool  # it makes kvmpy's hypercalls: the machine has a kvmpy.machine.paravirt.Paravirt
        ends: str  # "halt", "exit" (exit port), "crash" (triple fault) or "never"
        status: int | None  # its exit status, 0-119; None when it sets none (crash, never)


# Plain strings and open() here: pathlib alone would take as long to import as everything else in this file.
DIRECTORY = __file__.rpartition("/boot/")[0] + "/_images"
SCHEMA = 1  # of index.json, as native/images.py writes it
FIELDS = {
    "name", "file", "summary", "mode", "format", "load_address",
    "cpus", "irqchip", "memory", "serial_input", "paravirt", "ends", "status", "group",
}  # fmt: skip


class Bundled:
    """One bundled guest: where its image is and what it needs."""

    __slots__ = ("format", "group", "load_address", "mode", "name", "needs", "path", "summary")

    def __init__(self, entry: dict[str, Any], directory: str) -> None:
        self.name: str = entry["name"]
        self.path: str = f"{directory}/{entry['file']}"
        self.format: str = entry["format"]  # "flat" or "elf"
        self.mode: str = entry["mode"]  # it starts in: "real", "protected" or "long"
        self.load_address: int = entry["load_address"]  # guest physical; a flat image starts there
        self.summary: str = entry["summary"]
        self.group: str = entry[
            "group"
        ]  # guests of one group do the same work in different ways; "" for most
        self.needs: Needs = {
            "cpus": entry["cpus"],
            "irqchip": entry["irqchip"],
            "memory": entry["memory"],
            "serial_input": entry["serial_input"],
            "paravirt": entry["paravirt"],
            "ends": entry["ends"],
            "status": entry["status"],
        }

    def __repr__(self) -> str:
        return f"<Bundled {self.name}: {self.mode}, {self.format} at {self.load_address:#x}>"

    def read(self) -> bytes:
        """The bytes of its image. Raises ImageError when the file is gone."""
        try:
            with open(self.path, "rb") as file:
                return file.read()
        except OSError as error:
            raise ImageError(
                f"bundled guest {self.name}: {self.path}: {error.strerror}: install kvmpy again"
            ) from error


def names(directory: str = DIRECTORY) -> list[Bundled]:
    """All bundled guests, from simple to elaborate. Raises ImageError when they were never built."""
    return [Bundled(entry, directory) for entry in _entries(directory)]


def find(name: str, directory: str = DIRECTORY) -> Bundled:
    """The bundled guest of that name. Raises ImageError that suggests the nearest name."""
    entries = _entries(directory)
    for entry in entries:
        if entry["name"] == name:
            return Bundled(entry, directory)
    from difflib import get_close_matches  # only somebody who mistyped pays for it

    near = get_close_matches(name, [entry["name"] for entry in entries], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "`kvmpy images` lists them"
    raise ImageError(f"no bundled guest is called {name!r}: {hint}")


def _entries(directory: str) -> list[dict[str, Any]]:
    import json

    path = f"{directory}/index.json"
    try:
        with open(path, encoding="utf-8") as file:
            index = json.load(file)
    except FileNotFoundError:
        raise ImageError(
            f"the bundled guests aren't built ({path} is missing): install kvmpy again"
        ) from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: {error}: install kvmpy again") from error
    images = index.get("images") if isinstance(index, dict) and index.get("schema") == SCHEMA else None
    if not isinstance(images, list) or not all(isinstance(e, dict) and e.keys() >= FIELDS for e in images):
        raise ImageError(f"{path}: not an index of schema {SCHEMA}: install kvmpy again")
    return images
