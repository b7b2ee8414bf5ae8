"""Open the annotated sections of all brains of a config and divide them into windows."""

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxcyto.brain.manifest import AreaClass, Brain, SectionRow, read_brain
from jaxcyto.brain.sections.atlas_image import AtlasImage, section_atlas
from jaxcyto.brain.sections.fingerprint import fingerprints
from jaxcyto.brain.sections.label_image import annotated_blocks, section_label
from jaxcyto.brain.sections.section import Section, open_section
from jaxcyto.config import ModelConfig, SegmentData
from jaxcyto.data.brain_names import brain_names
from jaxcyto.data.windows import label_factor
from jaxcyto.errors import InputError
from jaxcyto.models.geometry import Geometry
from jaxcyto.utils.files import file_sha256


@dataclasses.dataclass(frozen=True)
class Window:
    """A window of a section, by its first pixel on the output grid of `jaxcyto.data.windows`."""

    section: int  # index into `SegmentTable.sections`
    row: int
    column: int


@dataclasses.dataclass(frozen=True, eq=False)
class AnnotatedSection:
    """A section with its images open. `atlas` is None if the config does not use atlas images."""

    brain: Brain
    brain_name: str  # see `brain_names`
    row: SectionRow
    image: Section
    label: Section
    atlas: AtlasImage | None

    @property
    def name_in_brain(self) -> str:
        """BRAIN/SECTION, with the name of `brain_names`."""
        return f"{self.brain_name}/{self.row.name}"


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentTable:
    """The annotated sections of all brains of a config that have a split.

    The output grid of a section is divided into blocks as large as the output of one training
    image, starting at its first pixel. The blocks with an annotated pixel are the windows of
    evaluation. Their indices run over all sections.
    """

    brains: tuple[Brain, ...]
    classes: tuple[AreaClass, ...]
    sections: tuple[AnnotatedSection, ...]
    blocks: np.ndarray  # BLOCK [K], in order of section, row, column and class
    windows: np.ndarray  # [W], index into blocks of the first entry of each block
    geometry: Geometry
    um_per_px: float
    factor: int  # label pixels along one side of an output pixel
    side: int  # of a window's output, px
    keys: tuple[str, ...]  # SHA-256 of each brain's splits and label images, see `_key`

    def in_split(self, sections: np.ndarray, split: str) -> np.ndarray:
        """Return which of the sections with the given indices [N] are in a split, bool [N]."""
        return np.array([entry.row.split == split for entry in self.sections])[sections]

    def of_split(self, split: str) -> np.ndarray:
        """Return the indices of the evaluation windows in a split, in ascending order.

        Each annotated pixel of the split lies in exactly one of them.
        """
        return np.flatnonzero(self.in_split(self.blocks["section"][self.windows], split))

    def window(self, number: int | np.integer) -> Window:
        """Return the evaluation window of this index."""
        block = self.blocks[self.windows[number]]
        return Window(int(block["section"]), int(block["row"]), int(block["column"]))

    def class_pixels(self, split: str) -> np.ndarray:
        """Count the annotated output pixels of each class in a split, int64 [classes]."""
        blocks = self.blocks[self.in_split(self.blocks["section"], split)]
        pixels = np.zeros(len(self.classes), np.int64)
        np.add.at(pixels, blocks["label"], blocks["count"])
        return pixels

    @property
    def training_sections(self) -> list[str]:
        """BRAIN/SECTION of every section from which training images are drawn."""
        return sorted(s.name_in_brain for s in self.sections if s.row.split == "train")

    def fingerprints(self, trained: bool) -> dict[str, str | None]:
        """Return the fingerprints of the sections that training draws from, by BRAIN/SECTION.

        Args:
            trained: False for those of validation and test instead.
        """
        chosen = [s.name_in_brain for s in self.sections if (s.row.split == "train") == trained]
        return {name: self._fingerprints[name] for name in chosen}

    @functools.cached_property
    def _fingerprints(self) -> dict[str, str | None]:
        return fingerprints({section.name_in_brain: section.image for section in self.sections})

    @property
    def atlas_channels(self) -> int:
        """Number of channels of the atlas images, or 0 without atlas."""
        atlas = self.sections[0].atlas
        return 0 if atlas is None else atlas.channels

    def section_name(self, number: int | np.integer) -> str:
        """Return the name of an evaluation window's section.

        If there are several brains, it is preceded by the name of the brain.
        """
        section = self.sections[self.window(number).section]
        return section.row.name if len(self.brains) == 1 else section.name_in_brain

    def describe(self) -> str:
        """Describe the sections and the training pixels in one line."""
        split = [section.row.split for section in self.sections]
        counts = ", ".join(f"{split.count(each)} {each}" for each in ("train", "val", "test"))
        pixels = zip(self.classes, self.class_pixels("train").tolist(), strict=True)
        return (
            f"annotated sections: {counts}; brains: {', '.join(b.name for b in self.brains)}; "
            f"training pixels: {', '.join(f'{count} {each.name}' for each, count in pixels)}"
        )

    def describe_window(self, window: Window) -> str:
        """Describe the section and the position of a window, for messages."""
        section = self.sections[window.section]
        size = self.factor * self.side
        top, left = self.factor * window.row, self.factor * window.column
        return (
            f"section {section.row.name} of {section.brain.root}, rows {top} ... {top + size - 1} "
            f"and columns {left} ... {left + size - 1} of its label image"
        )


