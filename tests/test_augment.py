"""Test augmentation: identities, group laws, SciPy as reference, independence of the batch."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxcyto import augment

ROOT = jax.random.key(7)
ALL = {"flip": True, "rotate": True, "brightness": 0.3, "contrast": 0.3, "blur_px": 0.6}
ALL["noise"] = 0.1


@jax.jit
def augment_all(keys, patches):
    return augment.augment_patches(keys, patches, 120.0, 40.0, **ALL)


@pytest.fixture
def patches() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 2, 24, 24, 1), dtype=np.uint8)


def keys(step: int, index) -> jax.Array:
    return augment.example_keys(ROOT, step, jnp.asarray(index))


def test_zero_strength_is_only_normalizing(patches):
    result = jax.jit(augment.augment_patches)(keys(0, np.arange(6)), patches, 120.0, 40.0)
    expected = (patches.astype(np.float32) - np.float32(120)) / np.float32(40)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert result.dtype == jnp.float32
    image = jnp.asarray(expected[0, 0])
    np.testing.assert_array_equal(augment.intensity(ROOT, image), image)


def test_draws_depend_on_step_and_example_only(patches):
    """A patch is the same bit for bit in another order or batch size, or with other neighbors."""
    run = augment_all
    whole = run(keys(3, np.arange(6)), patches)
    order = np.array([5, 1, 3])
    np.testing.assert_array_equal(run(keys(3, order), patches[order]), whole[order])
    assert not np.allclose(run(keys(4, order), patches[order]), whole[order])
    other_root = augment.example_keys(jax.random.key(8), 3, order)
    assert not np.allclose(run(other_root, patches[order]), whole[order])


def test_patches_of_a_pair_and_pairs_are_drawn_independently():
    same = np.broadcast_to(
        np.random.default_rng(1).integers(0, 256, (24, 24, 1)), (6, 2, 24, 24, 1)
    )
    result = augment_all(keys(0, np.arange(6)), same.astype(np.uint8))
    flat = np.asarray(result).reshape(12, -1)
    for a, b in itertools.combinations(flat, 2):
        assert not np.allclose(a, b)


def test_keys_are_the_documented_fold_in():
    expected = jax.random.fold_in(jax.random.fold_in(ROOT, 9), 123456)
    assert keys(9, [1, 123456])[1] == expected
    traced = jax.jit(augment.example_keys)(ROOT, jnp.asarray(9), jnp.asarray([123456]))
    assert traced[0] == expected


# ---- symmetries ----------------------------------------------------------------------------------

SQUARE = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
ROTATIONS = [np.rot90(SQUARE, k) for k in range(4)]
MIRRORED = [SQUARE, SQUARE[::-1], SQUARE[:, ::-1], SQUARE[::-1, ::-1]]
EIGHT = [*ROTATIONS, *(np.rot90(SQUARE[:, ::-1], k) for k in range(4))]


@pytest.mark.parametrize(
    ("flip", "rotate", "members"),
    [
        (False, False, [SQUARE]),
        (True, False, MIRRORED),
        (False, True, ROTATIONS),
        (True, True, EIGHT),
    ],
)
def test_draws_are_even_over_the_group(flip, rotate, members):
    """Every draw equals one of NumPy's results, and 4000 draws hit each of them equally often."""

    def one(key):
        symmetry = augment.draw_symmetry(key, flip=flip, rotate=rotate)
        return augment.apply_symmetry(SQUARE, symmetry)

    drawn = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(ROOT, 4000)))
    counts = [np.all(drawn == member, axis=(1, 2, 3)).sum() for member in members]
    assert drawn.dtype == np.uint8 and sum(counts) == 4000
    expected = 4000 / len(members)
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected))


def test_symmetries_close_under_composition():
    """Any two in succession equal one of the eight, and each of them has an inverse."""
    bits = list(itertools.product([False, True], repeat=3))
    names = ("transpose", "flip_rows", "flip_columns")
    members = [dict(zip(names, map(jnp.asarray, b), strict=True)) for b in bits]
    images = [np.asarray(augment.apply_symmetry(SQUARE, m)).tobytes() for m in members]
    assert len(set(images)) == 8
    for first in members:
        once = augment.apply_symmetry(SQUARE, first)
        twice = [np.asarray(augment.apply_symmetry(once, m)).tobytes() for m in members]
        assert sorted(twice) == sorted(images)
        assert SQUARE.tobytes() in twice


def test_one_draw_moves_image_and_label_alike():
    """Two arrays of different size and dtype that show the same scene still do so afterwards."""
    label = np.random.default_rng(2).integers(0, 9, (8, 8), dtype=np.uint8)
    image = np.repeat(np.repeat(label, 3, 0), 3, 1)[..., None].astype(np.float32)
    for key in jax.random.split(ROOT, 8):
        symmetry = augment.draw_symmetry(key, flip=True, rotate=True)
        moved = augment.apply_symmetry(image, symmetry)
        np.testing.assert_array_equal(moved[1::3, 1::3, 0], augment.apply_symmetry(label, symmetry))


