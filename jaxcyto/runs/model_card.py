"""The model card of an export, as Hugging Face shows it: a README.md with a head of YAML."""

import json
from collections import Counter
from typing import Any

import jax

from jaxcyto.runs.load import PretextRun, SegmentRun

ABOUT_PRETEXT = """\
Features of the texture of brain sections: a branch that was trained to predict, from two patches of
cortex, how far they lie apart along its surface and where they lie in the brain
(Spitzer et al., MICCAI 2018, arXiv 1806.05104)."""
ABOUT_SEGMENT = """\
A U-Net that tells areas on brain sections (Spitzer et al., ISBI 2017, with the pre-training of
Spitzer et al., MICCAI 2018, arXiv 1806.05104, where the config names `init_from`)."""
USE_PRETEXT = """\
found = net.embed(patches)              # uint8 [N, {side}, {side}], {um:g} um/px
found.features                          # float32 [N, {features}]
found.coordinates_mm                    # float32 [N, 3]"""
USE_SEGMENT = """\
found = net.segment(image)             # uint8 [H, W] at {um:g} um/px
found.classes                          # uint8 [h, w], class numbers on pixels of {out:g} um
[entry.name for entry in net.classes]  # their names"""
TORCH = """\
In PyTorch: `benchmarks/pytorch/torch_net.py` of jaxcyto needs torch and safetensors only.

```python
from torch_net import load

net, about = load("model.safetensors")  # eval mode; about: the table of the metadata
```

Leaves are named as in Flax, with channels last: the kernel of a convolution is [height, width, in,
out], that of a transposed convolution is mirrored beside, and dense ones are [in, out]. The
epsilon of batch norm is 1e-5; pooling is 2x2 in ceil mode, convolutions have no padding."""


def model_card(title: str, network: PretextRun | SegmentRun, table: dict[str, Any]) -> str:
    """The whole card.

    Args:
        title: of the card.
        network: as loaded.
        table: the metadata, with the fields of `export_file.FIELDS`.

    Returns:
        Markdown.
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
            ("input", f"gray section at {um}; windows of {network.image_px} px in training"),
            ("output", f"{len(network.classes)} classes on pixels of {network.out_um:g} um"),
            ("classes", ", ".join(f"{c.name} ({c.kind})" for c in network.classes)),
        ]
        if network.atlas_channels:
            rows.append(("atlas", f"probabilities of {network.atlas_channels} areas, needed"))
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
                f"squared Euclidean distance of two features * {scales.distance_mm:.6g} mm",
            ),
            ("coordinates", f"-1 ... 1 are {ranges} mm"),
        ]
    leaves = jax.tree.leaves(network.variables["params"])
    widths = ", ".join(map(str, model.widths))
    return [
        *rows,
        ("standardization", f"(gray value - {mean:.6g}) / {std:.6g}"),
        ("blocks", f"{widths} channels, two valid convolutions each"),
        ("first convolution", f"{model.stem_kernel} px, stride {model.stem_stride}"),
        ("parameters", f"{sum(leaf.size for leaf in leaves):,}"),
        ("computed in", str(model.dtype)),
    ]


def _training_data(network: PretextRun | SegmentRun, brains: list[Any]) -> str:
    rows = [
        tuple(
            str(brain.get(key) or "not stated") for key in ("name", "task", "licence", "citation")
        )
        for brain in brains
    ]
    lines = [
        _table(["brain", "used for", "licence", "citation"], rows) if rows else "Not recorded."
    ]
    sections = Counter(name.partition("/")[0] for name in network.training_sections)
    if sections:
        counts = ", ".join(f"{number} of {_cell(name)}" for name, number in sections.items())
        lines.append(f"Trained on sections: {counts}; the metadata names them.")
    lines.append(
        "The licence of these weights is for whoever publishes them to state here; look at those "
        "of the data first."
    )
    return "\n\n".join(lines)


def _test(results: dict[str, Any]) -> str:
    """The test's figures that are single numbers, beside those of a constant if known."""
    test = results.get("test")
    if not isinstance(test, dict):
        return "Not tested."
    numbers = {key: value for key, value in test.items() if type(value) in (int, float)}
    rows = [
        (key, f"{value:.4g}" if isinstance(value, float) else f"{value}", _constant(numbers, key))
        for key, value in numbers.items()
        if not key.endswith("_constant")
    ]
    head = ["on the test sections", "network", "training median"]
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
        code = USE_SEGMENT.format(um=network.um_per_px, out=network.out_um)
        commands = "jaxcyto predict OUT brains/mine", "jaxcyto evaluate OUT brains/mine"
        if network.atlas_channels:
            code = "net.classes  # an atlas is needed: segment by `jaxcyto predict`"
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
        f"model.safetensors\n{code}\n```\n\nOr by commands:\n\n{lines}"
    )


def _limits(network: PretextRun | SegmentRun) -> list[str]:
    lines = [
        f"Made for sections at {network.um_per_px:g} um/px, stained and scanned as the training "
        "data; texture does not carry over between resolutions.",
        "The figures above are of test sections of the brains named there; on other brains "
        "nothing has been measured.",
        "For research; not a medical device.",
    ]
    if isinstance(network, PretextRun):
        lines.insert(1, "Features describe patches whose center lies in the cortex.")
        if network.absolute_x:
            lines.insert(1, "Left and right are not told apart: the first coordinate is |x|.")
    return lines


def _made(table: dict[str, Any]) -> str:
    packages = ", ".join(f"{_cell(k)} {_cell(v)}" for k, v in table["packages"].items())
    steps = table["results"].get("steps")
    trained = f"Trained for {steps} steps" if steps else "Trained"
    config = json.dumps(table["config"], indent=2)
    return (
        f"{trained} with {packages or 'versions that are not recorded'}. The config:\n\n"
        f"<details>\n\n```json\n{config}\n```\n\n</details>"
    )


def _table(head: list[str], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(entry) for entry in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: Any) -> str:
    """Text that stays within its cell and is no link, whatever a brain.toml holds."""
    plain = " ".join(str(text).split()).replace("\\", "\\\\")
    return plain.replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")
