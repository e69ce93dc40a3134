"""Disk states after a power cut, built from recorded calls as in ALICE (Pillai et al., OSDI 2014)."""

import os
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Call:
    """One recorded file operation; ``record`` in shim.c writes it, with a letter for its kind."""

    kind: str
    path: str
    other: str  # the new name of a rename, or the acknowledged text
    offset: int
    data: bytes


_HEADER = struct.Struct("=ciiqq")


def read_calls(log: bytes) -> Iterator[Call]:
    """Read the calls from a log that shim.c wrote."""
    position = 0
    while position < len(log):
        kind, path_length, other_length, offset, data_length = _HEADER.unpack_from(log, position)
        position += _HEADER.size
        parts = []
        for length in (path_length, other_length, data_length):
            parts.append(log[position : position + length])
            position += length
        yield Call(kind.decode(), os.fsdecode(parts[0]), os.fsdecode(parts[1]), offset, parts[2])


@dataclass
class _File:
    calls: list[list[Any]] = field(default_factory=list)  # [durable, call]


@dataclass
class _Folder:
    changes: list[list[Any]] = field(default_factory=list)  # [durable, {name: its entry, None if removed}]
    entries: "dict[str, _File | _Folder]" = field(default_factory=dict)

    def change(self, names: "dict[str, _File | _Folder | None]", *, durable: bool = False) -> None:
        self.changes.append([durable, names])
        for name, entry in names.items():
            self.entries.pop(name, None)
            if entry is not None:
                self.entries[name] = entry


class Disk:
    """Model of files and folders that tracks which changes are durable, i.e. sure to survive a power cut.

    A write to a file is durable once the file has been synced after it; a change of names is durable once the
    folder has been synced. Changes of names in one folder reach the disk in order, writes in any order.

    Args:
        calls: all calls since the initial state.
        initial: a copy of the folder before the first call; everything in it is durable.
        root: the folder in which the calls were made.
    """

    def __init__(self, calls: Sequence[Call], initial: Path, root: Path) -> None:
        self._root, self._top, self.acknowledged = str(root), _Folder(), set[str]()
        for path in sorted(initial.rglob("*")):
            content = (
                _File([[True, Call("w", "", "", 0, path.read_bytes())]]) if path.is_file() else _Folder()
            )
            self._parent(f"{root}/{path.relative_to(initial)}").change({path.name: content}, durable=True)
        for call in calls:
            self._apply(call)

    def _find(self, path: str) -> Any:
        entry: Any = self._top
        for name in Path(path).relative_to(self._root).parts:
            entry = entry.entries.get(name) if isinstance(entry, _Folder) else None
        return entry

    def _parent(self, path: str) -> _Folder:
        folder = self._find(str(Path(path).parent))
        assert isinstance(folder, _Folder), f"{path} has no parent folder"
        return folder

    def _apply(self, call: Call) -> None:
        name, entry = Path(call.path).name, self._find(call.path)
        match call.kind:
            case "A":
                self.acknowledged.add(call.other)
            case "c":
                self._parent(call.path).change({name: _File()})
            case "d":
                self._parent(call.path).change({name: _Folder()})
            case "u":
                self._parent(call.path).change({name: None})
            case "r":
                assert Path(call.path).parent == Path(call.other).parent, (
                    "moves between folders are not modelled"
                )
                self._parent(call.path).change({name: None, Path(call.other).name: entry})
            case "s" if entry is not None:
                for item in entry.calls if isinstance(entry, _File) else entry.changes:
                    item[0] = True
            case _ if isinstance(entry, _File):
                entry.calls.append([False, call])

    def write_state(self, folder: Path, variant: int, dice: random.Random) -> set[str]:
        """Create a folder with one possible state after a power cut, and return the acknowledged texts.

        Args:
            folder: is created.
            variant: what survives of changes that are not durable: 0 nothing, 1 names with zeros as content,
                2 a random part, 3 everything.
            dice: draws the random part of variant 2.
        """
        self._build(self._top, folder, variant, dice)
        return self.acknowledged

    def _build(self, folder: _Folder, path: Path, variant: int, dice: random.Random) -> None:
        path.mkdir()
        n_durable = max((i for i, change in enumerate(folder.changes, 1) if change[0]), default=0)
        n_changes = len(folder.changes)
        built = _Folder()
        n_kept = (n_durable, n_changes, dice.randint(n_durable, n_changes), n_changes)[variant]
        for _, names in folder.changes[:n_kept]:
            built.change(names)
        for name, entry in built.entries.items():
            if isinstance(entry, _Folder):
                self._build(entry, path / name, variant, dice)
            else:
                (path / name).write_bytes(_content(entry, variant, dice))


def _content(file: _File, variant: int, dice: random.Random) -> bytes:
    data = bytearray()
    for durable, call in file.calls:
        if not durable and (variant == 0 or (variant == 2 and dice.random() < 0.5)):
            continue
        size = len(call.data)
        if call.kind == "t":
            data = data[: call.offset] + bytes(max(0, call.offset - len(data)))
        else:
            data += bytes(max(0, call.offset + size - len(data)))
            if durable or variant != 1:
                n_written = size if durable or variant == 3 else dice.randint(0, size)
                data[call.offset : call.offset + n_written] = call.data[:n_written]
    return bytes(data)
