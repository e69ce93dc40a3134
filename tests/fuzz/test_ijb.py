"""IJB tables, groups, key files and journals: accepted IJB tables are unchanged after writing and reading."""

from pathlib import Path

import numpy as np
from tests.fuzz.harness import fuzz, write

from spherecf.data import read_groups, read_ijb, read_keys, write_ijb
from spherecf.errors import InputError
from spherecf.photos.files import Journal, PhotoFile

_FILES = {
    "face_tid_mid.txt": "1.jpg 1 10\n2.jpg 1 11\n3.jpg 2 12\n4.jpg 3 13\n5.jpg 4 14\n",
    "template_pair_label.txt": "1 2 1\n1 3 0\n4 2 0\n",
    "name_5pts_score.txt": "".join(f"{n}.jpg {' '.join(map(str, range(10)))} 0.{n}\n" for n in range(1, 6)),
    "1N_gallery_G1.csv": "TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,100,a.jpg\n1,100,b.jpg\n",
    "1N_probe_mixed.csv": "TEMPLATE_ID,SUBJECT_ID\n4,103\n2,100\n",
}
_SEPARATOR = b"\n=====\n"


@fuzz({"all": _SEPARATOR.join(text.encode() for text in _FILES.values())}, name="IJB tables")
def test_ijb(data: bytes) -> None:
    for name, text in zip(_FILES, [*data.split(_SEPARATOR), *[b""] * len(_FILES)]):
        path = write(f"ijb/ijbc_{name}", text)
        if not text:
            path.unlink()
    meta = read_ijb(write("ijb/x", b"").parent)
    try:
        reloaded = read_ijb(write_ijb(write("ijb_again/x", b"").parent, meta))
    except InputError:  # landmarks without scores, or scores without landmarks
        return
    assert reloaded.fingerprint() == meta.fingerprint()
    if meta.points is not None and reloaded.points is not None:
        assert np.array_equal(reloaded.points, meta.points)
    for path in write("ijb_again/x", b"").parent.iterdir():
        path.unlink()


@fuzz(
    {"people": b"subject,group\nAnn_Lee,A\nBo, Ray,B\n", "images": b"image,group\r\na/1.jpg,A\r\n"},
    name="group tables",
)
def test_groups(data: bytes) -> None:
    groups = read_groups(write("groups.csv", data))
    assert groups.groups and all(groups.groups) and all(groups.groups.values())


@fuzz({"keys": b"a/1.jpg\na\\2.jpg\r\nJos\xc3\xa9.jpg\n"}, name="key files")
def test_keys(data: bytes) -> None:
    assert all(read_keys(write("keys.txt", data)))


def _journal() -> dict[str, bytes]:
    path = write("journal.jsonl", b"")
    with Journal(path, "model") as journal:
        for name in ("a.jpg", "b\u00e9.jpg"):
            journal.add(PhotoFile(name, path, Path(name)), {"photo": name, "kappa": 1.5}, (name, 10, 5))
    return {"journal": path.read_bytes()}


@fuzz(_journal, name="quality journals")
def test_journals(data: bytes) -> None:
    path = write("journal.jsonl", data)
    photo, key = PhotoFile("new.jpg", path, Path("new.jpg")), ("new.jpg", 1, 2)
    with Journal(path, "model") as journal:
        journal.add(photo, {"photo": "new.jpg"}, key)
    assert Journal(path, "model").find(key) == {"photo": "new.jpg"}
