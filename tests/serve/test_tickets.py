"""Tickets replace photos that the service has assessed: same answers, and no forged ticket is accepted."""

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tests.serve.conftest import HERE, TOKEN, MemoryGallery

from spherecf.data import IdentityFolder
from spherecf.photos import FaceAssessor
from spherecf.serve import create_app

Part = tuple[str, bytes]


@pytest.fixture
def photos(people: IdentityFolder) -> list[Part]:
    """Two photos of one person, a copy, and a photo of another person."""
    rows = (("a", 0), ("b", 1), ("copy", 0), ("stranger", 25))
    return [(f"{name}.pgm", people.read(row)) for name, row in rows]


def post(client: TestClient, path: str, parts: list[Part], **fields: str) -> Any:
    return client.post(f"/api/{path}", files=[("photos", part) for part in parts], data=fields)


def tickets_of(client: TestClient, parts: list[Part]) -> list[Part]:
    """The same names with tickets instead of photos."""
    results = post(client, "template", parts, tickets="true").json()["photos"]
    return [(name, result["ticket"].encode()) for (name, _), result in zip(parts, results, strict=True)]


def test_templates_from_tickets_are_equal(client: TestClient, photos: list[Part]) -> None:
    expected = post(client, "template", photos).json()
    assert {photo["ticket"] for photo in expected["photos"]} == {None}  # tickets are sent only on request
    assert expected["photos"][2]["same_as"] == "a.pgm" and expected["photos"][3]["stranger"]
    tickets = tickets_of(client, photos)
    assert post(client, "template", tickets).json() == expected
    with_newline = [(name, ticket + b"\n") for name, ticket in tickets]
    assert post(client, "template", with_newline).json() == expected
    mixed = post(client, "template", [tickets[0], photos[1], tickets[2], photos[3]]).json()
    assert mixed["kappa"] == pytest.approx(expected["kappa"], rel=1e-5)  # the recogniser ran on another batch
    assert [photo["same_as"] for photo in mixed["photos"]] == [None, None, "a.pgm", None]
    assert mixed["pooled"] == expected["pooled"] and mixed["photos"][3]["stranger"]
    renamed = post(client, "template", [("other.pgm", tickets[0][1])]).json()
    assert renamed["pooled"] == ["other.pgm"] and not any("pgm" in ticket.decode() for _, ticket in tickets)


def test_photos_with_tickets_are_not_assessed_again(
    client: TestClient, photos: list[Part], assessed: list[str]
) -> None:
    tickets = tickets_of(client, photos[:2])
    assessed.clear()
    assert post(client, "template", tickets).json()["kappa"] > 0 and assessed == []
    assert post(client, "template", [*tickets, photos[3]]).json()["kappa"] > 0
    assert assessed == ["stranger.pgm"]


def test_a_photo_without_a_face_has_a_ticket(client: TestClient) -> None:
    unusable = [("empty.jpg", b""), ("text.txt", b"This is text.")]
    expected = post(client, "template", unusable).json()
    assert expected["kappa"] is None and all(photo["reason"] for photo in expected["photos"])
    assert post(client, "template", tickets_of(client, unusable)).json() == expected


def test_enrolments_from_tickets_are_equal(assessor: FaceAssessor, photos: list[Part]) -> None:
    gallery = MemoryGallery()
    app, headers = create_app(assessor, gallery, token=TOKEN), {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(app, base_url=HERE, headers=headers) as client:
        parts_by_name = {"Ada": photos[:3], "Bob": tickets_of(client, photos[:3])}
        from_photos, from_tickets = (
            post(client, "gallery/identities", parts, identity=name, consent="true").json()
            for name, parts in parts_by_name.items()
        )
    for key in ("media", "kappa", "sources"):
        assert from_photos[key] == from_tickets[key]
    assert from_photos["media"] == 2 and from_photos["sources"] == ["a.pgm", "b.pgm", "copy.pgm"]
    assert np.array_equal(gallery.people["Ada"].mu, gallery.people["Bob"].mu)


def test_forged_and_foreign_tickets_are_refused(
    assessor: FaceAssessor, client: TestClient, photos: list[Part]
) -> None:
    ((name, ticket),) = tickets_of(client, photos[:1])
    with TestClient(create_app(assessor, token=TOKEN), base_url=HERE, headers=client.headers) as restarted:
        foreign = restarted.post("/api/template", files=[("photos", (name, ticket))])
    head, signature, content = ticket.split(b":", 2)
    forged = [
        ticket.replace(b"[", b"[ ", 1), ticket[:-1], ticket + b" ", head + b":", head + b":" + signature,
        head + b"::" + content, b":".join([head, signature.upper(), content]),
        b":".join([head, b"0" * 64, content]), b":".join([head, "ü".encode(), content]),
    ]  # fmt: skip
    answers = [
        post(client, path, [(name, forgery)], **fields) for path, fields in REQUESTS for forgery in forged
    ]
    for answer in (foreign, *answers):
        assert answer.status_code == 410 and "send the photo" in answer.json()["error"]
    other_request = client.post("/api/quality", files={"photo": (name, ticket)})
    assert other_request.status_code == 200 and other_request.json()["failure"] == "not_an_image"


REQUESTS: list[tuple[str, dict[str, str]]] = [
    ("template", {}),
    ("gallery/identities", {"identity": "Ada", "consent": "true"}),
]
