"""Write the model card of an export, a README.md with YAML metadata for Hugging Face."""

import json
from collections import Counter
from typing import Any

import jax

from jaxcyto.runs.load import PretextRun, SegmentRun

ABOUT_PRETEXT = """\
This network computes texture features of patches of brain sections. It was trained to predict, from
two patches of cortex, their distance along the cortical surface and their positions in the brain
(Spitzer et al., MICCAI 2018, arXiv 1806.05104)."""
ABOUT_SEGMENT = """\
This U-Net segments brain areas in sections (Spitzer et al., ISBI 2017). If `init_from` is set in
the config, it was pre-trained (Spitzer et al., MICCAI 2018, arXiv 1806.05104)."""
USE_PRETEXT = """\
found = net.embed(patches)              # uint8 [N, {side}, {side}], {um:g} um/px
found.features                          # float32 [N, {features}]
found.coordinates_mm                    # float32 [N, 3]"""
USE_SEGMENT = """\
found = net.segment(image)             # uint8 [H, W] at {um:g} um/px
found.classes                          # uint8 [h, w], class indices on pixels of {out:g} um
[entry.name for entry in net.classes]  # their names"""
USE_ATLAS = """\
# atlas: uint8 [{areas}, h, w] in pixels of 16 um, 255 = probability 1 of an area
found = net.segment(image, atlas=atlas)  # image: uint8 [H, W] at {um:g} um/px
found.classes                            # uint8 [h, w], class indices on pixels of {out:g} um
[entry.name for entry in net.classes]    # their names"""
TORCH = """\
In PyTorch, with `benchmarks/pytorch/torch_net.py` of jaxcyto, which only needs torch and
safetensors:

```python
from torch_net import load

net, about = load("model.safetensors")  # in eval mode, and the metadata as a dict
```

Arrays have the names and the layout of Flax, with channels last. The kernel of a convolution is
[height, width, in, out]. Compared with PyTorch, that of a transposed convolution is also mirrored.
Kernels of dense layers are [in, out]. The epsilon of batch normalization is 1e-5. Pooling is 2x2 in
ceil mode. Convolutions have no padding."""


def model_card(title: str, network: PretextRun | SegmentRun, table: dict[str, Any]) -> str:
    """Return the model card in Markdown.

    Args:
        title: title of the card.
        network: the loaded network.
        table: metadata with the fields `export_file.FIELDS`.
    """
    segments = isinstance(network, SegmentRun)
    kind = "image-segmentation" if segments else "image-feature-extraction"
    parts = [
        f"---\nlibrary_name: jaxcyto\npipeline_tag: {kind}\n"
        "tags: [jax, flax, histology, neuroscience]\n---",
        f"# {_cell(title)}",
        ABOUT_SEGMENT if segments else ABOUT_PRETEXT,
        "## Network\n\n" + _table(["", ""], _network(network)),
        "## Training data\n\n" + _training_data(network, table["trained_on"]),
        "## Test\n\n" + _test(table["results"]),
        f"## Use\n\n{_use(network)}\n\n{TORCH}",
        "## Limits\n\n" + "\n".join(f"* {line}" for line in _limits(network)),
        "## How it was made\n\n" + _made(table),
    ]
    return "\n\n".join(parts) + "\n"


def _network(network: PretextRun | SegmentRun) -> list[tuple[str, ...]]:
    model, um = network.model, f"{network.um_per_px:g} um/px"
    if isinstance(network, SegmentRun):
        mean, std = network.input_mean, network.input_std
        rows = [
            ("input", f"gray section at {um}, windows of {network.image_px} px in training"),
            ("output", f"{len(network.classes)} classes on pixels of {network.out_um:g} um"),
            ("classes", ", ".join(f"{c.name} ({c.kind})" for c in network.classes)),
        ]
        if network.atlas_channels:
            rows.append(("atlas", f"probabilities of {network.atlas_channels} areas, required"))
    else:
        scales = network.scales
        mean, std = scales.input_mean, scales.input_std
        low, high = scales.coordinate_low_mm, scales.coordinate_high_mm
        axes = zip(("|x|" if network.absolute_x else "x", "y", "z"), low, high, strict=True)
        ranges = ", ".join(f"{axis} {a:.4g} ... {b:.4g}" for axis, a, b in axes)
        rows = [
            ("input", f"gray patches of {network.patch_px} x {network.patch_px} px at {um}"),
            ("output", f"{network.model.features} features and 3 coordinates"),
            (
                "distance",
                f"squared Euclidean distance of two feature vectors * {scales.distance_mm:.6g} mm",
            ),
            ("coordinates", f"-1 ... 1 correspond to {ranges} mm"),
        ]
    leaves = jax.tree.leaves(network.variables["params"])
    widths = ", ".join(map(str, model.widths))
    return [
        *rows,
        ("standardization", f"(gray value - {mean:.6g}) / {std:.6g}"),
        ("blocks", f"{widths} channels, two valid convolutions each"),
        ("first convolution", f"{model.stem_kernel} px, stride {model.stem_stride}"),
        ("parameters", f"{sum(leaf.size for leaf in leaves):,}"),
        ("computation in", str(model.dtype)),
    ]


