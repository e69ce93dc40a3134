"""`spherecf serve`: refusals, messages, and a running service."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spherecf import serve
from spherecf.cli import app
from spherecf.cli.options import open_gallery
from spherecf.data import orl_faces
from spherecf.errors import MissingDependencyError, SpherecfError
from spherecf.models import load

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi", reason='no FastAPI: pip install "spherecf[serve]"')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0", "--no-token"], "loopback"),
        (["--no-token", "--token", "t" * 20], "cannot be used together"),
        (["--token", "short"], "16 ASCII"),
        (
            ["--trust-proxy", "::1", "--trust-proxy", "10.0.0/8"],
            "'10.0.0/8': expected an IP address or a net",
        ),
    ],
)
def test_unsafe_settings_are_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert isinstance(result.exception, SpherecfError) and message in str(result.exception)


def test_a_port_in_use_is_reported_and_the_gallery_closed(tmp_path: Path) -> None:
    path = tmp_path / "people.gallery"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        for options in ([], ["--gallery", str(path)]):
            result = CliRunner().invoke(app, ["serve", "--port", port, *options])
            assert isinstance(result.exception, SpherecfError)
            assert "choose another --port" in str(result.exception)
    with open_gallery(str(path), load(), create=False) as gallery:
        gallery.claim()  # refused if the command still held it


def test_the_printed_address_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spherecf.serve.run", lambda *_, **__: None)
    for host, address in (("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("192.0.2.1", "192.0.2.1")):
        output = CliRunner().invoke(app, ["serve", "--host", host, "--port", "8088"]).output
        assert f"http://{address}:8088/#token=" in output and f"http://{address}:8088/docs" in output


@pytest.mark.parametrize("given", ["a-token-of-the-administrator", ""])
def test_a_given_token_is_not_printed(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """In a container, stderr is a log that is kept. A random token is printed: nobody else knows it."""
    monkeypatch.setattr("spherecf.serve.run", lambda *_, **__: None)
    result = CliRunner().invoke(app, ["serve"], env={"SPHERECF_TOKEN": given})
    assert result.exit_code == 0 and "http://127.0.0.1:8080/" in result.output
    assert ("asks for your token" in result.output) == bool(given) != ("#token=" in result.output)
    assert not given or given not in result.output


def test_the_room_can_be_imported_without_fastapi(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys, spherecf.serve; assert not {'fastapi', 'uvicorn', 'starlette'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    script_without_fastapi = (
        "import sys; sys.modules['fastapi'] = None; import spherecf.serve as s; s.create_app(None)"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script_without_fastapi], capture_output=True, text=True, timeout=60
    )
    assert "MissingDependencyError" in completed.stderr and "spherecf[serve]" in completed.stderr
    monkeypatch.setitem(sys.modules, "spherecf.serve.app", None)  # as if an import in it failed
    with pytest.raises(MissingDependencyError, match=r"spherecf\[serve\]"):
        serve.run(None, "127.0.0.1", 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_service_starts_answers_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    """Start the service, use it at the printed URL, and end it; the token is printed only once."""
    with socket.create_server(("127.0.0.1", 0)) as probe_socket:
        port = probe_socket.getsockname()[1]
    gallery = str(tmp_path / "people")
    command = [sys.executable, "-m", "spherecf", "serve", "--port", str(port), "--gallery", gallery]
    environment = {key: value for key, value in os.environ.items() if key != "SPHERECF_TOKEN"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    match = re.search(r"(http://127\.0\.0\.1:\d+)/#token=([\w-]{43})\b", first)
    assert match, first
    address, token = match.groups()
    headers = {"Authorization": f"Bearer {token}"}
    for _ in range(100):
        try:
            if httpx.get(f"{address}/api/health", trust_env=False).status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.1)
    assert httpx.get(f"{address}/api/info", trust_env=False).status_code == 401
    info = httpx.get(f"{address}/api/info", headers=headers, trust_env=False)
    assert info.status_code == 200 and info.json()["gallery"] and "server" not in info.headers
    people = orl_faces()
    uploads = [("photos", (f"{row}.pgm", people.read(row))) for row in (10, 11, 12)]
    with httpx.Client(base_url=address, headers=headers, trust_env=False, timeout=60) as client:
        fields = {"identity": "Ada", "consent": "true"}
        enrolment = client.post("/api/gallery/identities", files=uploads, data=fields).json()
        assert (enrolment["identity"], enrolment["media"]) == ("Ada", 3)
        assert enrolment["sources"][0] == "10.pgm"
        probe = {"photo": ("who.pgm", people.read(13))}
        result = client.post("/api/gallery/identify", files=probe).json()
        assert result["candidates"][0]["identity"] == "Ada" and result["answer"] in (
            "identified",
            "undecided",
        )
        assert client.get("/api/gallery").status_code == 200
        assert client.delete("/api/gallery/identities/Ada").json() == {"identity": "Ada", "removed": 1}
        assert client.get("/api/gallery/identities").json() == {"identities": []}
        head = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n'
        body = iter([head, *[b"x" * 1_000_000] * 30])  # of unknown length
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        large = client.post("/api/quality", headers=form, content=body)
        assert large.status_code == 413 and "too large" in large.json()["error"]
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else 0)
    assert [path.name for path in tmp_path.iterdir()] == ["people"]  # closed: nothing is left in SQLite's log
    assert token not in out + err and "Traceback" not in err and out == ""
