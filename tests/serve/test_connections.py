"""Idle and endless requests are closed, ambiguous ones refused, and only named proxies trusted."""

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

pytest.importorskip("uvicorn", reason='no uvicorn: pip install "spherecf[serve]"')
from spherecf.serve.app import _handled

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
    """Run the service; yields its port. It must print nothing, or callers could fill the disk."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-c", SCRIPT, str(port), str(connections), *proxies]
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, stderr=stderr)
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
        stderr.seek(0)
        assert stderr.read().decode() == ""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    yield from serve()


@pytest.fixture(scope="module")
def large_port() -> Iterator[int]:
    yield from serve(connections=512)


@pytest.fixture(scope="module")
def behind_proxy() -> Iterator[int]:
    yield from serve("127.0.0.0/8")


def closed_after(port: int, first: bytes, repeated: bytes = b"") -> float:
    """Seconds until a connection is closed that sends ``first``, then ``repeated`` ten times a second."""
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(first)
        connection.settimeout(0.1)
        while time.monotonic() - start < 15:
            try:
                if repeated:
                    connection.sendall(repeated)
                if not connection.recv(4096):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("first", "repeated"),
    [
        (b"", b""),
        (b"GET / HT", b""),
        (b"GET / HTTP/1.1\r\nHost: here\r\nX: ", b"x"),  # an endless header
        (b"GET / HTTP/1.1\r\nHost: here\r\n\r\nGET / HTTP/1.1\r\nX: ", b"x"),  # an endless second request
        # The answer to this one was sent long before:
        (b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000\r\n\r\n", b"x"),
    ],
)
def test_connections_without_a_complete_request_are_closed(port: int, first: bytes, repeated: bytes) -> None:
    assert 0.4 < closed_after(port, first, repeated) < 14


def test_a_slow_answer_is_not_cut_off(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
        assert [client.get("/slow").text, client.get("/").text] == ["done", "127.0.0.1"]


def test_number_of_connections_is_limited(port: int) -> None:
    connections = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(60)]
    time.sleep(0.3)
    n_closed = 0
    for connection in connections:
        connection.settimeout(0.01)
        try:
            n_closed += not connection.recv(1)
        except TimeoutError:
            pass
        except OSError:
            n_closed += 1
        connection.close()
    assert n_closed >= 40
    for _ in range(100):
        try:
            assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
            break
        except httpx.TransportError:
            time.sleep(0.1)
    else:
        pytest.fail("no answer after the flood")


@pytest.mark.slow
def test_two_hundred_slow_callers_do_not_block_others(large_port: int) -> None:
    connections = [socket.create_connection(("127.0.0.1", large_port), timeout=5) for _ in range(200)]
    try:
        for turn in range(5):
            for connection in connections:
                with contextlib.suppress(OSError):  # already closed after half a second
                    connection.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nX: " if not turn else b"x")
            answer = httpx.get(f"http://127.0.0.1:{large_port}/", trust_env=False, timeout=10)
            assert answer.status_code == 200
        assert all(map(is_closed, connections))
    finally:
        for connection in connections:
            connection.close()


def test_callers_that_do_not_read_are_disconnected(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        # Two requests: the second answer waits for the first.
        connection.sendall(2 * b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n")
        assert is_closed(connection)


def is_closed(connection: socket.socket) -> bool:
    """True if the other side closes the connection within ten seconds although its data are not read."""
    for _ in range(100):
        try:
            connection.sendall(b"x")
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_answers_are_sent_without_delay(port: int) -> None:
    """Otherwise each answer waits 40 ms until the caller acknowledges the previous packet."""
    assert httpx.get(f"http://127.0.0.1:{port}/delay", trust_env=False).text == "1"


HEAD = b"POST /read HTTP/1.1\r\nHost: here\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.mark.parametrize(
    "message",
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
def test_ambiguous_requests_are_refused(port: int, message: bytes) -> None:
    """A request whose end two servers could place differently is refused, and the connection is closed."""
    received = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        contextlib.suppress(OSError),
    ):
        connection.sendall(message + SMUGGLED)
        while chunk := connection.recv(4096):
            received += chunk
    assert received.startswith(b"HTTP/1.1 400 ") and received.count(b"HTTP/1.1") == 1


def test_forwarded_addresses_are_trusted_only_from_named_proxies(port: int, behind_proxy: int) -> None:
    headers = {"X-Forwarded-For": "198.51.100.7, 203.0.113.9"}
    addresses = [
        httpx.get(f"http://127.0.0.1:{service_port}/", headers=headers, trust_env=False).text
        for service_port in (port, behind_proxy)
    ]
    # Entries to the left of the proxy's own are only claims of the client.
    assert addresses == ["127.0.0.1", "203.0.113.9"]


def test_large_answers_are_complete(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
        assert [len(client.get("/large").content), client.get("/").text] == [10_000_000, "127.0.0.1"]


def test_invalid_bytes_after_an_answer_close_the_connection(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(CHUNKED.replace(b"/read", b"/"))
        received = connection.recv(4096)
        connection.sendall(b"no size of a chunk\r\n")
        with contextlib.suppress(OSError):
            while chunk := connection.recv(4096):
                received += chunk
    assert received.startswith(b"HTTP/1.1 200 ") and received.count(b"HTTP/1.1") == 1


def test_a_service_in_a_thread_leaves_signals_alone() -> None:
    """Only the main thread may handle them."""
    handlers = [signal.getsignal(signal.SIGTERM)]

    def serve_in_thread() -> None:
        with _handled(signal.SIGTERM, lambda *_: None):
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=serve_in_thread)
    thread.start()
    thread.join()
    assert handlers[0] == handlers[1]
    with _handled(signal.SIGTERM, signal.SIG_IGN):  # type: ignore[arg-type]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == handlers[0]
