"""Tickets stand for photos that the service has seen: the same answers, and no ticket can be made up."""

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
    """One person, a copy, somebody else."""
    rows = (("a", 0), ("b", 1), ("copy", 0), ("stranger", 25))
    return [(f"{name}.pgm", people.read(row)) for name, row in rows]


def ask(client: TestClient, path: str, parts: list[Part], **fields: str) -> Any:
    return client.post(f"/api/{path}", files=[("photos", part) for part in parts], data=fields)


def tickets_of(client: TestClient, parts: list[Part]) -> list[Part]:
    """The same names, with tickets instead of photos."""
    found = ask(client, "template", parts, tickets="true").json()["photos"]
    return [(name, one["ticket"].encode()) for (name, _), one in zip(parts, found, strict=True)]


def test_the_template_is_the_same(client: TestClient, photos: list[Part]) -> None:
    whole = ask(client, "template", photos).json()
    assert {one["ticket"] for one in whole["photos"]} == {None}  # unless asked for
    assert whole["photos"][2]["same_as"] == "a.pgm" and whole["photos"][3]["stranger"]
    tickets = tickets_of(client, photos)
    assert ask(client, "template", tickets).json() == whole
    ended = [(name, ticket + b"\n") for name, ticket in tickets]
    assert ask(client, "template", ended).json() == whole
    mixed = ask(client, "template", [tickets[0], photos[1], tickets[2], photos[3]]).json()
    assert mixed["kappa"] == pytest.approx(whole["kappa"], rel=1e-5)  # another batch of the recogniser
    assert [one["same_as"] for one in mixed["photos"]] == [None, None, "a.pgm", None]
    assert mixed["pooled"] == whole["pooled"] and mixed["photos"][3]["stranger"]
    renamed = ask(client, "template", [("other.pgm", tickets[0][1])]).json()
    assert renamed["pooled"] == ["other.pgm"] and not any("pgm" in ticket.decode() for _, ticket in tickets)


def test_what_was_seen_is_not_assessed_again(
    client: TestClient, photos: list[Part], assessed: list[str]
) -> None:
    tickets = tickets_of(client, photos[:2])
    assessed.clear()
    assert ask(client, "template", tickets).json()["kappa"] > 0 and assessed == []
    assert ask(client, "template", [*tickets, photos[3]]).json()["kappa"] > 0 and assessed == ["stranger.pgm"]


def test_a_photo_without_a_face_has_a_ticket(client: TestClient) -> None:
    nothing = [("empty.jpg", b""), ("text.txt", b"This is text.")]
    whole = ask(client, "template", nothing).json()
    assert whole["kappa"] is None and all(one["reason"] for one in whole["photos"])
    assert ask(client, "template", tickets_of(client, nothing)).json() == whole


def test_enrolment_is_the_same(assessor: FaceAssessor, photos: list[Part]) -> None:
    gallery = MemoryGallery()
    app, headers = create_app(assessor, gallery, token=TOKEN), {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(app, base_url=HERE, headers=headers) as client:
        sent = {"Ada": photos[:3], "Bob": tickets_of(client, photos[:3])}
        one, two = (
            ask(client, "gallery/identities", parts, identity=name, consent="true").json()
            for name, parts in sent.items()
        )
    assert (one["media"], one["kappa"], one["sources"]) == (two["media"], two["kappa"], two["sources"])
    assert one["media"] == 2 and one["sources"] == ["a.pgm", "b.pgm", "copy.pgm"]
    assert np.array_equal(gallery.people["Ada"].mu, gallery.people["Bob"].mu)


def test_only_its_own_tickets(assessor: FaceAssessor, client: TestClient, photos: list[Part]) -> None:
    ((name, ticket),) = tickets_of(client, photos[:1])
    with TestClient(create_app(assessor, token=TOKEN), base_url=HERE, headers=client.headers) as restarted:
        others = restarted.post("/api/template", files=[("photos", (name, ticket))])
    head, signature, content = ticket.split(b":", 2)
    forged = [
        ticket.replace(b"[", b"[ ", 1), ticket[:-1], ticket + b" ", head + b":", head + b":" + signature,
        head + b"::" + content, b":".join([head, signature.upper(), content]),
        b":".join([head, b"0" * 64, content]), b":".join([head, "ü".encode(), content]),
    ]  # fmt: skip
    answers = [ask(client, path, [(name, one)], **fields) for path, fields in ASKED for one in forged]
    for answer in (others, *answers):
        assert answer.status_code == 410 and "send the photo" in answer.json()["error"]
    elsewhere = client.post("/api/quality", files={"photo": (name, ticket)})
    assert elsewhere.status_code == 200 and elsewhere.json()["failure"] == "not_an_image"


ASKED: list[tuple[str, dict[str, str]]] = [
    ("template", {}),
    ("gallery/identities", {"identity": "Ada", "consent": "true"}),
]