def open_windows(config: SegmentData, model: ModelConfig) -> SegmentTable:
    """Open the annotated sections of a config, with windows for `config.image_px`.

    Raises:
        InputError: see `open_window_tables`.
    """
    return open_window_tables(config, model, [config.image_px])[0]


def open_window_tables(
    config: SegmentData, model: ModelConfig, image_px: Sequence[int]
) -> list[SegmentTable]:
    """Open the annotated sections of a config once, with windows of several sizes.

    Each label image is read completely once. Afterwards a PNG stays in memory as a whole, but of a
    TIFF only the table of its tiles.

    Args:
        config: brains and sections. Its `image_px` is not used.
        model: the network.
        image_px: side of the images, for each table.

    Returns:
        A table for each size. They share the open sections.

    Raises:
        InputError: an image is missing, damaged or of another size, or brains, sections and sizes
            do not fit each other or the network.
    """
    geometry = Geometry.of(model)
    factor = label_factor(config.um_per_px, geometry)
    try:
        sides = [geometry.output_size(px) for px in image_px]
    except ValueError as error:
        raise InputError(f"data.image_px: {error}") from None
    brains = _read_brains(config.brains)
    classes = _shared_classes(brains)
    chosen = _chosen_sections(brains, config.train_sections)

    def scan(entry: tuple[Brain, str, SectionRow]) -> tuple[AnnotatedSection, list[np.ndarray]]:
        section = _open(*entry, factor if config.atlas else None)
        blocks = annotated_blocks(section.row, section.label, factor, sides, len(classes))
        if section.row.split == "train" and not len(blocks[0]):
            raise InputError(
                f"section {section.row.name}: label {section.row.label} has no annotated pixel, "
                "but its split is train. Annotate it, or clear its label in the section table"
            )
        return section, blocks

    with ThreadPoolExecutor(max(1, config.threads)) as pool:
        scanned = list(pool.map(scan, chosen))
    for index, (_, parts) in enumerate(scanned):
        for part in parts:
            part["section"] = index
    keys = tuple(_key([row for each, _, row in chosen if each is brain]) for brain in brains)
    tables = []
    for k, side in enumerate(sides):
        blocks = np.concatenate([parts[k] for _, parts in scanned])
        positions = blocks[["section", "row", "column"]]
        table = SegmentTable(
            brains=brains,
            classes=classes,
            sections=tuple(section for section, _ in scanned),
            blocks=blocks,
            windows=np.flatnonzero(np.r_[True, positions[1:] != positions[:-1]]),
            geometry=geometry,
            um_per_px=config.um_per_px,
            factor=factor,
            side=side,
            keys=keys,
        )
        tables.append(table)
    if never := [classes[c].name for c in np.flatnonzero(tables[0].class_pixels("train") == 0)]:
        warnings.warn(
            f"no training pixel of {', '.join(never)}: these classes are not learned", stacklevel=2
        )
    return tables


def _read_brains(folders: Sequence[str]) -> tuple[Brain, ...]:
    """Read the brains of a config.

    Raises:
        InputError: there is no brain.
    """
    if not folders:
        raise InputError("data.brains is empty. Give one or more folders with a brain.toml")
    return tuple(read_brain(folder) for folder in folders)


