from .atlas_image import AtlasImage, section_atlas
from .label_image import LABEL_UM, expected_shape, open_label, section_label
from .section import Section, array_section, open_section
from .writer import write_section

__all__ = [
    "LABEL_UM",
    "AtlasImage",
    "Section",
    "array_section",
    "expected_shape",
    "open_label",
    "open_section",
    "section_atlas",
    "section_label",
    "write_section",
]
