"""Make a tiny brain of two spheres and three sections, one of them annotated, to be damaged."""

from pathlib import Path

import numpy as np
import tifffile
from scipy.spatial import ConvexHull

from jaxcyto.brain.manifest import write_table
from jaxcyto.brain.surfaces.surface import Surface, write_surface

RADIUS_MM, PIXEL_UM, SIDE_PX, LABEL_PX = 3.0, 32.0, 250, 500
TOML = """\
format = 1
name = "ball"
licence = "CC0-1.0"
background = 255

[[hemispheres]]
name = "left"
pial = "pial.surf.gii"
white = "white.surf.gii"
labels = "areas.txt"

[[classes]]
name = "inner"
color = "#aa0000"

[[classes]]
name = "outer"
color = "#00aa00"

[[classes]]
name = "background"
color = "#ffffff"
kind = "background"
"""


def make_ball(root: Path) -> Path:
    """Write the brain folder. Sections lie at y = -2, 0 and 2 mm. The middle one is annotated."""
    root.mkdir()
    (root / "brain.toml").write_text(TOML)
    number = np.arange(300) + 0.5
    z, turn = 1 - number / 150, np.pi * (1 + 5**0.5) * number  # Fibonacci sphere
    flat = np.sqrt(1 - z**2)
    sphere = np.stack([flat * np.cos(turn), flat * np.sin(turn), z], -1)
    faces = ConvexHull(sphere).simplices
    write_surface(root / "pial.surf.gii", Surface(RADIUS_MM * sphere, faces))
    write_surface(root / "white.surf.gii", Surface((RADIUS_MM - 1) * sphere, faces))
    (root / "areas.txt").write_text("\n".join("12"[v] for v in (z > 0).astype(int)) + "\n")

    step, corner = PIXEL_UM / 1000, (SIDE_PX - 1) / 2 * PIXEL_UM / 1000
    rows = []
    for name, y, split in (("a", -2.0, "train"), ("b", 0.0, "train"), ("c", 2.0, "test")):
        axis = np.arange(SIDE_PX) * step - corner
        tissue = np.hypot.outer(axis, axis) ** 2 + y**2 < RADIUS_MM**2
        tifffile.imwrite(
            root / f"{name}.tif", np.where(tissue, 90, 255).astype(np.uint8), tile=(64, 64)
        )
        affine = f"{step} 0 0 {-corner}  0 0 0 {y}  0 {-step} 0 {corner}"
        row = {"section": name, "image": f"{name}.tif", "pixel_um": "32", "affine": affine}
        rows.append(row | {"split": split})
    rows[1] |= {"label": "b_label.tif", "atlas": "b_atlas.tif"}
    label = np.full((LABEL_PX, LABEL_PX), 255, np.uint8)
    label[100:200] = np.arange(LABEL_PX) % 3
    tifffile.imwrite(root / "b_label.tif", label, compression="zlib")
    atlas = np.zeros((2, LABEL_PX, LABEL_PX), np.uint8)
    atlas[0, 100:200] = 255
    tifffile.imwrite(root / "b_atlas.tif", atlas, photometric="minisblack", planarconfig="separate")
    write_table(root / "sections.csv", rows)
    return root


def replace(path: Path, old: str, new: str) -> None:
    """Replace the first occurrence of a text that the file must contain."""
    text = path.read_text()
    assert old in text, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new, 1))