def _shared_classes(brains: Sequence[Brain]) -> tuple[AreaClass, ...]:
    first = brains[0]
    if len(first.classes) < 2:
        raise InputError(
            f"{first.root / 'brain.toml'}: {len(first.classes)} classes, but segmentation needs "
            "two or more [[classes]]"
        )
    for other in brains[1:]:
        if other.classes == first.classes:
            continue
        pairs = zip(first.classes, other.classes, strict=False)
        differing = (f"class {k}: {a} and {b}" for k, (a, b) in enumerate(pairs) if a != b)
        counts = f"{len(first.classes)} and {len(other.classes)} classes"
        raise InputError(
            f"{first.root / 'brain.toml'} and {other.root / 'brain.toml'} differ in their classes "
            f"({next(differing, counts)}). Give both brains the same [[classes]] in the same order"
        )
    return first.classes


def _chosen_sections(
    brains: Sequence[Brain], train_sections: Sequence[str]
) -> list[tuple[Brain, str, SectionRow]]:
    """Return the labeled sections of the three splits, limited in "train" to the named ones.

    Each comes with its brain and the name of that. With several brains, `train_sections` names
    BRAIN/SECTION.

    Raises:
        InputError: a brain is listed twice, a labeled section has no split, a named section is not
            one of them, or no training section remains.
    """
    names = brain_names([brain.root for brain in brains])

    def by_name(rows: Callable[[Brain], Sequence[SectionRow]]):
        return {
            row.name if len(brains) == 1 else f"{name}/{row.name}": (brain, name, row)
            for brain, name in zip(brains, names, strict=True)
            for row in rows(brain)
        }

    labeled = by_name(_labeled_sections)
    training = [name for name, (_, _, row) in labeled.items() if row.split == "train"]
    tables = ", ".join(str(brain.root / brain.section_table) for brain in brains)
    if missing := [name for name in train_sections if name not in training]:
        every = {name: row for name, (_, _, row) in by_name(lambda brain: brain.sections).items()}
        raise InputError(
            f"data.train_sections: {missing[0]!r}: {_why_not_training(every, missing[0])} "
            f"({tables}). The annotated sections of the split train are: "
            f"{', '.join(sorted(training)) or 'none'}"
        )
    if not training:
        raise InputError(
            f"{tables}: no section has both a label and the split train. Annotate one of that "
            "split, or correct the column"
        )
    wanted = set(train_sections or training)
    return [entry for name, entry in labeled.items() if entry[2].split != "train" or name in wanted]


def _labeled_sections(brain: Brain) -> list[SectionRow]:
    """Return the sections with a label image, except those of the split "exclude".

    Raises:
        InputError: one of them has no split.
    """
    labeled = [row for row in brain.sections if row.label is not None]
    if empty := [row.name for row in labeled if not row.split]:
        raise InputError(
            f"{brain.root / brain.section_table}: split: empty for {len(empty)} annotated "
            f"sections ({', '.join(empty[:5])}{', ...' * (len(empty) > 5)}). Fill in train, "
            f"val, test or exclude, or let `jaxcyto sample {brain.root}` fill the column"
        )
    return [row for row in labeled if row.split != "exclude"]


def _why_not_training(sections: Mapping[str, SectionRow], name: str) -> str:
    """Explain why a section cannot be trained on, given all sections by name."""
    if name not in sections:
        if same := [each for each in sections if each.endswith(f"/{name}")]:
            return f"there are several brains, so write BRAIN/SECTION ({' or '.join(same)})"
        return "no section of that name"
    row = sections[name]
    return "it has no label image" if row.label is None else f"its split is {row.split}"


def _open(
    brain: Brain, brain_name: str, row: SectionRow, atlas_factor: int | None
) -> AnnotatedSection:
    image = open_section(row.image, row.pixel_um, brain.background, brain.bits)
    atlas = None
    if atlas_factor is not None:
        if row.atlas is None:
            raise InputError(
                f"{brain.root / brain.section_table}: section {row.name}: atlas: empty. Name its "
                "atlas image, or set data.atlas = False"
            )
        atlas = section_atlas(row, image.shape, brain.classes, atlas_factor)
    return AnnotatedSection(brain, brain_name, row, image, section_label(row, image.shape), atlas)


def _key(rows: Sequence[SectionRow]) -> str:
    """Return the SHA-256 of all that windows and draws depend on.

    These are the names, splits, pixel sizes and label images of the sections, in order.
    """
    digest = hashlib.sha256()
    for row in rows:
        assert row.label is not None
        digest.update(
            f"{row.name}\t{row.split}\t{row.pixel_um}\t{file_sha256(row.label)}\n".encode()
        )
    return digest.hexdigest()
