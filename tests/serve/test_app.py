"""The HTTP interface of the service: answers, refusals, and stored data."""

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
from spherecf.errors import InputError, ModelError, StorageError
from spherecf.gallery import Candidate, Enrolled, Gallery, Identification
from spherecf.models import ConfidenceModel
from spherecf.photos import FaceAssessor
from spherecf.serve import create_app
from spherecf.serve.schemas import (
    Candidate as CandidateOut,
    Compared,
    Enrolled as EnrolledOut,
    Face,
    Identified,
    Photo,
    Template,
)

Json = dict[str, Any]


def send(client: TestClient, path: str, files: list[tuple[str, bytes]], **fields: Any) -> Any:
    uploads = [(name, (f"{name} {index}.png", content)) for index, (name, content) in enumerate(files)]
    return client.post(f"/api/{path}", files=uploads, data=fields)


def test_health_and_info(client: TestClient, assessor: FaceAssessor) -> None:
    assert client.get("/api/health", headers={"Authorization": ""}).json() == {"status": "ok"}
    info = client.get("/api/info").json()
    assert info["model"] == assessor.model.fingerprint() and info["backbone"] == "sface" and info["gallery"]
    assert info["default_max_fmr"] in info["max_fmrs"] and info["limits"]["max_files"] == 4
    assert client.get("/api/info", headers={"Authorization": ""}).status_code == 401


def test_quality_reports_all_faces(client: TestClient, people: IdentityFolder) -> None:
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
def test_a_bad_photo_is_reported_as_a_failure(client: TestClient, content: bytes, failure: str) -> None:
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


def test_compare_decides_and_explains(client: TestClient, people: IdentityFolder) -> None:
    a, b, other = (people.read(i) for i in (0, 3, 25))
    same = send(client, "compare", [("left", a), ("right", b)], max_fmr="0.01").json()
    assert same["decision"] in ("match", "undecided") and same["max_fmr"] == 0.01
    assert same["left"]["photo"] == "left 0.png" and same["right"]["faces"][0]["kappa"] > 0
    different = send(client, "compare", [("left", a), ("right", other)], max_fmr="0.01").json()
    assert different["decision"] != "match" and different["score"] < same["score"] and different["reason"]
    failed = send(client, "compare", [("left", a), ("right", b"nothing")]).json()
    assert failed["decision"] == "undecided" and failed["score"] is None and "right 1.png" in failed["reason"]


def test_template_reports_growth_and_duplicates(client: TestClient, people: IdentityFolder) -> None:
    photos = [("photos", people.read(i)) for i in (0, 2, 3)]
    template = send(client, "template", photos).json()
    assert template["grown"] == sorted(template["grown"])
    assert template["kappa"] == pytest.approx(template["grown"][-1])
    assert [photo["name"] for photo in template["photos"]] == [f"photos {i}.png" for i in range(3)]
    assert sum(photo["weight"] for photo in template["photos"]) == pytest.approx(1)
    with_copy = send(client, "template", [*photos, photos[0]]).json()
    assert with_copy["photos"][3]["same_as"] == "photos 0.png"
    assert with_copy["kappa"] == pytest.approx(template["kappa"])
    failed = send(client, "template", [("photos", b"x"), ("photos", b"")]).json()
    assert failed["kappa"] is None and all(photo["reason"] for photo in failed["photos"])


def test_enrol_identify_and_remove(client: TestClient, people: IdentityFolder) -> None:
    for name, first in (("Ada", 0), ("Émilie O'Neill-2", 10)):
        photos = [("photos", people.read(first + i)) for i in (0, 1, 2)] + [("photos", b"no picture")]
        enrolment = send(client, "gallery/identities", photos, identity=f" {name} ", consent="true")
        assert enrolment.status_code == 200
        assert (enrolment.json()["identity"], enrolment.json()["media"]) == (name, 3)
    listed_people = client.get("/api/gallery/identities").json()["identities"]
    assert [person["identity"] for person in listed_people] == ["Ada", "Émilie O'Neill-2"]
    result = send(client, "gallery/identify", [("photo", people.read(13))], top="1").json()
    assert result["answer"] == "identified"
    assert [person["identity"] for person in result["candidates"]] == [listed_people[1]["identity"]]
    assert result["photo"]["faces"]
    assert send(client, "gallery/identify", [("photo", people.read(200))]).json()["answer"] == "unknown"
    assert send(client, "gallery/identify", [("photo", b"x")]).json()["answer"] == "undecided"
    info = client.get("/api/gallery").json()
    assert (info["identities"], info["images"]) == (2, 6) and "secret" not in str(info)
    removed = client.delete("/api/gallery/identities/%C3%89milie%20O'Neill-2")
    assert removed.json() == {"identity": "Émilie O'Neill-2", "removed": 1}
    missing = client.delete("/api/gallery/identities/Nobody")
    assert missing.status_code == 404 and missing.json() == {"error": "No person with this name is enrolled."}
    assert len(client.get("/api/gallery/identities").json()["identities"]) == 1


