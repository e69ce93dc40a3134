"""Galleries on a server: that of Milvus Lite and, where `pip install milvus` was run, Milvus standalone.

The package ``milvus`` holds the server itself, which starts in about 20 s; PyPI has 2.3.5 and no later one.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.gallery.conftest import calibration, near

from spherecf.errors import ModelError, StorageError
from spherecf.gallery import Gallery

Open = Callable[..., Gallery]

pytest.importorskip("pymilvus", reason="no Milvus client")

Server = tuple[str, "subprocess.Popen[bytes]"]

LITE = """
import sys
from milvus_lite.adapter.grpc.server import run_server
run_server(sys.argv[1], "127.0.0.1", int(sys.argv[2]))
"""


@pytest.fixture(params=["lite", pytest.param("standalone", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """URI and process of a server with no galleries."""
    yield from (lite if request.param == "lite" else standalone)(tmp_path)


def lite(folder: Path) -> Iterator[Server]:
    pytest.importorskip("milvus_lite", reason="no Milvus Lite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", LITE, str(folder / "data"), str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None and b"listening" in process.stdout.readline()
    yield f"http://127.0.0.1:{port}", process
    process.kill()
    process.communicate()


def standalone(folder: Path) -> Iterator[Server]:
    milvus = pytest.importorskip("milvus", reason="no Milvus server: pip install milvus==2.3.5")
    started = milvus.MilvusServer()
    started.set_base_dir(str(folder))
    started.start()
    yield f"http://127.0.0.1:{started.listen_port}", started.server_proc
    started.server_proc.kill()
    started.server_proc.wait()
    started.stop()


def enrol(gallery: Gallery, name: str, mu: np.ndarray, **how: bool) -> None:
    count = len(mu)
    media = [f"{name} {i} {mu[i, 0]}" for i in range(count)]
    gallery.enrol(name, mu, np.full(count, 400.0), media=media, sources=media, **how)


def test_the_same_verbs_and_two_writers(opened: Open, people: np.ndarray, server: Server) -> None:
    uri, process = server
    one, two = opened(uri, calibration=calibration()), opened(uri, calibration=calibration())
    enrol(one, "Ann", people[:1])
    enrol(two, "Bob", np.concatenate([people[1:2], near(people[1:2], 1)]))
    for gallery in (one, two):
        assert gallery.identify(near(people[:1], 1)[0], 300.0).identity == "Ann"
        assert gallery.identify(near(people[1:2], 2)[0], 300.0).identity == "Bob"
    enrol(one, "Bob", people[1:2], replace=True)
    enrol(two, "Ann", near(people[:1], 5), add=True)
    assert [(who.identity, who.images) for who in one.list()] == [("Ann", 2), ("Bob", 1)]
    assert two.remove("Bob") == 1 and one.identify(people[1], 300.0).answer == "unknown"
    assert one.info()["embedded"] is False and len(one) == 1
    with pytest.raises(ModelError):
        opened(uri, model="c" * 64)
    third = opened(uri)
    assert len(third) == 1
    process.kill()
    process.wait()
    begun = time.monotonic()
    with pytest.raises(StorageError, match=uri):
        Gallery.identify(third, people[0], 300.0)
    assert time.monotonic() - begun < 25


def test_candidates_of_the_servers_index(
    opened: Open, people: np.ndarray, server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("spherecf.gallery.search.MIN_APPROXIMATE", 5)
    gallery = opened(server[0])
    gallery.enrol_many([f"{i:02d}" for i in range(40)], people, np.full(40, 300.0))
    exact, near_by = (
        gallery.identify(people[7], 300.0, exact=how, top=3).candidates for how in (True, False)
    )
    assert [one.identity for one in exact] == [one.identity for one in near_by] and exact[0].identity == "07"


def test_a_server_that_is_not_there(opened: Open) -> None:
    begun = time.monotonic()
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:9"):
        opened("http://127.0.0.1:9", timeout=1.0)
    assert time.monotonic() - begun < 15
