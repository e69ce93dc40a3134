"""Connections that ask nothing, or never end asking, are closed; a proxy is believed where it is named."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import httpx
import pytest

pytest.importorskip("uvicorn", reason='no uvicorn: pip install "spherecf[serve]"')

SCRIPT = """
import asyncio, socket, sys
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
import spherecf.serve.app as served
from spherecf.serve.access import Access, Limits
from spherecf.serve.guard import Guard, install

async def client(request):
    return PlainTextResponse(request.client.host)

async def slow(request):
    await asyncio.sleep(1.5)
    return PlainTextResponse("done")

async def large(request):
    return PlainTextResponse(bytes(10_000_000))

async def read(request):
    return PlainTextResponse(str(len(await request.body())))

async def delay(request):
    return PlainTextResponse(str(undelayed))

class Protocol(served.PromptProtocol):
    def connection_made(self, transport):
        global undelayed
        undelayed = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        super().connection_made(transport)

served.REQUEST_SECONDS, served.MAX_CONNECTIONS = 0.5, int(sys.argv[2])
served.PromptProtocol = Protocol
routes = [Route("/", client, methods=["GET", "POST"]), Route("/slow", slow), Route("/large", large)]
routes += [Route("/delay", delay), Route("/read", read, methods=["POST"])]
access = Access("", ("here", "127.0.0.1"))
app = Starlette(routes=routes)
install(app)
guard = Guard(app, access, Limits(requests_per_minute=1e9, burst=10**9), frozenset())
served.listen(guard, "127.0.0.1", int(sys.argv[1]), sys.argv[3:])
"""


def serve(*proxies: str, connections: int = 20) -> Iterator[int]:
    """Its port. Whatever callers do, it says nothing: they could fill a disk."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    words = [sys.executable, "-c", SCRIPT, str(port), str(connections), *proxies]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(words, stderr=said)
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
        said.seek(0)
        assert said.read().decode() == ""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    yield from serve()


@pytest.fixture(scope="module")
def roomy() -> Iterator[int]:
    yield from serve(connections=512)


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


@pytest.mark.slow
def test_two_hundred_slow_callers_hold_up_nobody(roomy: int) -> None:
    held = [socket.create_connection(("127.0.0.1", roomy), timeout=5) for _ in range(200)]
    try:
        for turn in range(5):
            for one in held:
                with contextlib.suppress(OSError):  # closed after its half second
                    one.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nX: " if not turn else b"x")
            assert httpx.get(f"http://127.0.0.1:{roomy}/", trust_env=False, timeout=10).status_code == 200
        assert all(map(is_closed, held))
    finally:
        for one in held:
            one.close()


def test_who_does_not_read_is_not_waited_for(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
        one.sendall(2 * b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n")  # the second waits for the first
        assert is_closed(one)


def is_closed(one: socket.socket) -> bool:
    """Whether the other side closes it within some seconds, nothing of what it sent being read."""
    for _ in range(100):
        try:
            one.sendall(b"x")
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_answers_are_sent_without_delay(port: int) -> None:
    """Else each one waits 40 ms for the caller to acknowledge the packet before."""
    assert httpx.get(f"http://127.0.0.1:{port}/delay", trust_env=False).text == "1"


HEAD = b"POST /read HTTP/1.1\r\nHost: here\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 0\r\nContent-Length: 35\r\n\r\n",
        HEAD + b"Content-Length: 0, 35\r\n\r\n",
        HEAD + b"Content-Length: +0\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 0x0\r\n\r\n",
        HEAD + b"Content-Length: 0 0\r\n\r\n",
        HEAD + b"Content-Length: " + b"9" * 500 + b"\r\n\r\n",
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        HEAD + b"X: a\0b\r\n\r\n",
        HEAD + b"X: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"0x0\r\n\r\n",
        CHUNKED + b"-1\r\n\r\n",
        CHUNKED + b"1\r\naXX0\r\n\r\n",
        CHUNKED + b"f" * 30 + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: here\r\nHost: there\r\n\r\n",
    ],
)
def test_no_request_hides_in_another(port: int, sent: bytes) -> None:
    """Where two servers could see its end at different places, it is refused and the connection closed."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one, contextlib.suppress(OSError):
        one.sendall(sent + SMUGGLED)
        while more := one.recv(4096):
            found += more
    assert found.startswith(b"HTTP/1.1 400 ") and found.count(b"HTTP/1.1") == 1


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
