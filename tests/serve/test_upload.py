"""Upload forms: parsed in memory, with limits and clear errors."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient
from python_multipart.exceptions import FormParserError

from spherecf.serve import Limits
from spherecf.serve.guard import install
from spherecf.serve.upload import _feed, _file_name, _Parts, read_form

PART = b'--b\r\nContent-Disposition: form-data; name="photos"; filename="a"\r\n\r\n'
LIMITS = Limits(max_files=3, max_file_bytes=1000, max_request_bytes=5000)


def client(limits: Limits = LIMITS, max_photos: int = 100) -> TestClient:
    app = FastAPI()
    install(app)

    @app.post("/")
    async def read(request: Request) -> dict[str, Any]:
        form = await read_form(request, limits, {"photos": (1, max_photos)})
        return {
            "fields": form.fields,
            "photos": [
                [upload.name, upload.content[:1000].decode("latin-1")] for upload in form.photos["photos"]
            ],
            "sizes": [len(upload.content) for upload in form.photos["photos"]],
        }

    return TestClient(app, raise_server_exceptions=False)


def photo(content: bytes = b"xyz", name: str = "a.jpg") -> tuple[str, tuple[str, bytes]]:
    return "photos", (name, content)


def test_fields_and_photos_are_parsed() -> None:
    binary = bytes(range(256)) * 3 + b"\r\n--"
    answer = client().post(
        "/", files=[photo(binary), photo(b"", "ü 2.png")], data={"name": " Ada ", "x": "1"}
    )
    assert answer.json() == {
        "fields": {"name": "Ada", "x": "1"},
        "photos": [["a.jpg", binary.decode("latin-1")], ["ü 2.png", ""]],
        "sizes": [len(binary), 0],
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "passwd"), ("C:\\Users\\x\\me.jpg", "me.jpg"), ("a\x00b\n.jpg", "ab.jpg"),
        ("x" * 500 + ".jpg", "x" * 116 + ".jpg"), ("..", ".."), ("/", ""), ("\u202egpj.exe", "gpj.exe"),
    ],
)  # fmt: skip
def test_file_names_are_sanitised(name: str, expected: str) -> None:
    assert _file_name(name.encode()) == expected


@pytest.mark.parametrize(
    ("files", "data", "status", "message"),
    [
        ([photo(b"x" * 1001)], {}, 413, "The photo 'a.jpg' is too large: expected at most 1,000 bytes."),
        ([photo(b"x" * 900)] * 3 + [photo()], {}, 413, "expected at most 3"),
        ([photo()], {"note": "x" * 4097}, 413, "The field 'note' is too large"),
        ([photo(b"x" * 1000)] * 6, {}, 413, "at most 5,000 bytes"),
        ([photo()], {f"f{i}": "1" for i in range(30)}, 413, "too many parts"),
        ([("other", ("a.jpg", b"x"))], {}, 422, "The field 'other' is not expected here"),
        ([("other", (None, b"x"))], {}, 422, "The field 'photos' is missing: expected at least 1 photo"),
        ([("photos", (None, b"no file"))], {}, 422, "The field 'photos' is a text: expected a photo"),
        ([photo(), ("a", (None, b"1")), ("a", (None, b"2"))], {}, 422, "The field 'a' occurs twice"),
    ],
)  # fmt: skip
def test_invalid_forms_are_refused(files: Any, data: dict[str, str], status: int, message: str) -> None:
    answer = client().post("/", files=files, data=data)
    assert answer.status_code == status and message in answer.json()["error"]
    assert list(answer.json()) == ["error"]


def test_too_many_photos_are_refused() -> None:
    answer = client(max_photos=1).post("/", files=[photo()] * 2)
    assert answer.status_code == 422 and "has 2 photos: expected at most 1" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"a=1", "application/x-www-form-urlencoded", 415),
        (b"x", "multipart/form-data", 415),
        (b"", "multipart/form-data; boundary=b", 422),
        (b"nonsense", "multipart/form-data; boundary=b", 400),
        (b"--b\r\nX-\xc3: y\r\n\r\nx\r\n--b--", "multipart/form-data; boundary=b", 400),
        (PART + b"cut off", "multipart/form-data; boundary=b", 400),
        (b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b--", "multipart/form-data; boundary=b", 400),
        (b"--b\r\n" + b"X: y\r\n" * 5000, "multipart/form-data; boundary=b", 400),
        (b"x", "multipart/form-data; boundary=" + "b" * 5000, 400),
    ],
)  # fmt: skip
def test_damaged_forms_are_refused(
    body: bytes, kind: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client(Limits()).post("/", content=body, headers={"Content-Type": kind})
    assert caplog.records == []  # otherwise callers could fill the disk with logs
    assert answer.status_code == status and answer.json()["error"].endswith(".")


def test_a_body_of_unknown_length_is_cut_off_while_it_arrives() -> None:
    n_sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal n_sent
        yield PART
        while True:
            n_sent += 500
            yield b"x" * 500

    limits = Limits(max_file_bytes=10**9, max_request_bytes=100_000)
    with pytest.raises(HTTPException) as error:
        asyncio.run(_feed(_Parts(limits, frozenset({"photos"})), b"b", endless(), limits))
    assert error.value.status_code == 413 and n_sent <= 100_500


def test_a_declared_length_is_refused_before_anything_is_read() -> None:
    def never() -> Iterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": "5001"}
    app = client().app
    messages: list[Any] = []

    async def call() -> None:
        scope = {
            "type": "http", "method": "POST", "path": "/", "query_string": b"", "http_version": "1.1",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip

        async def receive() -> Any:
            raise AssertionError("the body was read")

        async def send(message: Any) -> None:
            messages.append(message)

        await app(scope, receive, send)

    asyncio.run(call())
    assert messages[0]["status"] == 413 and b"5,000 bytes" in messages[1]["body"]


def test_a_slow_upload_is_refused() -> None:
    async def receive() -> Any:
        await asyncio.sleep(60)

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    slow = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    with pytest.raises(HTTPException) as error:
        asyncio.run(read_form(slow, Limits(upload_seconds=0.05), {"photos": (1, 1)}))
    assert error.value.status_code == 408 and "0.05 s" in error.value.detail


def test_large_photos_never_touch_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a temporary file was opened")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened: list[Any] = []
    monkeypatch.setattr(os, "open", lambda *a, real=os.open, **o: opened.append(a[0]) or real(*a, **o))
    answer = client(Limits()).post("/", files=[photo(b"x" * 9_000_000)] * 2)
    assert answer.status_code == 200 and answer.json()["sizes"] == [9_000_000] * 2
    assert list(tmp_path.iterdir()) == [] and opened == []


def test_a_truncated_form_is_an_error() -> None:
    async def truncated() -> AsyncIterator[bytes]:
        yield PART + b"ab"

    with pytest.raises(FormParserError):
        asyncio.run(_feed(_Parts(LIMITS, frozenset({"photos"})), b"b", truncated(), LIMITS))
