"""Write the class map of a section as polygons that QuPath imports and `annotate` reads again."""

from collections.abc import Sequence
from pathlib import Path

from jaxcyto.brain.annotation.geojson import write_annotations
from jaxcyto.brain.annotation.outlines import trace
from jaxcyto.brain.manifest import AreaClass, SectionRow
from jaxcyto.brain.sections.section import open_section
from jaxcyto.predict.maps import NOT_PREDICTED, ClassMap


def write_outlines(
    path: Path, row: SectionRow, predicted: ClassMap, classes: Sequence[AreaClass]
) -> None:
    """Write one annotation for each class, in pixels of the section image at full resolution.

    Lines lie within half a pixel of the map from the borders of its pixels. The class of kind
    "background" is written like any other, because networks need annotations of it, too. The map
    is read as a whole, so this takes some 10 bytes of memory for each of its pixels.

    Args:
        path: the file.
        row: the section.
        predicted: its class map.
        classes: names and colors.

    Raises:
        InputError: the section or the map is damaged.
    """
    with open_section(row.image, row.pixel_um) as section:
        height, width = section.shape
    scale = predicted.pixel_um / row.pixel_um  # px of the image along a px of the map
    found = trace(
        predicted.read(0, 0, *predicted.shape), [NOT_PREDICTED], (height / scale, width / scale)
    )
    polygons = {
        number: [[scale * ring for ring in rings] for rings in parts]
        for number, parts in found.items()
    }
    write_annotations(path, polygons, classes)
