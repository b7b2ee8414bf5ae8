"""Augmentation on the device: pure functions of a key and an image.

A key is drawn for each example from (root key, step, number of the example), so that nothing
depends on the composition of the batch, on devices, processes or workers.

Symmetries (flips, rotations by 90 degrees) act on uint8 and can be applied alike to image, atlas
and label; intensities (contrast, brightness, blur, noise) act on the normalized image. A strength
of zero takes the operation out of the program: it costs nothing and changes no bit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Symmetry = dict[str, jax.Array]  # three bools: transpose, then flip rows, then flip columns

MAX_BLUR_PX = 0.7  # [w, 1 - 2 w, w] has variance 2 w and stays a low pass up to w = 1 / 4


def example_keys(root_key: jax.Array, step: jax.Array | int, index: jax.Array) -> jax.Array:
    """One key per example: fold_in(fold_in(root, step), index).

    Args:
        root_key: key of the run.
        step: number of the training step.
        index: [B] integer, number of each example in the data set.

    Returns:
        Keys [B].
    """
    key = jax.random.fold_in(root_key, step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def normalize(image: jax.Array, mean: float | jax.Array, std: float | jax.Array) -> jax.Array:
    """Standardize gray values 0 ... 255 to (image - mean) / std, float32.

    Args:
        image: any shape.
        mean: mean of the training set, gray values.
        std: standard deviation of the training set, gray values.
    """
    return (image.astype(jnp.float32) - mean) / std


def normalize_atlas(atlas: jax.Array) -> jax.Array:
    """Convert an 8-bit atlas image of any shape to probabilities 0 ... 1, float32."""
    return atlas.astype(jnp.float32) / 255


# ---- symmetries ---------------------------------------------------------------------------------


def draw_symmetry(key: jax.Array, *, flip: bool, rotate: bool) -> Symmetry:
    """Draws evenly from the group that the two switches span: 1, 4 or 8 members.

    Flips alone give the four mirrorings of rows and columns, rotations alone the four rotations by
    90 degrees, both together all eight symmetries of the square.
    """
    rows, columns, turn = jax.random.bernoulli(key, shape=(3,))
    no = jnp.zeros((), bool)
    if flip:
        return {"transpose": turn if rotate else no, "flip_rows": rows, "flip_columns": columns}
    if rotate:  # 0, 90, 180 and 270 degrees are (0, 0, 0), (1, 1, 0), (0, 1, 1) and (1, 0, 1)
        return {"transpose": turn, "flip_rows": rows, "flip_columns": rows ^ turn}
    return {"transpose": no, "flip_rows": no, "flip_columns": no}


def apply_symmetry(image: jax.Array, symmetry: Symmetry, *, rotate: bool = True) -> jax.Array:
    """Transposes and flips an image [H, W, ...] as drawn.

    Written as selects between an image and its mirror image: under vmap, a switch over the eight
    cases would compute all of them.

    Args:
        image: [H, W, ...], any dtype.
        symmetry: what `draw_symmetry` returned.
        rotate: whether `symmetry` may hold a transpose; False also takes images with H != W.

    Raises:
        ValueError: if `rotate` and the image is not square.
    """
    if rotate:
        if image.shape[0] != image.shape[1]:
            raise ValueError(f"only square images rotate by 90 degrees, not {image.shape[:2]} px")
        image = jnp.where(symmetry["transpose"], image.swapaxes(0, 1), image)
    image = jnp.where(symmetry["flip_rows"], jnp.flip(image, 0), image)
    return jnp.where(symmetry["flip_columns"], jnp.flip(image, 1), image)


# ---- intensities --------------------------------------------------------------------------------


def intensity(
    key: jax.Array,
    image: jax.Array,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    blur_px: float = 0.0,
    noise: float = 0.0,
) -> jax.Array:
    """Changes contrast, brightness, sharpness and noise of a normalized image, in this order.

    Args:
        key: key of this image.
        image: [H, W, C] float, normalized.
        brightness: an offset is drawn from [-brightness, brightness], in standard deviations of
            the training set.
        contrast: a factor is drawn from [1 - contrast, 1 + contrast]; the training mean (0) stays.
        blur_px: the standard deviation of a 3x3 blur is drawn from [0, blur_px]; at most 0.7 px.
        noise: standard deviation of white noise, in those of the training set.

    Returns:
        [H, W, C] float.

    Raises:
        ValueError: if a strength is negative or the blur is too wide.
    """
    if min(brightness, contrast, blur_px, noise) < 0 or blur_px > MAX_BLUR_PX:
        raise ValueError(
            f"strengths must not be negative, and blur_px not above {MAX_BLUR_PX}:"
            f" {brightness=}, {contrast=}, {blur_px=}, {noise=}"
        )
    # One key for each operation, so that switching one off leaves the draws of the others.
    keys = jax.random.split(key, 4)
    if contrast:
        image = image * jax.random.uniform(keys[0], minval=1 - contrast, maxval=1 + contrast)
    if brightness:
        image = image + jax.random.uniform(keys[1], minval=-brightness, maxval=brightness)
    if blur_px:
        image = blur(image, jax.random.uniform(keys[2], maxval=blur_px))
    if noise:
        image = image + noise * jax.random.normal(keys[3], image.shape, image.dtype)
    return image


def blur(image: jax.Array, std_px: jax.Array | float) -> jax.Array:
    """Mild blur by [w, 1 - 2 w, w] along rows and columns, w = std_px^2 / 2; edges are repeated.

    Args:
        image: [H, W, C] float.
        std_px: standard deviation of the kernel, 0 ... 0.7 px.
    """
    weight = jnp.square(std_px) / 2
    height, width = image.shape[:2]
    x = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    x = x[1:-1] + weight * (x[:-2] - 2 * x[1:-1] + x[2:])
    x = x[:, 1:-1] + weight * (x[:, :-2] - 2 * x[:, 1:-1] + x[:, 2:])
    assert x.shape[:2] == (height, width)
    return x


# ---- pairs --------------------------------------------------------------------------------------


def augment_patches(
    keys: jax.Array,
    patches: jax.Array,
    mean: float | jax.Array,
    std: float | jax.Array,
    *,
    flip: bool = False,
    rotate: bool = False,
    brightness: float = 0.0,
    contrast: float = 0.0,
    blur_px: float = 0.0,
    noise: float = 0.0,
) -> jax.Array:
    """Normalizes and augments the patches of a batch of pairs.

    The two patches of a pair are drawn independently (an assumption: staining and cut differ
    between them as they do between pairs).

    Args:
        keys: [B] from `example_keys`.
        patches: uint8 [B, 2, H, W, C].
        mean: training mean, gray values.
        std: training standard deviation, gray values.
        flip: mirror rows and columns.
        rotate: rotate by multiples of 90 degrees (square patches only).
        brightness: see `intensity`; as are contrast, blur_px and noise.
        contrast: see `intensity`.
        blur_px: see `intensity`.
        noise: see `intensity`.

    Returns:
        float32 [B, 2, H, W, C].
    """

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        symmetry_key, intensity_key = jax.random.split(key)
        if flip or rotate:
            symmetry = draw_symmetry(symmetry_key, flip=flip, rotate=rotate)
            image = apply_symmetry(image, symmetry, rotate=rotate)
        return intensity(
            intensity_key,
            normalize(image, mean, std),
            brightness=brightness,
            contrast=contrast,
            blur_px=blur_px,
            noise=noise,
        )

    pair_keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    return jax.vmap(jax.vmap(one))(pair_keys, patches)


# ---- segmentation -------------------------------------------------------------------------------


def augment_windows(
    keys: jax.Array,
    images: tuple[jax.Array, ...],
    mean: float | jax.Array,
    std: float | jax.Array,
    *,
    flip: bool = False,
    rotate: bool = False,
    **strengths: float,
) -> tuple[jax.Array, ...]:
    """Normalizes and augments the images of windows; what lies over them moves along.

    Args:
        keys: [B] from `example_keys`.
        images: uint8 [B, H, W, C], and what covers the same window on other grids (label [B, h, w],
            atlas [B, h', w', A]): one symmetry is drawn for all of them.
        mean: training mean of the first, gray values.
        std: training standard deviation of the first, gray values.
        flip: mirror rows and columns.
        rotate: rotate by multiples of 90 degrees (square windows only).
        **strengths: of `intensity`, on the first alone.

    Returns:
        The same tuple: the first as float32, the others in their own types.
    """

    def one(key: jax.Array, image: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
        symmetry_key, intensity_key = jax.random.split(key)
        if flip or rotate:
            symmetry = draw_symmetry(symmetry_key, flip=flip, rotate=rotate)
            image = apply_symmetry(image, symmetry, rotate=rotate)
            others = tuple(apply_symmetry(x, symmetry, rotate=rotate) for x in others)
        image = intensity(intensity_key, normalize(image, mean, std), **strengths)
        return (image, *others)

    return jax.vmap(one)(keys, *images)
