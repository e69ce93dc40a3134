"""What a power cut may leave of recorded calls, built as in ALICE (Pillai et al., OSDI 2014)."""

import os
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Call:
    """A recorded call."""

    what: str
    path: str
    other: str
    offset: int
    data: bytes


_HEAD = struct.Struct("=ciiqq")


def recorded(log: bytes) -> Iterator[Call]:
    """The calls that shim.c has written."""
    at = 0
    while at < len(log):
        what, first, second, offset, size = _HEAD.unpack_from(log, at)
        at += _HEAD.size
        parts = []
        for length in (first, second, size):
            parts.append(log[at : at + length])
            at += length
        yield Call(what.decode(), os.fsdecode(parts[0]), os.fsdecode(parts[1]), offset, parts[2])


@dataclass
class _File:
    calls: list[list[Any]] = field(default_factory=list)  # [sure, call]


@dataclass
class _Folder:
    changes: list[list[Any]] = field(default_factory=list)  # [sure, {name: what it is now, None if gone}]
    now: "dict[str, _File | _Folder]" = field(default_factory=dict)

    def change(self, names: "dict[str, _File | _Folder | None]", *, sure: bool = False) -> None:
        self.changes.append([sure, names])
        for name, what in names.items():
            self.now.pop(name, None)
            if what is not None:
                self.now[name] = what


class Disk:
    """Files and folders, with what of each is sure to be on the disk.

    A call on a file's content is sure once the file was synced after it, a change of names once its folder
    was. Names of one folder reach the disk in their order, contents in any.

    Args:
        calls: since the beginning.
        begun: what was there, all of it sure.
        root: the folder that ``calls`` worked in.
    """

    def __init__(self, calls: Sequence[Call], begun: Path, root: Path) -> None:
        self._root, self._top, self.said = str(root), _Folder(), set[str]()
        for path in sorted(begun.rglob("*")):
            content = (
                _File([[True, Call("w", "", "", 0, path.read_bytes())]]) if path.is_file() else _Folder()
            )
            self._above(f"{root}/{path.relative_to(begun)}").change({path.name: content}, sure=True)
        for call in calls:
            self._apply(call)

    def _at(self, path: str) -> Any:
        place: Any = self._top
        for name in Path(path).relative_to(self._root).parts:
            place = place.now.get(name) if isinstance(place, _Folder) else None
        return place

    def _above(self, path: str) -> _Folder:
        folder = self._at(str(Path(path).parent))
        assert isinstance(folder, _Folder), f"{path} is in no folder"
        return folder

    def _apply(self, call: Call) -> None:
        name, place = Path(call.path).name, self._at(call.path)
        match call.what:
            case "A":
                self.said.add(call.other)
            case "c":
                self._above(call.path).change({name: _File()})
            case "d":
                self._above(call.path).change({name: _Folder()})
            case "u":
                self._above(call.path).change({name: None})
            case "r":
                assert Path(call.path).parent == Path(call.other).parent, (
                    "moves between folders are not modelled"
                )
                self._above(call.path).change({name: None, Path(call.other).name: place})
            case "s" if place is not None:
                for item in place.calls if isinstance(place, _File) else place.changes:
                    item[0] = True
            case _ if isinstance(place, _File):
                place.calls.append([False, call])

    def leave(self, folder: Path, variant: int, dice: random.Random) -> set[str]:
        """Build what the disk has after a cut; returns what had been acknowledged.

        Args:
            folder: to make.
            variant: of what is not sure: 0 nothing of it, 1 names but zeros for content, 2 some of it, 3 all.
            dice: which, for 2.
        """
        self._build(self._top, folder, variant, dice)
        return self.said

    def _build(self, folder: _Folder, path: Path, variant: int, dice: random.Random) -> None:
        path.mkdir()
        sure = max((i for i, change in enumerate(folder.changes, 1) if change[0]), default=0)
        every = len(folder.changes)
        built = _Folder()
        for _, names in folder.changes[: (sure, every, dice.randint(sure, every), every)[variant]]:
            built.change(names)
        for name, what in built.now.items():
            if isinstance(what, _Folder):
                self._build(what, path / name, variant, dice)
            else:
                (path / name).write_bytes(_content(what, variant, dice))


def _content(file: _File, variant: int, dice: random.Random) -> bytes:
    data = bytearray()
    for sure, call in file.calls:
        if not sure and (variant == 0 or (variant == 2 and dice.random() < 0.5)):
            continue
        size = len(call.data)
        if call.what == "t":
            data = data[: call.offset] + bytes(max(0, call.offset - len(data)))
        else:
            data += bytes(max(0, call.offset + size - len(data)))
            if sure or variant != 1:
                kept = size if sure or variant == 3 else dice.randint(0, size)
                data[call.offset : call.offset + kept] = call.data[:kept]
    return bytes(data)