def test_enrolment_needs_consent(client: TestClient, people: IdentityFolder) -> None:
    photos = [("photos", people.read(0))]
    for consent in ({}, {"consent": "false"}, {"consent": ""}, {"consent": "perhaps"}):
        refused = send(client, "gallery/identities", photos, identity="Ada", **consent)
        assert refused.status_code == 422 and "consent" in refused.json()["error"]
    assert send(client, "gallery/identities", photos, identity="Ada", consent="true").status_code == 200
    repeated = send(client, "gallery/identities", photos, identity="Ada", consent="true")
    assert repeated.status_code == 422 and "already" in repeated.json()["error"]
    replaced = send(client, "gallery/identities", photos, identity="Ada", consent="true", replace="true")
    assert replaced.status_code == 200
    faceless = send(client, "gallery/identities", [("photos", b"x")], identity="Bob", consent="true")
    assert faceless.status_code == 422 and "No photo shows a usable face" in faceless.json()["error"]
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
def test_invalid_names_are_refused(client: TestClient, people: IdentityFolder, name: str) -> None:
    refused = send(client, "gallery/identities", [("photos", people.read(0))], identity=name, consent="true")
    assert refused.status_code == 422 and "identity" in refused.json()["error"]


@pytest.mark.parametrize(
    ("path", "files", "fields", "message"),
    [
        ("quality", [], {"x": "1"}, "'photo' is missing"),
        ("compare", ["left"], {}, "'right' is missing"),
        ("compare", ["left", "right"], {"max_fmr": "2"}, "max_fmr"),
        ("compare", ["left", "right"], {"max_fmr": "0.5"}, "there are"),
        ("compare", ["left", "right"], {"max_fmr": "lots"}, "max_fmr"),
        ("compare", ["left", "right"], {"fmr": "0.01"}, "fmr: is not a field of this form: expected max_fmr"),
        ("gallery/identify", ["photo"], {"top": "0"}, "top"),
        ("template", ["photos"] * 5, {}, "at most 4"),
    ],
)
def test_invalid_requests_are_explained(
    client: TestClient, people: IdentityFolder, path: str, files: list[str], fields: Json, message: str
) -> None:
    refused = send(client, path, [(name, people.read(0)) for name in files], **fields)
    assert refused.status_code in (413, 415, 422) and list(refused.json()) == ["error"]
    assert message in refused.json()["error"] or (not files and "form" in refused.json()["error"])


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml", "/..%2f..%2fpyproject.toml", "/%2e%2e/%2e%2e/etc/passwd", "/page/index.html",
        "/static/app.js", "/app.js/", "/x//app.js", "/etc/passwd", "/app.js%00", "/_static.py", "/redoc",
        "/api/gallery/identities/..%2f..%2fx",
    ],
)  # fmt: skip
def test_other_paths_are_refused(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (404, 405) and list(answer.json()) == ["error"]
    assert client.delete("/api/gallery/identities/..%2fx").status_code in (404, 405, 422)


def test_a_wrong_method_lists_the_allowed_ones(client: TestClient) -> None:
    allowed = {"/api/gallery/identities": {"GET", "POST"}, "/api/quality": {"POST"}, "/": {"GET"}}
    for path, methods in allowed.items():
        answer = client.put(path)
        assert answer.status_code == 405 and set(answer.headers["allow"].split(", ")) == methods


def test_head_is_answered_as_get_without_the_body(client: TestClient) -> None:
    for path in (
        "/",
        "/docs",
        "/api/health",
        "/api/info",
        "/api/gallery/identities",
        "/missing",
        "/api/quality",
    ):
        head, get = client.head(path), client.get(path)
        assert head.status_code == get.status_code and not head.content and get.content, path
        assert head.headers == get.headers


def test_pages_fetch_nothing_from_other_sites(client: TestClient) -> None:
    for path in ("/", "/style.css", "/app.js", "/service.js", "/faces.js", "/views.js", "/icon.svg", "/docs"):
        answer = client.get(path, headers={"Authorization": ""})
        assert answer.status_code == 200, path
        urls = set(re.findall(r"(?:https?:)?//[\w.-]+", re.sub(r"(?m)^\s*//.*| // .*", "", answer.text)))
        assert urls <= {"http://www.w3.org"}, path
        assert "style=" not in answer.text.replace("--", "") and "onclick=" not in answer.text
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"


def test_the_api_documentation_is_complete(client: TestClient) -> None:
    api = client.get("/api/openapi.json").json()
    page = client.get("/docs").text
    assert len(api["paths"]) == 9 and 'href="/api/openapi.json"' in page and "<script" not in page
    for path, verbs in api["paths"].items():
        for operation in verbs.values():
            assert operation["description"] and "200" in operation["responses"]
            if path != "/api/health":
                shape = operation["responses"]["401"]["content"]["application/json"]["schema"]
                assert shape == {"$ref": "#/components/schemas/Problem"}
                assert operation["security"] == [{"HTTPBearer": []}]
                assert {"400", "403", "408", "413", "415", "421", "422", "429", "503"} <= set(
                    operation["responses"]
                )
    form = api["paths"]["/api/compare"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["left", "right"] and list(form["properties"]) == ["left", "right", "max_fmr"]


def test_schemas_have_all_fields_of_the_python_api(assessor: FaceAssessor, people: IdentityFolder) -> None:
    """The response schemas have the same fields as the results of the Python functions."""
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
    assert {field.name for field in fields(Identification)} == Identified.model_fields.keys() - {"photo"}
    assert {field.name for field in fields(Candidate)} == CandidateOut.model_fields.keys()
    assert {field.name for field in fields(Enrolled)} == EnrolledOut.model_fields.keys()
    member = Template.model_fields["photos"].annotation.__args__[0]  # type: ignore[union-attr]
    assert template["photos"][0].keys() == member.model_fields.keys() - {"ticket"}


class BrokenGallery(MemoryGallery):
    """Fails with a storage error and with a bug."""

    def list(self) -> Any:
        raise StorageError("/secret/path: disk full")

    def info(self) -> Any:
        raise RuntimeError("secret detail")


@pytest.fixture
def broken(assessor: FaceAssessor) -> Iterator[TestClient]:
    app = create_app(assessor, BrokenGallery())
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as client:
        yield client


def test_failures_reveal_no_details_to_callers(broken: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        storage = broken.get("/api/gallery/identities")
        bug = broken.get("/api/gallery")
    assert (
        storage.status_code == 503 and "secret" not in storage.text and "gallery" in storage.json()["error"]
    )
    assert bug.status_code == 500 and "secret" not in bug.text and "Traceback" not in bug.text
    reference = re.search(r"under (\w+)", bug.json()["error"])
    assert reference and reference[1] in caplog.text and "secret detail" in caplog.text
    assert bug.headers["x-content-type-options"] == "nosniff"


def test_gallery_requests_without_a_gallery_are_refused(assessor: FaceAssessor) -> None:
    with TestClient(create_app(assessor), base_url=HERE) as client:
        answer = client.get("/api/gallery")
        assert answer.status_code == 409 and "--gallery" in answer.json()["error"]
        assert client.get("/api/info").json()["gallery"] is False


def test_a_model_without_calibration_is_refused(assessor: FaceAssessor) -> None:
    model = assessor.model
    bare = ConfidenceModel(model.backbone, model.head, model.radius)
    with pytest.raises(InputError, match="calibrated model"):
        create_app(FaceAssessor(bare, assessor.detector))


def test_a_gallery_of_another_model_is_refused(assessor: FaceAssessor, tmp_path: Path) -> None:
    with (
        Gallery.open(tmp_path / "people", model="f" * 64, dim=128, radius=64.0) as people,
        pytest.raises(ModelError, match="belongs to the model ffff"),
    ):
        create_app(assessor, people)


def test_photos_are_neither_written_to_disk_nor_logged(
    client: TestClient, people: IdentityFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    import builtins
    import tempfile

    opened: list[Any] = []

    def recording_open(
        file: Any, mode: str = "r", *arguments: Any, real: Any = builtins.open, **options: Any
    ) -> Any:
        if any(flag in mode for flag in "wax+"):
            opened.append(file)
        return real(file, mode, *arguments, **options)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(builtins, "open", recording_open)
    large = png(people.image(0), 8.0)
    noisy = people.image(0).repeat(8, 0).repeat(8, 1)
    noisy = (noisy + np.random.default_rng(0).integers(0, 20, noisy.shape)).clip(0, 255).astype(np.uint8)
    assert len(png(noisy)) > 1 << 20  # larger than the usual in-memory buffer of uploads
    with caplog.at_level(logging.DEBUG):
        assert send(client, "quality", [("photo", png(noisy))]).json()["faces"]
        enrolment = send(client, "gallery/identities", [("photos", large)], identity="Ada", consent="true")
        assert enrolment.status_code == 200
    assert opened == [] and list(tmp_path.iterdir()) == []
    assert TOKEN not in caplog.text and "Ada" not in caplog.text
