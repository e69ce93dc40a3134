"""Small complete template sets: videos, two galleries, and an image in two templates."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from spherecf.data import IjbMeta, TemplateList, TemplatePairs
from spherecf.embeddings import Embeddings

PEOPLE, DIM = 24, 12


@dataclass(frozen=True)
class TemplateToy:
    """A template set and the embeddings of its images."""

    meta: IjbMeta
    embeddings: Embeddings


def template_toy(seed: int = 0, pairs: int = 400, **provenance: Any) -> TemplateToy:
    """Three templates per person, one enrolled and two probes; ids are large and out of order."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(PEOPLE, DIM))
    files, templates, media, owners = [], [], [], []
    subject = 1000 + rng.permutation(3 * PEOPLE) // 3
    ids = 50 + rng.permutation(3 * PEOPLE)
    for position, template in enumerate(ids.tolist()):
        for medium in range(rng.integers(1, 4)):
            for frame in range(rng.integers(1, 4)):
                files.append(f"{position}/{medium}_{frame}.jpg")
                templates.append(template)
                media.append(100 * position + medium)
                owners.append(subject[position] - 1000)
    noise = rng.uniform(0.3, 2.0, len(files))
    mu = centres[owners] + noise[:, None] * rng.normal(size=(len(files), DIM))
    e = Embeddings(
        mu / np.linalg.norm(mu, axis=1, keepdims=True), np.log(60 / noise**2), files,
        extras={"norm": 10 / noise + rng.normal(size=noise.size) ** 2},
        provenance={"backbone": "b" * 64, "radius": 64.0, "flip": "sum", **provenance},
        log_precision=rng.normal(4, 1, (len(files), DIM)),
    )  # fmt: skip
    files.append(files[0])  # the same image in a second template
    templates.append(int(ids[-1]))
    media.append(7)
    enrolled_template = {
        int(s): int(t) for t, s in zip(ids, subject)
    }  # the last template of each person is enrolled
    probe = np.sort([t for t, s in zip(ids.tolist(), subject.tolist()) if enrolled_template[s] != t])
    person = dict(zip(ids.tolist(), subject.tolist()))
    names = sorted(enrolled_template)
    gallery_people = {
        "G1": names[: PEOPLE // 2 + 2],
        "G2": names[PEOPLE // 2 + 2 : PEOPLE - 3],
    }  # three people are in no gallery
    galleries = {}
    for gallery, people in gallery_people.items():
        enrolled = np.sort([enrolled_template[name] for name in people])
        galleries[gallery] = TemplateList(enrolled, np.array([person[t] for t in enrolled.tolist()]))
    left = rng.choice([t for g in galleries.values() for t in g.templates.tolist()], pairs)
    right = rng.choice(probe, pairs)
    _, unique_rows = np.unique(left * 10000 + right, return_index=True)
    left, right = left[np.sort(unique_rows)], right[np.sort(unique_rows)]
    mated = np.array([person[a] == person[b] for a, b in zip(left.tolist(), right.tolist())])
    meta = IjbMeta(
        "toy", files, np.array(templates), np.array(media), TemplatePairs(left, right, mated),
        rng.uniform(0.5, 1, len(files)).astype(np.float32), None, galleries,
        TemplateList(probe, np.array([person[t] for t in probe.tolist()])),
    )  # fmt: skip
    return TemplateToy(meta, e)
