"""Test the layout that CONTRIBUTING describes: order of imports, no cycles, small folders."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxcyto"
# Each room may import from those before it, and within itself.
ORDER = (
    *("errors", "losses", "batch_losses", "augment", "models", "config", "config_io", "validate"),
    *(
        "utils",
        "brain",
        "phantom",
        "data",
        "metrics",
        "scores",
        "pretext_scores",
        "runs",
        "plots",
        "training",
    ),
    *("predict", "explore", "report", "api", "cli", "__main__"),
)
MOST_MODULES = 12
NO_JAX = ("utils", "brain", "phantom", "cli")


def modules() -> dict[str, Path]:
    """Map dotted names to the modules of the package. A folder's name maps to its __init__.py."""
    paths = sorted(PACKAGE.glob("**/*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return dict(zip((name.removesuffix(".__init__") for name in names), paths, strict=True))


MODULES = modules()


def imported(path: Path, stub: bool = False) -> set[str]:
    """Return the modules of the package that a file imports, at any depth of its code.

    Relative imports are resolved. `stub` adds what the stub of a face imports on first use.
    """
    files = [path, *([path.with_suffix(".pyi")] if stub and path.name == "__init__.py" else [])]
    files = [file for file in files if file.exists()]
    package = list(path.relative_to(ROOT).parent.parts)
    found = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                deeper = f"{module}.{alias.name}"
                found.add(deeper if deeper in MODULES else module)
    return found & MODULES.keys()


ARROWS = {name: imported(path) - {name} for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.removeprefix("jaxcyto").lstrip(".").split(".")[0]


def test_every_room_has_its_place():
    assert {room(name) for name in MODULES} - {""} == set(ORDER)


def test_no_arrow_runs_back():
    place = {name: k for k, name in enumerate(ORDER)}
    back = [
        (module, other)
        for module, path in MODULES.items()
        for other in imported(path, stub=True)
        if room(module) and place.get(room(other), -1) > place[room(module)]
    ]
    assert back == []


def test_no_circle():
    done: set[str] = set()
    while rest := MODULES.keys() - done:
        free = {name for name in rest if ARROWS[name] <= done}
        assert free, f"these modules import each other in a cycle: {sorted(rest)}"
        done |= free


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()} - {PACKAGE}))
def test_a_folder_is_seen_at_a_glance(folder):
    count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
    assert count <= MOST_MODULES


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in NO_JAX])
def test_rooms_without_jax_do_not_name_it(module):
    tops = {
        alias.name if isinstance(node, ast.Import) else node.module or ""
        for node in ast.parse(MODULES[module].read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not [name for name in tops if name.split(".")[0] in ("jax", "flax", "optax")]


@pytest.mark.parametrize(
    "code",
    [
        *(f"import {name}" for name, path in MODULES.items() if path.name == "__init__.py"),
        "from jaxcyto.cli import main; main(['--help'], standalone_mode=False)",
        "from jaxcyto import InputError",
        "from jaxcyto.brain.surfaces import read_surface",
        "from jaxcyto.brain.sections import open_section",
        "from jaxcyto.predict import open_class_map",
    ],
)
def test_a_door_does_not_bring_the_whole_house(code):
    """Importing a folder does not import JAX, matplotlib or scikit-learn before they are needed."""
    heavy = {"jax", "matplotlib", "sklearn"}
    if code.startswith("import jaxcyto.models"):  # Flax modules
        heavy -= {"jax"}
    code += f"\nimport sys; print(sorted({sorted(heavy)} & sys.modules.keys()), file=sys.stderr)"
    code = code.replace(f"{sorted(heavy)} &", f"set({sorted(heavy)}) &")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.strip() == "[]", done.stderr


def test_private_parts_of_jax_stay_behind_one_door():
    """Only jobs of several processes import the file that uses them."""
    private = [name for name, path in MODULES.items() if "jax._src" in path.read_text()]
    assert private == ["jaxcyto.training.devices.jax_private"]
    code = (
        "import jaxcyto; jaxcyto.load; import jaxcyto.predict.brain, jaxcyto.training.loop, sys; "
        "from jaxcyto.training.devices import distributed; distributed.join(); "
        "print([name for name in sys.modules if 'jax_private' in name])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_nothing_replaces_a_part_of_a_library():
    """An assignment to an attribute of an imported module would change it for all its users."""
    replaced = []
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        imported = {
            alias.asname or alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        } - {"warnings"}  # Python documents that its functions may be replaced
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                root = node.value
                while isinstance(root, ast.Attribute):
                    root = root.value
                if isinstance(root, ast.Name) and root.id in imported:
                    replaced.append(f"{name}: {ast.unparse(node)}")
    assert replaced == []
