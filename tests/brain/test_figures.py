"""Test inflation and the figure of sampled points against closed forms of spheres and folds."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from shapes import sphere

from jaxcyto.brain.figures import HEIGHT_PX, VIEWS, draw, points_figure
from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.sampling.patches import load_patches
from jaxcyto.brain.surfaces.smoothing import areas, inflate, neighbor_mean, vertex_normals
from jaxcyto.brain.surfaces.surface import Surface


def folded() -> tuple[Surface, np.ndarray]:
    """Make a sphere with six ridges along its meridians, and the heights of its vertices."""
    ball = sphere(60)
    x, y, _ = ball.vertices.T
    height = 0.15 * np.cos(6 * np.arctan2(y, x)) * (x**2 + y**2)
    return Surface(ball.vertices * (1 + height)[:, None], ball.faces), height


def test_normals_and_area_of_a_sphere():
    ball = sphere()
    assert areas(ball.vertices, ball.faces).sum() == pytest.approx(4 * np.pi, rel=0.005)
    np.testing.assert_allclose(vertex_normals(ball), ball.vertices, atol=0.05)


def test_inflation_smooths_folds_keeps_area_and_knows_valleys():
    surface, height = folded()
    smooth, valley = inflate(surface)
    np.testing.assert_array_equal(smooth.faces, surface.faces)
    area = areas(surface.vertices, surface.faces).sum()
    assert areas(smooth.vertices, smooth.faces).sum() == pytest.approx(area)
    # Measure the remaining height of the folds on a ring around the middle.
    ring = np.abs(surface.vertices[:, 2]) < 0.15
    spread = [np.ptp(np.linalg.norm(each.vertices[ring, :2], axis=1)) for each in (surface, smooth)]
    assert spread[1] < 0.6 * spread[0]
    assert valley[height < -0.1].all() and not valley[height > 0.1].any()


def test_lonely_vertices_stay():
    mean = neighbor_mean(5, np.array([[0, 1, 2], [2, 1, 3]]))
    np.testing.assert_allclose(mean.sum(axis=1), 1)
    assert mean[[4]].toarray().tolist() == [[0, 0, 0, 0, 1]]


@pytest.mark.parametrize("view", VIEWS)
def test_points_in_front_are_seen_and_those_behind_are_not(view):
    ball = sphere()
    ball = Surface(50 * ball.vertices, ball.faces)
    axis, sign = view.near
    points = np.zeros((2, 3))
    points[:, axis] = 50 * sign, -50 * sign
    points[:, 2] = 20, -20  # apart in the image
    points *= 50 / np.linalg.norm(points, axis=1, keepdims=True)
    image = draw(
        ball, np.full(len(ball.vertices), 0.9), points, np.array([[0, 0, 1.0], [1, 0, 0]]), view
    )
    assert image.shape[0] == HEIGHT_PX
    colored = np.ptp(image, axis=2) > 0.2
    rows = np.flatnonzero(colored.any(axis=1))
    assert len(rows) and (rows < HEIGHT_PX / 2).all()  # z = 20 is above the middle, z = -20 hidden
    # The sphere is drawn as a disc without holes.
    disc = np.hypot(*(np.indices(image.shape[:2]) - (np.array(image.shape[:2]) / 2)[:, None, None]))
    inside = disc < 0.9 * HEIGHT_PX / 2
    assert (image[inside] < 1).any(axis=1).all()


@pytest.mark.parametrize("at", [[0, 1], [*np.linspace(0, 0.85, 20), 1]])
def test_nothing_shines_through_large_triangles(at):
    number = len(at)
    y, z = (axis.ravel() for axis in np.meshgrid(at, at))
    corner = np.arange(number * number).reshape(number, number)
    a, b = corner[:-1, :-1].ravel(), corner[1:, 1:].ravel()
    faces = np.concatenate([np.stack([a, b, a + 1], -1), np.stack([b, a, b - 1], -1)])
    sheets = [np.stack([np.full(len(y), x), y, z], axis=-1) for x in (-3.0, 3.0)]
    surface = Surface(np.concatenate(sheets), np.concatenate([faces, faces + len(y)]))
    shade = np.repeat([0.9, 0.3], len(y))  # bright in front, dark behind
    image = draw(surface, shade, np.zeros((0, 3)), np.zeros((0, 3)), VIEWS[0])
    inside = image[6:-6, 6:-6]
    assert inside.min() > 0.8 and inside.max() < 1


def test_figure_of_a_brain(tiny_brain):
    brain = read_brain(tiny_brain)
    patches = load_patches(tiny_brain / "patches.npz", brain)
    figure = points_figure([(brain, patches)])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    for color in ((0, 114, 178), (230, 159, 0), (213, 94, 0)):
        assert (np.abs(image - color).max(axis=2) < 20).sum() > 20, color
    assert (tiny_brain / "patches_points.png").stat().st_size > 10_000
