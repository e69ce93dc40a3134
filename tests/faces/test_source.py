import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.conformance.sources import ImageSourceConformance

from spherecf.data import IdentityFolder, ImageError, ImageSource, iter_images, open_source, orl_faces
from spherecf.errors import InputError
from spherecf.faces import ARCFACE_POINTS, AlignedFaces, FaceDetector
from spherecf.faces.detection import Face, find_faces


class TestAlignedFaces(ImageSourceConformance):
    @pytest.fixture
    def source(self) -> ImageSource:
        return AlignedFaces(orl_faces().subset([0, 14, 25, 399]))


def find_face(photo: np.ndarray, detector: FaceDetector) -> Face | None:
    return next(iter(find_faces(photo, detector)), None)


def orl(index: int) -> np.ndarray:
    return orl_faces().image(index)


def photos(folder: Path, **images: np.ndarray | bytes) -> IdentityFolder:
    for name, image in images.items():
        path = folder / "photos" / "someone" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, np.ndarray):
            image = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
        path.write_bytes(image)
    return IdentityFolder(folder / "photos")


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of the inner face, in grey levels."""
    inner = (slice(30, 90), slice(30, 82))
    return float(np.abs(first[inner].astype(int) - second[inner]).mean())


@pytest.mark.slow
def test_every_orl_face_is_found() -> None:
    """All 92x112 images are found after enlarging and padding, with the eyes at their place."""
    source, detector = orl_faces(), FaceDetector()
    faces = AlignedFaces(source, detector)
    crops = [batch.images for batch in iter_images(faces)]
    assert sum(map(len, crops)) == 400 and faces.labels.tolist() == source.labels.tolist()
    for crop in np.concatenate(crops)[::8]:
        face = find_face(crop, detector)
        assert face is not None and np.abs(face.landmarks - ARCFACE_POINTS).max() < 10


def test_an_upside_down_face_is_refused_with_the_reason(tmp_path: Path) -> None:
    faces = AlignedFaces(photos(tmp_path, up=orl(0), down=np.rot90(orl(0), 2)))
    assert faces.image(faces.keys.index("someone/up.jpg")).shape == (112, 112, 3)
    with pytest.raises(ImageError, match="upside down"):
        faces.image(faces.keys.index("someone/down.jpg"))


def test_landmarks_at_one_point_are_a_failure_to_acquire(tmp_path: Path) -> None:
    class Confused(FaceDetector):
        def __call__(self, image: np.ndarray) -> list[Face]:
            return [Face((9.0, 9.0, 50.0, 50.0), np.full((5, 2), 30.0), 0.99)]

    with pytest.raises(ImageError, match=r"cannot be aligned: expected five distinct finite landmarks"):
        AlignedFaces(photos(tmp_path, up=orl(0)), Confused()).image(0)


@pytest.mark.parametrize("scale", [0.6, 3, 12])
def test_small_and_large_photos_give_the_same_landmarks(scale: float) -> None:
    expected = find_face(orl(0), FaceDetector())
    photo = cv2.resize(
        orl(0), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    )
    face = find_face(photo, FaceDetector())
    assert expected is not None and face is not None
    # relative to a width of 92 px
    assert np.abs((face.landmarks + 0.5) / scale - 0.5 - expected.landmarks).max() < 7


def test_a_small_face_in_a_large_photo_is_found() -> None:
    scene = np.full((1500, 1500, 3), 90, np.uint8)
    scene[1200:1256, 300:346] = cv2.resize(orl(0), (46, 56), interpolation=cv2.INTER_AREA)
    face = find_face(scene, FaceDetector())
    assert face is not None and 300 < face.landmarks[2, 0] < 346 and 1200 < face.landmarks[2, 1] < 1256


@pytest.mark.parametrize("sides", [(92, 184), (184, 92)])
def test_the_largest_of_several_faces_is_used(sides: tuple[int, int]) -> None:
    scene = np.full((260, 420, 3), 90, np.uint8)
    for index, left, width in zip((0, 25), (10, 210), sides):
        height = width * 112 // 92
        scene[10 : 10 + height, left : left + width] = cv2.resize(orl(index), (width, height))
    face = find_face(scene, FaceDetector())
    assert face is not None and (face.landmarks[2, 0] > 210) == (sides[1] > sides[0])


def test_a_photo_without_a_face_is_a_failure_to_acquire(tmp_path: Path) -> None:
    blank = np.full((200, 300, 3), 90, np.uint8)
    source = AlignedFaces(photos(tmp_path, a=cv2.resize(orl(0), (184, 224)), b=blank, c=b"text"))
    with pytest.raises(ImageError, match=r"photos:someone/b\.jpg: no face found in 300x200 px"):
        source.image(1)
    skipped: list = []
    (batch,) = iter_images(source, on_error="skip", skipped=skipped)
    assert batch.rows.tolist() == [0] and [item.key for item in skipped] == ["someone/b.jpg", "someone/c.jpg"]
    assert "not an image" in skipped[1].reason


def test_photos_are_rotated_upright_by_their_exif_tag(tmp_path: Path) -> None:
    photo = cv2.resize(orl(0), (368, 448))
    rotated = cv2.imencode(".jpg", cv2.rotate(photo, cv2.ROTATE_90_COUNTERCLOCKWISE))[1].tobytes()
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)  # orientation 6: rotate clockwise
    tag = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    faces = AlignedFaces(photos(tmp_path, lying=rotated[:2] + tag + rotated[2:], upright=photo))
    assert difference(faces.image(0), faces.image(1)) < 4


def test_crops_have_exactly_the_requested_size() -> None:
    photos = orl_faces().subset([0])
    assert AlignedFaces(photos).image(0).shape == (112, 112, 3)
    assert AlignedFaces(photos).image(0, (112, 112)).shape == (112, 112, 3)
    assert AlignedFaces(photos, size=224).image(0).shape == (224, 224, 3)
    with pytest.raises(ImageError, match="crops are 112x112"):
        AlignedFaces(photos).image(0, (224, 224))
    with pytest.raises(InputError, match="size"):
        AlignedFaces(photos, size=0)


def test_fingerprint_depends_on_photos_detector_and_size() -> None:
    source = orl_faces().subset([0, 1])
    fingerprints = {
        source.fingerprint(),
        AlignedFaces(source).fingerprint(),
        AlignedFaces(source, FaceDetector(min_score=0.7)).fingerprint(),
        AlignedFaces(source, size=224).fingerprint(),
        AlignedFaces(source.subset([1])).fingerprint(),
    }
    assert len(fingerprints) == 5
    assert AlignedFaces(source).fingerprint() == AlignedFaces(source, FaceDetector()).fingerprint()


@pytest.mark.slow
def test_landmarks_agree_with_crops_aligned_by_another_tool(shared: Path) -> None:
    """CFP crops were aligned from other landmarks, so detected ones differ by a few pixels."""
    frontal = [key for key in open_source(shared / "data" / "cfp").keys if "/frontal/" in key][:100:2]
    source = open_source(shared / "data" / "cfp")
    detector = FaceDetector()
    row_of_key = {key: row for row, key in enumerate(source.keys)}
    shifts = []
    for key in frontal:
        face = find_face(source.image(row_of_key[key]), detector)
        assert face is not None
        shifts.append(np.abs(face.landmarks - ARCFACE_POINTS).mean())
    assert np.median(shifts) < 3
