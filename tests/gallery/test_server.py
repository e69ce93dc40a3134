"""Galleries on a server: Milvus Lite and, where `pip install milvus` was run, Milvus standalone.

The package ``milvus`` contains the server, which starts in about 20 s; its last version on PyPI is 2.3.5.
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

from spherecf.errors import InputError, ModelError, StorageError
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
    """URI and process of a server without galleries."""
    yield from (lite if request.param == "lite" else standalone)(tmp_path)


def lite(folder: Path) -> Iterator[Server]:
    pytest.importorskip("milvus_lite", reason="no Milvus Lite")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
    milvus_server = milvus.MilvusServer()
    milvus_server.set_base_dir(str(folder))
    milvus_server.start()
    yield f"http://127.0.0.1:{milvus_server.listen_port}", milvus_server.server_proc
    milvus_server.server_proc.kill()
    milvus_server.server_proc.wait()
    milvus_server.stop()


def enrol(gallery: Gallery, name: str, mu: np.ndarray, **options: bool) -> None:
    count = len(mu)
    media = [f"{name} {i} {mu[i, 0]}" for i in range(count)]
    gallery.enrol(name, mu, np.full(count, 400.0), media=media, sources=media, **options)


def test_two_clients_share_a_gallery(opened: Open, people: np.ndarray, server: Server) -> None:
    uri, process = server
    first, second = opened(uri, calibration=calibration()), opened(uri, calibration=calibration())
    enrol(first, "Ann", people[:1])
    enrol(second, "Bob", np.concatenate([people[1:2], near(people[1:2], 1)]))
    for gallery in (first, second):
        assert gallery.identify(near(people[:1], 1)[0], 300.0).identity == "Ann"
        assert gallery.identify(near(people[1:2], 2)[0], 300.0).identity == "Bob"
    enrol(first, "Bob", people[1:2], replace=True)
    enrol(second, "Ann", near(people[:1], 5), add=True)
    assert [(person.identity, person.images) for person in first.list()] == [("Ann", 2), ("Bob", 1)]
    assert second.remove("Bob") == 1 and first.identify(people[1], 300.0).answer == "unknown"
    assert first.info()["embedded"] is False and len(first) == 1
    with pytest.raises(ModelError):
        opened(uri, model="c" * 64)
    third = opened(uri)
    assert len(third) == 1
    with pytest.raises(InputError, match="a gallery on a server cannot store rules; use a model that has"):
        third.keep_rules(calibration())
    process.kill()
    process.wait()
    start = time.monotonic()
    with pytest.raises(StorageError, match=uri):
        Gallery.identify(third, people[0], 300.0)
    assert time.monotonic() - start < 25


def test_approximate_search_finds_the_exact_candidates(
    opened: Open, people: np.ndarray, server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("spherecf.gallery.search.MIN_APPROXIMATE", 5)
    gallery = opened(server[0])
    gallery.enrol_many([f"{i:02d}" for i in range(40)], people, np.full(40, 300.0))
    exact, approximate = (
        gallery.identify(people[7], 300.0, exact=is_exact, top=3).candidates for is_exact in (True, False)
    )
    exact_names, approximate_names = (
        [match.identity for match in candidates] for candidates in (exact, approximate)
    )
    assert exact_names == approximate_names and exact_names[0] == "07"


def test_an_unreachable_server_is_reported(opened: Open) -> None:
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:9"):
        opened("http://127.0.0.1:9", timeout=1.0)
    assert time.monotonic() - start < 15
