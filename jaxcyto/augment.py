"""Augment images on the device, by pure functions of a key and an image.

The key of an example depends on the root key, the step and the index of the example only. The
result is therefore the same for any composition of the batch and any number of devices, processes
and workers.

Symmetries (flips and rotations by 90 degrees) act on uint8, and the same symmetry can be applied
to image, atlas and label. Intensity operations (contrast, brightness, blur and noise) act on the
normalized image. An operation of zero strength is not compiled into the program.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Symmetry = dict[str, jax.Array]  # three bools: transpose, flip_rows, flip_columns

# The kernel [w, 1 - 2 w, w] has variance 2 w and is a low-pass filter up to w = 1/4, which is a
# standard deviation of 0.707 px.
MAX_BLUR_PX = 0.7


def example_keys(root_key: jax.Array, step: jax.Array | int, index: jax.Array) -> jax.Array:
    """Derive one key per example as fold_in(fold_in(root_key, step), index).

    Args:
        root_key: key of the run.
        step: index of the training step.
        index: index of each example in the data set, integer [B].

    Returns:
        Keys [B].
    """
    key = jax.random.fold_in(root_key, step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def normalize(image: jax.Array, mean: float | jax.Array, std: float | jax.Array) -> jax.Array:
    """Standardize gray values 0 ... 255 to (image - mean) / std, float32.

    Args:
        image: array of any shape.
        mean: mean of the training set, gray values.
        std: standard deviation of the training set, gray values.

    Returns:
        float32, of the same shape.
    """
    return (image.astype(jnp.float32) - mean) / std


def normalize_atlas(atlas: jax.Array) -> jax.Array:
    """Convert an 8-bit atlas image of any shape to probabilities 0 ... 1, float32."""
    return atlas.astype(jnp.float32) / 255


# ---- symmetries ---------------------------------------------------------------------------------


def draw_symmetry(key: jax.Array, *, flip: bool, rotate: bool) -> Symmetry:
    """Sample uniformly from the symmetry group that `flip` and `rotate` generate.

    Flips alone generate four symmetries: mirroring rows, columns, both or neither. Rotations alone
    generate the four rotations by multiples of 90 degrees. Both together generate all eight
    symmetries of the square.
    """
    rows, columns, turn = jax.random.bernoulli(key, shape=(3,))
    no = jnp.zeros((), bool)
    if flip:
        return {"transpose": turn if rotate else no, "flip_rows": rows, "flip_columns": columns}
    if rotate:  # 0, 90, 180 and 270 degrees are (0, 0, 0), (1, 1, 0), (0, 1, 1) and (1, 0, 1)
        return {"transpose": turn, "flip_rows": rows, "flip_columns": rows ^ turn}
    return {"transpose": no, "flip_rows": no, "flip_columns": no}


def apply_symmetry(image: jax.Array, symmetry: Symmetry, *, rotate: bool = True) -> jax.Array:
    """Transpose and flip an image.

    Each of the three operations selects between the image and its mirror image, because a switch
    over the eight symmetries would compute all of them under vmap.

    Args:
        image: [H, W, ...], any dtype.
        symmetry: result of `draw_symmetry`.
        rotate: whether `symmetry` may hold a transpose. Without it, H and W may differ.

    Returns:
        [H, W, ...], of the same dtype.

    Raises:
        ValueError: `rotate` is set and the image is not square.
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
    """Change contrast and brightness, blur, and add noise to a normalized image, in this order.

    Args:
        key: key of this image.
        image: [H, W, C] float, normalized.
        brightness: half-width of the range [-brightness, brightness] of the offset, in standard
            deviations of the training set.
        contrast: half-width of the range [1 - contrast, 1 + contrast] of the factor. The factor
            leaves the training mean (0) unchanged.
        blur_px: upper limit of the standard deviation of a 3x3 blur, at most 0.7 px. The standard
            deviation is drawn from [0, blur_px].
        noise: standard deviation of white noise, in standard deviations of the training set.

    Returns:
        [H, W, C] float.

    Raises:
        ValueError: a strength is negative or the blur is too wide.
    """
    if min(brightness, contrast, blur_px, noise) < 0 or blur_px > MAX_BLUR_PX:
        raise ValueError(
            f"strengths must not be negative, and blur_px not above {MAX_BLUR_PX}:"
            f" {brightness=}, {contrast=}, {blur_px=}, {noise=}"
        )
    # Each operation has its own key, so disabling one does not change the draws of the others.
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
    """Convolve rows and columns with [w, 1 - 2 w, w], where w = std_px^2 / 2.

    Pixels outside of the image repeat the edge.

    Args:
        image: [H, W, C] float.
        std_px: standard deviation of the kernel, 0 ... 0.7 px.

    Returns:
        [H, W, C] float.
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
    """Normalize and augment the patches of a batch of pairs.

    The two patches of a pair are augmented independently. This is an assumption: staining and cut
    differ within a pair as much as they do between pairs.

    Args:
        keys: keys [B] from `example_keys`.
        patches: uint8 [B, 2, H, W, C].
        mean: training mean, gray values.
        std: training standard deviation, gray values.
        flip: whether to mirror rows and columns, each with probability 1/2.
        rotate: whether to rotate by a random multiple of 90 degrees (square patches only).
        brightness: see `intensity`.
        contrast: see `intensity`.
        blur_px: see `intensity`.
        noise: see `intensity`.

    Returns:
        float32 [B, 2, H, W, C].

    Raises:
        ValueError: a strength is out of range, or `rotate` is set and patches are not square.
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
    """Normalize and augment the images of windows, and apply the same symmetry to their labels.

    Args:
        keys: keys [B] from `example_keys`.
        images: image uint8 [B, H, W, C], followed by arrays that cover the same windows on other
            grids, such as label [B, h, w] and atlas [B, h', w', A]. One symmetry is drawn for all
            arrays of a window.
        mean: training mean of the image, gray values.
        std: training standard deviation of the image, gray values.
        flip: whether to mirror rows and columns, each with probability 1/2.
        rotate: whether to rotate by a random multiple of 90 degrees (square windows only).
        **strengths: strengths of `intensity`, which changes the image only.

    Returns:
        The augmented arrays in the same order. The image is float32, and the others keep their
        dtypes.

    Raises:
        ValueError: a strength is out of range, or `rotate` is set and windows are not square.
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
