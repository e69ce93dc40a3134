"""What every request passes first."""

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


def test_the_page_is_open_and_the_rest_is_not() -> None:
    with client() as one:
        assert one.get("/").text == "done"
        for path in ("/api/work", "/api/nothing", "/api//work", "/x/%2e%2e/", "/index.html", "/docs/"):
            refused = one.get(path)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert "token" in refused.json()["error"]
        assert one.get("/api/work", headers=BEARER).text == "done"
        assert one.get("/api/work", headers={"Authorization": f"Bearer {TOKEN[:-1]}"}).status_code == 401
        assert one.get(f"/api/work?token={TOKEN}").status_code == 401  # addresses end up in logs


@pytest.mark.parametrize("path", ["/", "/api/work"])
def test_other_names_and_origins(path: str) -> None:
    with client(token="") as one:
        assert one.get(path).status_code == 200
        assert one.get(path, headers={"Host": "evil.example:8080"}).status_code == 421
        assert one.get(path, headers={"Host": ""}).status_code == 421
        crossed = one.post("/api/work", headers={"Origin": "http://evil.example"})
        assert crossed.status_code == 403 and "other sites" in crossed.json()["error"]
        assert one.post("/api/work", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert one.post("/api/work", headers={"Origin": HERE}).status_code == 200


def test_every_answer_has_the_headers() -> None:
    with client() as one:
        for answer in (one.get("/"), one.get("/api/work"), one.get("/", headers={"Host": "evil.example"})):
            assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert "access-control-allow-origin" not in {name.lower() for name in HEADERS}


def test_too_often() -> None:
    with client(burst=3, requests_per_minute=6.0) as one:
        codes = [one.get("/api/work").status_code for _ in range(5)]  # guessing the token counts, too
        assert codes == [401, 401, 401, 429, 429]
        refused = one.get("/api/work", headers=BEARER)
        assert 9 <= int(refused.headers["retry-after"]) <= 10 and "Too many" in refused.json()["error"]
        assert one.get("/").status_code == 200


@pytest.fixture
def busy() -> Iterator[tuple[TestClient, Event]]:
    free, begun = Event(), Event()

    def wait(request: Request) -> PlainTextResponse:
        begun.set()
        free.wait(10)
        return PlainTextResponse("done")

    app = Starlette(routes=[Route("/slow", wait, methods=["POST", "GET"])])
    guard = Guard(app, Access("", hosts_of("127.0.0.1")), Limits(max_pending=1), frozenset())
    with TestClient(guard, base_url=HERE) as one:
        thread = Thread(target=one.post, args=["/slow"])
        thread.start()
        assert begun.wait(10)
        yield one, free
        free.set()
        thread.join()


def test_too_many_at_once(busy: tuple[TestClient, Event]) -> None:
    one, free = busy
    refused = one.post("/slow")
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
    assert "busy" in refused.json()["error"]
    free.set()
    for _ in range(100):
        if (answer := one.post("/slow")).status_code == 200:
            break
    assert answer.text == "done"


def test_a_failure_gives_its_place_back() -> None:
    def fail(request: Request) -> PlainTextResponse:
        raise ValueError("broken")

    app = Starlette(routes=[Route("/", fail, methods=["POST"])])
    guard = Guard(app, Access("", hosts_of("127.0.0.1")), Limits(max_pending=1), frozenset())
    with TestClient(guard, base_url=HERE) as one:
        for _ in range(3):
            answer = one.post("/")
            assert answer.status_code == 500 and answer.headers["x-frame-options"] == "DENY"
            assert "broken" not in answer.text


def test_no_web_sockets() -> None:
    from starlette.websockets import WebSocketDisconnect

    with client() as one, pytest.raises(WebSocketDisconnect), one.websocket_connect("/"):
        pass
