"""The guard that every request passes first: token, host, origin, headers and limits."""

from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from spherecf.serve import Limits, hosts_of
from spherecf.serve.access import Access
from spherecf.serve.guard import HEADERS, Guard

TOKEN = "a-token-that-is-long-enough"
HERE = "http://127.0.0.1:8080"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def client(token: str = TOKEN, **limits: Any) -> TestClient:
    def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("done")

    routes = [Route(path, answer, methods=["GET", "POST", "DELETE"]) for path in ("/", "/api/work")]
    guard = Guard(
        Starlette(routes=routes), Access(token, hosts_of("127.0.0.1")), Limits(**limits), frozenset({"/"})
    )
    return TestClient(guard, base_url=HERE)


def test_only_the_page_is_open_without_a_token() -> None:
    with client() as caller:
        assert caller.get("/").text == "done"
        for path in ("/api/work", "/api/nothing", "/api//work", "/x/%2e%2e/", "/index.html", "/docs/"):
            refused = caller.get(path)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert "token" in refused.json()["error"]
        assert caller.get("/api/work", headers=BEARER).text == "done"
        assert caller.get("/api/work", headers={"Authorization": f"Bearer {TOKEN[:-1]}"}).status_code == 401
        assert caller.get(f"/api/work?token={TOKEN}").status_code == 401  # URLs end up in logs


@pytest.mark.parametrize("path", ["/", "/api/work"])
def test_other_host_names_and_origins_are_refused(path: str) -> None:
    with client(token="") as caller:
        assert caller.get(path).status_code == 200
        assert caller.get(path, headers={"Host": "evil.example:8080"}).status_code == 421
        assert caller.get(path, headers={"Host": ""}).status_code == 421
        refused = caller.post("/api/work", headers={"Origin": "http://evil.example"})
        assert refused.status_code == 403 and "other sites" in refused.json()["error"]
        assert caller.post("/api/work", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert caller.post("/api/work", headers={"Origin": HERE}).status_code == 200


def test_every_answer_has_the_security_headers() -> None:
    with client() as caller:
        refused = caller.get("/", headers={"Host": "evil.example"})
        for answer in (caller.get("/"), caller.get("/api/work"), refused):
            assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert "access-control-allow-origin" not in {name.lower() for name in HEADERS}


def test_too_many_requests_are_refused() -> None:
    with client(burst=3, requests_per_minute=6.0) as caller:
        codes = [caller.get("/api/work").status_code for _ in range(5)]  # wrong tokens count too
        assert codes == [401, 401, 401, 429, 429]
        refused = caller.get("/api/work", headers=BEARER)
        assert 9 <= int(refused.headers["retry-after"]) <= 10 and "Too many" in refused.json()["error"]
        assert caller.get("/").status_code == 200


@pytest.fixture
def busy() -> Iterator[tuple[TestClient, Event]]:
    release, started = Event(), Event()

    def wait(request: Request) -> PlainTextResponse:
        started.set()
        release.wait(10)
        return PlainTextResponse("done")

    app = Starlette(routes=[Route("/slow", wait, methods=["POST", "GET"])])
    guard = Guard(app, Access("", hosts_of("127.0.0.1")), Limits(max_pending=1), frozenset())
    with TestClient(guard, base_url=HERE) as caller:
        thread = Thread(target=caller.post, args=["/slow"])
        thread.start()
        assert started.wait(10)
        yield caller, release
        release.set()
        thread.join()


def test_too_many_concurrent_requests_are_refused(busy: tuple[TestClient, Event]) -> None:
    caller, release = busy
    refused = caller.post("/slow")
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
    assert "busy" in refused.json()["error"]
    release.set()
    for _ in range(100):
        if (answer := caller.post("/slow")).status_code == 200:
            break
    assert answer.text == "done"


def test_a_failed_request_releases_its_slot() -> None:
    def fail(request: Request) -> PlainTextResponse:
        raise ValueError("broken")

    app = Starlette(routes=[Route("/", fail, methods=["POST"])])
    guard = Guard(app, Access("", hosts_of("127.0.0.1")), Limits(max_pending=1), frozenset())
    with TestClient(guard, base_url=HERE) as caller:
        for _ in range(3):
            answer = caller.post("/")
            assert answer.status_code == 500 and answer.headers["x-frame-options"] == "DENY"
            assert "broken" not in answer.text


def test_web_sockets_are_refused() -> None:
    from starlette.websockets import WebSocketDisconnect

    with client() as caller, pytest.raises(WebSocketDisconnect), caller.websocket_connect("/"):
        pass