def _training_data(network: PretextRun | SegmentRun, brains: list[Any]) -> str:
    rows = [
        tuple(
            str(brain.get(key) or "not stated") for key in ("name", "task", "licence", "citation")
        )
        for brain in brains
    ]
    lines = [
        _table(["brain", "used for", "license", "citation"], rows) if rows else "Not recorded."
    ]
    sections = Counter(name.rpartition("/")[0] for name in network.training_sections)
    if sections:
        counts = ", ".join(f"{count} of {_cell(name)}" for name, count in sections.items())
        lines.append(f"Training sections: {counts}. The metadata lists their names.")
    lines.append(
        "If you publish these weights, state their license here. Check the licenses of the data "
        "first."
    )
    return "\n\n".join(lines)


def _test(results: dict[str, Any]) -> str:
    """Show the scalar test results, beside those of a constant prediction if known."""
    test = results.get("test")
    if not isinstance(test, dict):
        return "Not tested."
    numbers = {key: value for key, value in test.items() if type(value) in (int, float)}
    rows = [
        (key, f"{value:.4g}" if isinstance(value, float) else f"{value}", _constant(numbers, key))
        for key, value in numbers.items()
        if not key.endswith("_constant")
    ]
    head = ["test sections", "network", "training median"]
    if not any(constant for *_, constant in rows):
        head, rows = head[:2], [row[:2] for row in rows]
    text = _table(head, rows)
    dice = test.get("dice")
    if isinstance(dice, dict):
        known = [(name, f"{v:.3f}") for name, v in dice.items() if isinstance(v, float)]
        text += "\n\n" + _table(["class", "Dice"], known)
    return text


def _constant(numbers: dict[str, Any], key: str) -> str:
    value = numbers.get(f"{key}_constant")
    return "" if value is None else f"{value:.4g}"


def _use(network: PretextRun | SegmentRun) -> str:
    if isinstance(network, SegmentRun):
        code = (USE_ATLAS if network.atlas_channels else USE_SEGMENT).format(
            um=network.um_per_px, out=network.out_um, areas=network.atlas_channels
        )
        commands = "jaxcyto predict OUT brains/mine", "jaxcyto evaluate OUT brains/mine"
    else:
        code = USE_PRETEXT.format(
            side=network.patch_px, um=network.um_per_px, features=network.model.features
        )
        commands = (
            "jaxcyto explore OUT brains/mine",
            "train.py --config configs/segment.py --config.init_from=OUT ...",
        )
    lines = "\n".join(f"    {command}" for command in commands)
    return (
        f'In JAX:\n\n```python\nimport jaxcyto\n\nnet = jaxcyto.load("OUT")  # this folder, or '
        f"model.safetensors\n{code}\n```\n\nOr on the command line:\n\n{lines}"
    )


def _limits(network: PretextRun | SegmentRun) -> list[str]:
    lines = [
        f"The network is made for sections at {network.um_per_px:g} um/px that are stained and "
        "scanned like the training data. Texture does not transfer between resolutions.",
        "The results above are for the test sections of the training brains. Other brains have "
        "not been tested.",
        "For research only. This is not a medical device.",
    ]
    if isinstance(network, PretextRun):
        lines.insert(1, "The features are made for patches whose center lies in the cortex.")
        if network.absolute_x:
            lines.insert(
                1, "The network does not distinguish left and right. The first coordinate is |x|."
            )
    return lines


def _made(table: dict[str, Any]) -> str:
    packages = ", ".join(f"{_cell(k)} {_cell(v)}" for k, v in table["packages"].items())
    steps = table["results"].get("steps")
    trained = f"Trained for {steps} steps" if steps else "Trained"
    config = json.dumps(table["config"], indent=2)
    return (
        f"{trained} with {packages or 'unrecorded versions of the packages'}. The config:\n\n"
        f"<details>\n\n```json\n{config}\n```\n\n</details>"
    )


def _table(head: list[str], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(entry) for entry in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: Any) -> str:
    """Escape text of a brain.toml so that it stays within its cell and cannot form a link."""
    plain = " ".join(str(text).split()).replace("\\", "\\\\")
    return plain.replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")
