"""Pooling against one image at a time; independence of blocks, threads and order; mapped files."""

import mmap
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import templates_slow
import torch

from spherecf.embeddings import Embeddings
from spherecf.errors import FileFormatError, InputError
from spherecf.scoring import Templates, pool, pool_templates, templates as templates_module

DIM = 12


def draw(images: int = 200, entries: int = 260, templates: int = 23) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    mu = rng.normal(size=(images, DIM)).astype(np.float32)
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    return {
        "mu": mu,
        "kappa": rng.uniform(0.1, 900, images).astype(np.float32),
        "templates": rng.integers(0, templates, entries) * 5 - 30,
        "media": rng.integers(0, 4, entries),
        "rows": rng.integers(0, images, entries),
    }


def same(a: Templates, b: Templates) -> bool:
    columns = ("ids", "mu", "kappa", "images", "media")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in columns)


@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("with_media", [False, True])
def test_equals_one_image_at_a_time(with_media: bool, own_weights: bool) -> None:
    given = draw()
    if not with_media:
        del given["media"]
    kappa, rows = given["kappa"][given["rows"]], given["rows"]
    weights = np.random.default_rng(1).uniform(0, 3, rows.size) if own_weights else None
    media = given.get("media", rows).tolist()
    pooled = pool_templates(**given, weights=weights)
    names = given["templates"].tolist()
    direction = templates_slow.pool(given["mu"], kappa if weights is None else weights, names, media, rows)
    eta = templates_slow.pool(given["mu"], kappa, names, media, rows)
    assert pooled.ids.tolist() == list(eta)
    assert pooled.images.tolist() == [names.count(name) for name in eta]
    assert pooled.media.tolist() == [len({m for m, t in zip(media, names) if t == name}) for name in eta]
    np.testing.assert_allclose(pooled.kappa, [np.linalg.norm(x) for x in eta.values()], rtol=2e-6)
    expected = [x / np.linalg.norm(x) for x in direction.values()]
    np.testing.assert_allclose(pooled.mu, expected, atol=2e-6)


def test_agrees_with_pool_of_tensors() -> None:
    given = draw(entries=200)
    del given["rows"]
    pooled = pool_templates(**given)
    other = pool(*(torch.from_numpy(given[name]) for name in ("mu", "kappa", "templates", "media")))
    np.testing.assert_allclose(pooled.mu, other.mu, atol=1e-6)
    np.testing.assert_allclose(pooled.kappa, other.kappa, rtol=1e-6)


@pytest.mark.parametrize("gaussian", [False, True])
def test_results_do_not_depend_on_blocks_threads_and_order(
    monkeypatch: pytest.MonkeyPatch, gaussian: bool
) -> None:
    given = draw(entries=500)
    extra = {"log_precision": given["mu"] * 3} if gaussian else {"weights": given["rows"] / 100 + 0.1}
    whole = pool_templates(**given, **extra)
    threads = torch.get_num_threads()
    order = np.random.default_rng(2).permutation(500)
    moved = {name: column[order] for name, column in given.items() if name not in ("mu", "kappa")}
    moved_extra = extra if gaussian else {"weights": extra["weights"][order]}
    try:
        for block, count in ((1, 1), (7, 2), (64, 1), (10_000, 2)):
            monkeypatch.setattr(templates_module, "_BLOCK", block)
            torch.set_num_threads(count)
            assert same(pool_templates(**given, **extra), whole)
            assert same(pool_templates(given["mu"], given["kappa"], **moved, **moved_extra), whole)
    finally:
        torch.set_num_threads(threads)


def test_other_memory_layouts_give_the_same_result() -> None:
    given = draw()
    whole = pool_templates(**given)
    for mu in (given["mu"].astype(np.float64), given["mu"].astype(">f4"), np.asfortranarray(given["mu"])):
        assert same(pool_templates(**{**given, "mu": mu}), whole)


@pytest.mark.parametrize("width", [DIM, 1])
def test_gaussian_pooling_weighs_each_dimension_by_precision(width: int) -> None:
    given = draw(images=6, entries=6, templates=1)
    given |= {"rows": np.arange(6), "media": np.array([0, 0, 1, 2, 2, 2])}
    log_precision = np.random.default_rng(3).normal(size=(6, width)).astype(np.float32)
    pooled = pool_templates(**given, log_precision=log_precision)
    precision = np.exp(log_precision.astype(np.float64))
    share = np.array([1 / 2, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 3])[:, None]
    mean = (share * precision * given["mu"]).sum(0) / (share * precision).sum(0)
    np.testing.assert_allclose(pooled.mu[0], mean / np.linalg.norm(mean), atol=2e-6)
    np.testing.assert_allclose(pooled.log_precision, np.log((share * precision).sum(0))[None], atol=1e-6)
    with pytest.raises(InputError, match="leave out one of the two arguments"):
        pool_templates(**given, log_precision=log_precision, weights=np.ones(6))


