"""The service as a caller meets it: answers, refusals, and what is kept."""

import logging
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tests.serve.conftest import HERE, TOKEN, MemoryGallery, png

from spherecf.data import IdentityFolder
from spherecf.errors import InputError, StorageError
from spherecf.gallery import Candidate, Enrolled, Identification
from spherecf.models import ConfidenceModel
from spherecf.photos import FaceAssessor
from spherecf.serve import create_app
from spherecf.serve.schemas import (
    Candidate as Nearby,
    Compared,
    Enrolled as Listed,
    Face,
    Identified,
    Photo,
    Template,
)

Shown = dict[str, Any]


def send(client: TestClient, path: str, files: list[tuple[str, bytes]], **fields: Any) -> Any:
    named = [(name, (f"{name} {place}.png", content)) for place, (name, content) in enumerate(files)]
    return client.post(f"/api/{path}", files=named, data=fields)


def test_health_and_info(client: TestClient, assessor: FaceAssessor) -> None:
    assert client.get("/api/health", headers={"Authorization": ""}).json() == {"status": "ok"}
    info = client.get("/api/info").json()
    assert info["model"] == assessor.model.fingerprint() and info["backbone"] == "sface" and info["gallery"]
    assert info["default_max_fmr"] in info["max_fmrs"] and info["limits"]["max_files"] == 4
    assert client.get("/api/info", headers={"Authorization": ""}).status_code == 401


def test_quality(client: TestClient, people: IdentityFolder) -> None:
    photo = send(client, "quality", [("photo", people.read(0))]).json()
    (face,) = photo["faces"]
    assert photo["size_px"] == [92, 112] and photo["failure"] is None
    x, y, width, height = face["box"]
    assert all(x < px < x + width and y < py < y + height for px, py in face["landmarks"])
    assert face["kappa"] > 0 and 0 <= face["percentile"] <= 100
    two = np.hstack([people.image(0), people.image(13)])
    assert len(send(client, "quality", [("photo", png(two, 2.0))]).json()["faces"]) == 2


@pytest.mark.parametrize(
    ("content", "failure"),
    [
        (b"", "empty"), (b"\0" * 200, "not_an_image"), (png(np.full((90, 90, 3), 200, np.uint8)), "no_face"),
        (png(np.zeros((300, 300, 3), np.uint8))[:150], "truncated"),
    ],
)  # fmt: skip
def test_a_bad_photo_is_an_answer(client: TestClient, content: bytes, failure: str) -> None:
    answer = send(client, "quality", [("photo", content)])
    assert answer.status_code == 200
    assert answer.json()["failure"] == failure and answer.json()["reason"] and answer.json()["faces"] == []


def test_a_decompression_bomb_is_refused_before_it_is_decoded(client: TestClient) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000_000)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    photo = send(client, "quality", [("photo", bomb)]).json()
    assert photo["failure"] == "too_large" and photo["faces"] == []


def test_compare(client: TestClient, people: IdentityFolder) -> None:
    a, b, other = (people.read(i) for i in (0, 3, 25))
    same = send(client, "compare", [("left", a), ("right", b)], max_fmr="0.01").json()
    assert same["decision"] in ("match", "undecided") and same["max_fmr"] == 0.01
    assert same["left"]["photo"] == "left 0.png" and same["right"]["faces"][0]["kappa"] > 0
    different = send(client, "compare", [("left", a), ("right", other)], max_fmr="0.01").json()
    assert different["decision"] != "match" and different["score"] < same["score"] and different["reason"]
    nothing = send(client, "compare", [("left", a), ("right", b"nothing")]).json()
    assert (
        nothing["decision"] == "undecided" and nothing["score"] is None and "right 1.png" in nothing["reason"]
    )


def test_a_template_grows(client: TestClient, people: IdentityFolder) -> None:
    photos = [("photos", people.read(i)) for i in (0, 2, 3)]
    found = send(client, "template", photos).json()
    assert found["grown"] == sorted(found["grown"]) and found["kappa"] == pytest.approx(found["grown"][-1])
    assert [one["name"] for one in found["photos"]] == [f"photos {i}.png" for i in range(3)]
    assert sum(one["weight"] for one in found["photos"]) == pytest.approx(1)
    again = send(client, "template", [*photos, photos[0]]).json()
    assert again["photos"][3]["same_as"] == "photos 0.png" and again["kappa"] == pytest.approx(found["kappa"])
    nothing = send(client, "template", [("photos", b"x"), ("photos", b"")]).json()
    assert nothing["kappa"] is None and all(one["reason"] for one in nothing["photos"])