def test_flips_take_any_shape_rotations_only_squares():
    wide = np.zeros((1, 2, 8, 12, 1), np.uint8)
    assert augment.augment_patches(keys(0, [0]), wide, 0.0, 1.0, flip=True).shape == wide.shape
    with pytest.raises(ValueError, match=r"square images.*\(8, 12\)"):
        augment.augment_patches(keys(0, [0]), wide, 0.0, 1.0, rotate=True)


# ---- intensities ---------------------------------------------------------------------------------


def intensity(image: np.ndarray, count: int = 400, **strengths) -> np.ndarray:
    one = lambda key: augment.intensity(key, jnp.asarray(image), **strengths)  # noqa: E731
    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(ROOT, count)))


def test_brightness_is_one_even_offset_per_image():
    image = np.random.default_rng(3).normal(size=(5, 5, 1)).astype(np.float32)
    offset = intensity(image, brightness=0.4) - image
    assert np.ptp(offset, axis=(1, 2, 3)).max() < 1e-6
    drawn = offset[:, 0, 0, 0]
    assert -0.4 <= drawn.min() < -0.38 and 0.38 < drawn.max() <= 0.4


def test_contrast_is_one_factor_about_the_training_mean():
    image = np.array([-2.0, 0.0, 1.0], np.float32).reshape(1, 3, 1)
    result = intensity(image, contrast=0.4)[:, 0, :, 0]
    factor = result[:, 2]
    assert 0.6 <= factor.min() < 0.62 and 1.38 < factor.max() <= 1.4
    np.testing.assert_allclose(result, factor[:, None] * image[0, :, 0], atol=1e-6)


def test_noise_has_its_standard_deviation():
    drawn = intensity(np.zeros((16, 16, 1), np.float32), noise=0.25)
    np.testing.assert_allclose(drawn.std(), 0.25, rtol=0.02)
    assert (
        abs(drawn.mean()) < 0.01
        and abs(np.corrcoef(drawn[0].ravel(), drawn[1].ravel())[0, 1]) < 0.3
    )


@pytest.mark.parametrize("std_px", [0.0, 0.3, 0.7])
def test_blur_against_scipy(std_px):
    image = np.random.default_rng(4).normal(size=(9, 13, 2)).astype(np.float32)
    weight = std_px**2 / 2
    kernel = [weight, 1 - 2 * weight, weight]
    expected = image
    for axis in (0, 1):
        expected = ndimage.correlate1d(expected, kernel, axis=axis, mode="nearest")
    np.testing.assert_allclose(augment.blur(jnp.asarray(image), std_px), expected, atol=1e-6)


def test_blur_has_its_standard_deviation_and_keeps_the_sum():
    point = np.zeros((9, 9, 1), np.float32)
    point[4, 4] = 1
    blurred = np.asarray(augment.blur(jnp.asarray(point), 0.6))[..., 0]
    offset = np.arange(9) - 4
    np.testing.assert_allclose(blurred.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose((blurred.sum(0) * offset**2).sum(), 0.6**2, rtol=1e-5)
    np.testing.assert_allclose((blurred.sum(1) * offset**2).sum(), 0.6**2, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"noise": -0.1}, {"blur_px": 1.0}, {"contrast": -1.0}])
def test_strengths_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        augment.intensity(ROOT, jnp.zeros((4, 4, 1)), **wrong)


# ---- windows -------------------------------------------------------------------------------------


def test_image_label_and_atlas_move_together():
    """The same picture on three grids is still the same picture after any symmetry."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 200, (16, 6, 6)).astype(np.uint8)
    image = np.repeat(np.repeat(label, 4, axis=1), 4, axis=2)[..., None]
    atlas = np.repeat(np.repeat(label, 2, axis=1), 2, axis=2)[..., None]
    keys = augment.example_keys(jax.random.key(1), 0, np.arange(16))
    move = functools.partial(augment.augment_windows, mean=0.0, std=1.0, flip=True, rotate=True)
    moved = jax.jit(move)(keys, (image, label, atlas))
    np.testing.assert_array_equal(moved[0][:, ::4, ::4, 0], moved[1])
    np.testing.assert_array_equal(moved[2][:, ::2, ::2, 0], moved[1])
    assert moved[1].dtype == moved[2].dtype == np.uint8
    changed = [not np.array_equal(a, b) for a, b in zip(moved[1], label, strict=True)]
    assert 8 <= sum(changed) < 16


def test_intensities_change_the_image_alone():
    image = np.full((3, 8, 8, 1), 100, np.uint8)
    label = np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4)
    keys = augment.example_keys(jax.random.key(1), 0, np.arange(3))
    moved = augment.augment_windows(keys, (image, label), 100.0, 10.0, brightness=1.0, noise=0.1)
    np.testing.assert_array_equal(moved[1], label)
    assert np.abs(np.diff(moved[0].mean((1, 2, 3)))).min() > 0.01
