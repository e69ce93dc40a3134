"""`spherecf serve`: what it refuses, what it prints, and the service behind it as a process of its own."""

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

from spherecf.cli import app
from spherecf.data import orl_faces
from spherecf.errors import SpherecfError

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi", reason='no FastAPI: pip install "spherecf[serve]"')


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--host", "0.0.0.0", "--no-token"], "loopback"),
        (["--no-token", "--token", "t" * 20], "cannot be used together"),
        (["--token", "short"], "16 ASCII"),
    ],
)
def test_unsafe_settings_are_refused(words: list[str], says: str) -> None:
    ran = CliRunner().invoke(app, ["serve", *words])
    assert isinstance(ran.exception, SpherecfError) and says in str(ran.exception)


def test_a_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = CliRunner().invoke(app, ["serve", "--port", str(taken.getsockname()[1])])
    assert isinstance(ran.exception, SpherecfError) and "choose another --port" in str(ran.exception)


def test_the_room_needs_no_fastapi_to_be_imported() -> None:
    script = "import sys, spherecf.serve; assert not {'fastapi', 'uvicorn', 'starlette'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    missing = "import sys; sys.modules['fastapi'] = None; import spherecf.serve as s; s.create_app(None)"
    ran = subprocess.run([sys.executable, "-c", missing], capture_output=True, text=True, timeout=60)
    assert "MissingDependencyError" in ran.stderr and "spherecf[serve]" in ran.stderr


@pytest.mark.slow
def test_a_whole_life(tmp_path: Path) -> None:
    """Started, found by what it prints, asked, interrupted; the token is told to nobody else."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gallery = str(tmp_path / "people")
    command = [sys.executable, "-m", "spherecf", "serve", "--port", str(port), "--gallery", gallery]
    environment = {key: value for key, value in os.environ.items() if key != "SPHERECF_TOKEN"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    found = re.search(r"(http://127\.0\.0\.1:\d+)/#token=([\w-]{43})\b", first)
    assert found, first
    address, token = found.groups()
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
    enrolled = [("photos", (f"{row}.pgm", people.read(row))) for row in (10, 11, 12)]
    with httpx.Client(base_url=address, headers=headers, trust_env=False, timeout=60) as client:
        fields = {"identity": "Ada", "consent": "true"}
        done = client.post("/api/gallery/identities", files=enrolled, data=fields).json()
        assert done["identity"] == "Ada" and done["media"] == 3 and done["sources"][0] == "10.pgm"
        probe = {"photo": ("who.pgm", people.read(13))}
        found = client.post("/api/gallery/identify", files=probe).json()
        assert found["candidates"][0]["identity"] == "Ada" and found["answer"] in ("identified", "undecided")
        assert client.get("/api/gallery").status_code == 200
        assert client.delete("/api/gallery/identities/Ada").json() == {"identity": "Ada", "removed": 1}
        assert client.get("/api/gallery/identities").json() == {"identities": []}
        head = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n'
        body = iter([head, *[b"x" * 1_000_000] * 30])  # its length is not told
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        large = client.post("/api/quality", headers=form, content=body)
        assert large.status_code == 413 and "too large" in large.json()["error"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert token not in out + err and "Traceback" not in err and out == ""