def test_enrol_identify_and_remove(client: TestClient, people: IdentityFolder) -> None:
    for name, first in (("Ada", 0), ("Émilie O'Neill-2", 10)):
        photos = [("photos", people.read(first + i)) for i in (0, 1, 2)] + [("photos", b"no picture")]
        done = send(client, "gallery/identities", photos, identity=f" {name} ", consent="true")
        assert done.status_code == 200 and done.json()["identity"] == name and done.json()["media"] == 3
    listed = client.get("/api/gallery/identities").json()["identities"]
    assert [one["identity"] for one in listed] == ["Ada", "Émilie O'Neill-2"]
    found = send(client, "gallery/identify", [("photo", people.read(13))], top="1").json()
    assert found["answer"] == "identified" and [one["identity"] for one in found["candidates"]] == [
        listed[1]["identity"]
    ]
    assert found["photo"]["faces"]
    assert send(client, "gallery/identify", [("photo", people.read(200))]).json()["answer"] == "unknown"
    assert send(client, "gallery/identify", [("photo", b"x")]).json()["answer"] == "undecided"
    facts = client.get("/api/gallery").json()
    assert (facts["identities"], facts["images"]) == (2, 6) and "secret" not in str(facts)
    gone = client.delete("/api/gallery/identities/%C3%89milie%20O'Neill-2")
    assert gone.json() == {"identity": "Émilie O'Neill-2", "removed": 1}
    nobody = client.delete("/api/gallery/identities/Nobody")
    assert nobody.status_code == 404 and nobody.json() == {"error": "No person with this name is enrolled."}
    assert len(client.get("/api/gallery/identities").json()["identities"]) == 1


def test_nobody_is_enrolled_without_consent(client: TestClient, people: IdentityFolder) -> None:
    photos = [("photos", people.read(0))]
    for consent in ({}, {"consent": "false"}, {"consent": ""}, {"consent": "perhaps"}):
        refused = send(client, "gallery/identities", photos, identity="Ada", **consent)
        assert refused.status_code == 422 and "consent" in refused.json()["error"]
    assert send(client, "gallery/identities", photos, identity="Ada", consent="true").status_code == 200
    again = send(client, "gallery/identities", photos, identity="Ada", consent="true")
    assert again.status_code == 422 and "already" in again.json()["error"]
    more = send(client, "gallery/identities", photos, identity="Ada", consent="true", replace="true")
    assert more.status_code == 200
    none = send(client, "gallery/identities", [("photos", b"x")], identity="Bob", consent="true")
    assert none.status_code == 422 and "No photo shows a usable face" in none.json()["error"]
    assert len(client.get("/api/gallery/identities").json()["identities"]) == 1


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "../etc",
        "a/b",
        "a\\b",
        "a\nb",
        "a\0b",
        "<b>x</b>",
        "x" * 101,
        "...",
        "a;b",
        'a"b',
        "\u202eAda",
    ],
)
def test_names_that_nobody_has(client: TestClient, people: IdentityFolder, name: str) -> None:
    refused = send(client, "gallery/identities", [("photos", people.read(0))], identity=name, consent="true")
    assert refused.status_code == 422 and "identity" in refused.json()["error"]