def test_mapped_file_is_neither_copied_nor_changed(tmp_path: Path) -> None:
    images, dim = 40_000, 64
    stored = np.lib.format.open_memmap(tmp_path / "mu.npy", "w+", np.float32, (images, dim))
    drawn = np.random.default_rng(0).normal(size=(images, dim))
    stored[:] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    stored.flush()
    owner, kappa = np.arange(images) // 400, np.ones(images, np.float32)
    expected = pool_templates(np.array(stored), kappa, owner)
    mapped = np.load(tmp_path / "mu.npy", mmap_mode="r")
    tracemalloc.start()
    pooled = pool_templates(mapped, kappa, owner)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < mapped.nbytes / 2  # the lists alone: 10 columns of 8 bytes each, against 256 of an image
    assert same(pooled, expected)
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.float32, (100, dim))
    assert pool_templates(mapped, kappa, owner, out=out).mu is out
    np.testing.assert_array_equal(out, expected.mu)
    private = np.load(tmp_path / "mu.npy", mmap_mode="c")
    private[:, 0] *= -1  # in memory only, and must stay
    assert not same(pool_templates(private, kappa, owner), expected)
    assert (private[:, 0] == -mapped[:, 0]).all()
    np.testing.assert_array_equal(mapped, stored)


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="pages are let go on Linux")
def test_pages_of_embeddings_are_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = draw(images=200, entries=200)
    keys = [str(i) for i in range(200)]
    path = Embeddings(given["mu"], np.log(given["kappa"]), keys).save(tmp_path / "e.safetensors")
    loaded = Embeddings.load(path)
    seen: list[str] = []
    base: Any = loaded.mu
    while isinstance(base, np.ndarray):
        seen.append(getattr(base, "mode", ""))
        base = base.base
    assert isinstance(base, mmap.mmap) and "r" in seen
    pooled = pool_templates(loaded.mu, loaded.kappa, given["templates"])
    np.testing.assert_allclose(
        pooled.mu, pool_templates(given["mu"], given["kappa"], given["templates"]).mu, atol=1e-6
    )
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(FileFormatError, match="truncated"):
        Embeddings.load(path)


def test_no_entries_give_no_templates() -> None:
    pooled = pool_templates(np.eye(2, 3, dtype=np.float32), np.ones(2), [], rows=[])
    assert (len(pooled), pooled.mu.shape, pooled.images.size) == (0, (0, 3), 0)


def bad(**changes: Any) -> None:
    pool_templates(**{**draw(), **changes})


def test_bad_input() -> None:
    given = draw()
    with pytest.raises(InputError, match=r"kappa: 1 of 200 are NaN, negative or infinite, first -1 at 3"):
        bad(kappa=np.where(np.arange(200) == 3, -1, given["kappa"]))
    for value in (np.inf, np.nan):
        with pytest.raises(InputError, match="kappa: 200 of 200"):
            bad(kappa=np.full(200, value))
        with pytest.raises(InputError, match="weights: 260 of 260"):
            bad(weights=np.full(260, value))
    with pytest.raises(InputError, match=r"rows: expected 0 .. 199, got"):
        bad(rows=given["rows"] + 100)
    with pytest.raises(InputError, match=r"260 templates, 260 rows, 3 media"):
        bad(media=np.arange(3))
    with pytest.raises(InputError, match="260 templates, 200 rows"):
        bad(rows=None)
    with pytest.raises(InputError, match="templates: expected a one-dimensional array of integers"):
        bad(templates=given["templates"] / 2)
    with pytest.raises(InputError, match=r"kappa: expected \(200,\)"):
        bad(kappa=np.ones(199))
    with pytest.raises(InputError, match=r"mu: expected \(n, dim\) of floats"):
        bad(mu=given["mu"][0])
    with pytest.raises(InputError, match=r"log_precision: expected \(200, 12\) or \(200, 1\)"):
        bad(log_precision=np.ones((200, 3), np.float32))
    with pytest.raises(InputError, match=r"out: expected \(23, 12\)"):
        bad(out=np.empty((2, 12), np.float32))


def test_a_nan_direction_is_refused() -> None:
    mu = draw()["mu"]
    row = int(draw()["rows"][5])
    mu[row, 2] = np.nan
    with pytest.raises(InputError, match=rf"mu: 1 of .* NaN or infinite \(first row {row}\)"):
        bad(mu=mu)


def test_templates_without_a_direction_are_named() -> None:
    mu = draw()["mu"][:1]
    three, owner = np.concatenate([mu, -mu, mu]), [4, 4, 1]
    with pytest.raises(InputError, match=r"1 of 2 .*first template 4: its directions cancel"):
        pool_templates(three, np.ones(3), owner)
    with pytest.raises(InputError, match=r"first template 1: all its weights are 0"):
        pool_templates(three, np.array([1, 0.5, 0]), owner)
    with pytest.raises(InputError, match=r"mu: 1 of 3 .* 1 zero \(first row 2\)"):
        pool_templates(np.concatenate([mu, mu, 0 * mu]), np.ones(3), owner)


def test_templates_whose_sum_overflows_are_named() -> None:
    mu = draw()["mu"][[0, 0, 1]]
    with (
        np.errstate(over="ignore"),
        pytest.raises(InputError, match=r"1 of 2 .* no finite sum, first template 4"),
    ):
        pool_templates(mu, np.array([3e38, 3e38, 1.0]), [4, 4, 5])


def test_the_shortest_sum_that_has_a_direction() -> None:
    """|sum| over the sum of the norms: 1e-4 is a direction, 3e-7 is rounding."""
    short = pool_templates(np.array([[1, 1e-4], [-1, 1e-4]], np.float32), np.ones(2), [5, 5])
    assert short.mu == pytest.approx(np.array([[0.0, 1.0]])) and short.kappa == pytest.approx([2e-4])
    with pytest.raises(InputError, match="first template 5: its directions cancel"):
        pool_templates(np.array([[1, 3e-7], [-1, 3e-7]], np.float32), np.ones(2), [5, 5])


def test_unsigned_ids_beyond_int64_are_refused() -> None:
    hashes = np.array([1, 2**63 + 5], np.uint64)
    with pytest.raises(
        InputError, match=r"templates: expected integers below 2\^63, got 9223372036854775813"
    ):
        pool_templates(np.eye(2, dtype=np.float32), np.ones(2), hashes)
