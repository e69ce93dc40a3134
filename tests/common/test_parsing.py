"""Parsing of files from untrusted sources."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from spherecf.common.parsing import checked, parse_json, reading
from spherecf.errors import FileFormatError, InputError


@dataclass(frozen=True)
class Lamp:
    watts: float
    colours: tuple[str, ...]
    on: bool = False


@pytest.mark.parametrize(
    "error", [ValueError("odd"), RecursionError("deep"), KeyError("x"), OSError(5, "io"), MemoryError()]
)
def test_unexpected_errors_become_file_format_errors(error: Exception) -> None:
    with pytest.raises(FileFormatError, match=r"^a\.npy: "), reading("a.npy", "an array"):
        raise error


def test_spherecf_errors_and_interrupts_pass_through() -> None:
    with pytest.raises(InputError, match=r"^mine$"), reading("a.npy", "an array"):
        raise InputError("mine")
    with pytest.raises(KeyboardInterrupt), reading("a.npy", "an array"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"a":' * 5000,
        "NaN",
        '{"a": [1, -Infinity]}',
        "[1e999]",
        "[1" + "0" * 400 + "]",
        b"\xff\xfe",
    ],
)
def test_json_that_cannot_be_written_back_is_refused(text: str | bytes) -> None:
    with pytest.raises(FileFormatError):
        parse_json(text, "x.json", "a header")


def test_json_round_trips() -> None:
    value = parse_json("[" * 150 + '{"a": [1, 2.5, null, true, "é"]}' + "]" * 150, "x.json", "a header")
    assert parse_json(json.dumps(value, allow_nan=False), "x.json", "a header") == value


def test_fields_must_have_their_declared_types() -> None:
    assert checked(Lamp, {"watts": 5, "colours": ["red"]}, "lamp") == Lamp(5.0, ("red",))
    for invalid in ({"watts": True, "colours": []}, {"watts": "5", "colours": []}, {"watts": 5}, [], None, 3):
        with pytest.raises(InputError, match=r"^lamp: "):
            checked(Lamp, invalid, "lamp")
    deep: list[Any] = []
    for _ in range(10**5):
        deep = [deep]
    for invalid in ({"watts": {5}}, {1j: 5}, deep):
        with pytest.raises(InputError, match=r"^lamp: expected plain JSON values: "):
            checked(Lamp, invalid, "lamp")