@pytest.mark.parametrize(
    ("path", "files", "fields", "says"),
    [
        ("quality", [], {"x": "1"}, "'photo' is missing"),
        ("compare", ["left"], {}, "'right' is missing"),
        ("compare", ["left", "right"], {"max_fmr": "2"}, "max_fmr"),
        ("compare", ["left", "right"], {"max_fmr": "0.5"}, "there are"),
        ("compare", ["left", "right"], {"max_fmr": "lots"}, "max_fmr"),
        ("compare", ["left", "right"], {"fmr": "0.01"}, "fmr"),
        ("gallery/identify", ["photo"], {"top": "0"}, "top"),
        ("template", ["photos"] * 5, {}, "at most 4"),
    ],
)
def test_clear_refusals(
    client: TestClient, people: IdentityFolder, path: str, files: list[str], fields: Shown, says: str
) -> None:
    refused = send(client, path, [(name, people.read(0)) for name in files], **fields)
    assert refused.status_code in (413, 415, 422) and list(refused.json()) == ["error"]
    assert says in refused.json()["error"] or (not files and "form" in refused.json()["error"])


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml", "/..%2f..%2fpyproject.toml", "/%2e%2e/%2e%2e/etc/passwd", "/page/index.html",
        "/static/app.js", "/app.js/", "/x//app.js", "/etc/passwd", "/app.js%00", "/_static.py", "/redoc",
        "/api/gallery/identities/..%2f..%2fx",
    ],
)  # fmt: skip
def test_no_path_leads_anywhere_else(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (404, 405) and list(answer.json()) == ["error"]
    assert client.delete("/api/gallery/identities/..%2fx").status_code in (404, 405, 422)


def test_a_wrong_method_is_told_the_right_ones(client: TestClient) -> None:
    allowed = {"/api/gallery/identities": {"GET", "POST"}, "/api/quality": {"POST"}, "/": {"GET"}}
    for path, methods in allowed.items():
        answer = client.put(path)
        assert answer.status_code == 405 and set(answer.headers["allow"].split(", ")) == methods


def test_the_page_fetches_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/style.css", "/app.js", "/service.js", "/faces.js", "/views.js", "/icon.svg", "/docs"):
        answer = client.get(path, headers={"Authorization": ""})
        assert answer.status_code == 200, path
        named = set(re.findall(r"(?:https?:)?//[\w.-]+", re.sub(r"(?m)^\s*//.*| // .*", "", answer.text)))
        assert named <= {"http://www.w3.org"}, path
        assert "style=" not in answer.text.replace("--", "") and "onclick=" not in answer.text
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"


def test_the_documentation_is_whole(client: TestClient) -> None:
    api = client.get("/api/openapi.json").json()
    page = client.get("/docs").text
    assert len(api["paths"]) == 9 and 'href="/api/openapi.json"' in page and "<script" not in page
    for path, verbs in api["paths"].items():
        for one in verbs.values():
            assert one["description"] and "200" in one["responses"]
            if path != "/api/health":
                shape = one["responses"]["401"]["content"]["application/json"]["schema"]
                assert shape == {"$ref": "#/components/schemas/Problem"}
                assert one["security"] == [{"HTTPBearer": []}]
                assert {"400", "403", "408", "413", "415", "421", "422", "429", "503"} <= one[
                    "responses"
                ].keys()
    form = api["paths"]["/api/compare"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["left", "right"] and list(form["properties"]) == ["left", "right", "max_fmr"]


def test_answers_leave_nothing_out(assessor: FaceAssessor, people: IdentityFolder) -> None:
    """What the Python API says is what the service says."""
    from spherecf.photos import build_template, compare

    a, b = assessor(people.image(0), "a"), assessor(people.image(1), "b")
    calibration, radius = assessor.model.calibration, assessor.model.radius
    photo = a.to_dict()
    assert photo.keys() == Photo.model_fields.keys()
    assert photo["faces"][0].keys() | {"landmarks"} == Face.model_fields.keys()
    assert photo["faces"][0]["facts"].keys() == Face.model_fields["facts"].annotation.model_fields.keys()  # type: ignore[union-attr]
    compared = compare(a, b, calibration, radius=radius).to_dict()
    assert compared.keys() - {"photos"} == Compared.model_fields.keys() - {"left", "right"}
    template = build_template([a, b], calibration, radius=radius).to_dict()
    assert template.keys() == Template.model_fields.keys()
    assert {one.name for one in fields(Identification)} == Identified.model_fields.keys() - {"photo"}
    assert {one.name for one in fields(Candidate)} == Nearby.model_fields.keys()
    assert {one.name for one in fields(Enrolled)} == Listed.model_fields.keys()
    member = Template.model_fields["photos"].annotation.__args__[0]  # type: ignore[union-attr]
    assert template["photos"][0].keys() == member.model_fields.keys() - {"ticket"}


class Broken(MemoryGallery):
    """Fails as storage and as code do."""

    def list(self) -> Any:
        raise StorageError("/secret/place: disk full")

    def info(self) -> Any:
        raise RuntimeError("secret detail")


@pytest.fixture
def broken(assessor: FaceAssessor) -> Iterator[TestClient]:
    app = create_app(assessor, Broken())
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as one:
        yield one


def test_failures_say_little_to_callers(broken: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        storage = broken.get("/api/gallery/identities")
        code = broken.get("/api/gallery")
    assert (
        storage.status_code == 503 and "secret" not in storage.text and "gallery" in storage.json()["error"]
    )
    assert code.status_code == 500 and "secret" not in code.text and "Traceback" not in code.text
    reference = re.search(r"under (\w+)", code.json()["error"])
    assert reference and reference[1] in caplog.text and "secret detail" in caplog.text
    assert code.headers["x-content-type-options"] == "nosniff"


def test_without_a_gallery(assessor: FaceAssessor) -> None:
    with TestClient(create_app(assessor), base_url=HERE) as one:
        answer = one.get("/api/gallery")
        assert answer.status_code == 409 and "--gallery" in answer.json()["error"]
        assert one.get("/api/info").json()["gallery"] is False


def test_a_model_without_calibration_is_refused(assessor: FaceAssessor) -> None:
    model = assessor.model
    bare = ConfidenceModel(model.backbone, model.head, model.radius)
    with pytest.raises(InputError, match="calibrated model"):
        create_app(FaceAssessor(bare, assessor.detector))


def test_nothing_is_written_and_nothing_logged(
    client: TestClient, people: IdentityFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    import builtins
    import tempfile

    written: list[Any] = []

    def watch(file: Any, mode: str = "r", *more: Any, real: Any = builtins.open, **options: Any) -> Any:
        if any(sign in mode for sign in "wax+"):
            written.append(file)
        return real(file, mode, *more, **options)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(builtins, "open", watch)
    large = png(people.image(0), 8.0)
    noisy = people.image(0).repeat(8, 0).repeat(8, 1)
    noisy = (noisy + np.random.default_rng(0).integers(0, 20, noisy.shape)).clip(0, 255).astype(np.uint8)
    assert len(png(noisy)) > 1 << 20  # beyond what is spooled in memory elsewhere
    with caplog.at_level(logging.DEBUG):
        assert send(client, "quality", [("photo", png(noisy))]).json()["faces"]
        done = send(client, "gallery/identities", [("photos", large)], identity="Ada", consent="true")
        assert done.status_code == 200
    assert written == [] and list(tmp_path.iterdir()) == []
    assert TOKEN not in caplog.text and "Ada" not in caplog.text
