"""Connections that ask nothing, or never end asking, are closed; a proxy is believed where it is named."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

pytest.importorskip("uvicorn", reason='no uvicorn: pip install "spherecf[serve]"')

SCRIPT = """
import asyncio, sys
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
import spherecf.serve.app as served

async def client(request):
    return PlainTextResponse(request.client.host)

async def slow(request):
    await asyncio.sleep(1.5)
    return PlainTextResponse("done")

served.REQUEST_SECONDS, served.MAX_CONNECTIONS = 0.5, 20
routes = [Route("/", client, methods=["GET", "POST"]), Route("/slow", slow)]
served.listen(Starlette(routes=routes), "127.0.0.1", int(sys.argv[1]), sys.argv[2:])
"""


def serve(*proxies: str) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(port), *proxies])
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    yield from serve()


@pytest.fixture(scope="module")
def behind_proxy() -> Iterator[int]:
    yield from serve("127.0.0.0/8")


def closed_after(port: int, first: bytes, more: bytes = b"") -> float:
    """Seconds until a connection that sends ``first``, then ``more`` ten times a second, is closed."""
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
        one.sendall(first)
        one.settimeout(0.1)
        while time.monotonic() - start < 15:
            try:
                if more:
                    one.sendall(more)
                if not one.recv(4096):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (b"", b""),
        (b"GET / HT", b""),
        (b"GET / HTTP/1.1\r\nHost: here\r\nX: ", b"x"),  # a header without end
        (b"GET / HTTP/1.1\r\nHost: here\r\n\r\nGET / HTTP/1.1\r\nX: ", b"x"),  # the second one
        (b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000\r\n\r\n", b"x"),  # answered long ago
    ],
)
def test_nothing_is_held_open_without_a_request(port: int, first: bytes, more: bytes) -> None:
    assert 0.4 < closed_after(port, first, more) < 14


def test_a_request_in_work_is_not_cut(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as one:
        assert [one.get("/slow").text, one.get("/").text] == ["done", "127.0.0.1"]


def test_connections_are_bounded(port: int) -> None:
    held = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(60)]
    time.sleep(0.3)
    closed = 0
    for one in held:
        one.settimeout(0.01)
        try:
            closed += not one.recv(1)
        except TimeoutError:
            pass
        except OSError:
            closed += 1
        one.close()
    assert closed >= 40
    for _ in range(100):
        try:
            assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
            break
        except httpx.TransportError:
            time.sleep(0.1)
    else:
        pytest.fail("no answer after the flood")


def test_a_proxy_is_believed_only_where_it_is_named(port: int, behind_proxy: int) -> None:
    claimed = {"X-Forwarded-For": "198.51.100.7, 203.0.113.9"}
    seen = [
        httpx.get(f"http://127.0.0.1:{at}/", headers=claimed, trust_env=False).text
        for at in (port, behind_proxy)
    ]
    assert seen == [
        "127.0.0.1",
        "203.0.113.9",
    ]  # what stands left of the proxy's own entry is the client's claim
