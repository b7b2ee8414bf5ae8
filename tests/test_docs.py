"""Test that the commands in README, docs and docstrings use existing files and options."""

import dataclasses
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from jaxcyto.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
SOURCES = [*ROOT.glob("configs/*.py"), *ROOT.glob("benchmarks/**/*.py"), ROOT / "train.py"]
START = r"(?:uv run (?:--extra \w+ )?|srun )?(?:python3? )?"
COMMAND = re.compile(
    rf"{START}((?:jaxcyto [a-z]+|train\.py|benchmarks/[\w/]+\.py|pytest)(?=[\s`])[^\n`]*)"
)


def commands() -> list[tuple[str, str]]:
    """List (file, command without comment) of code blocks, docstrings and inline code."""
    found = []
    for path in [*PAGES, *SOURCES]:
        text = re.sub(r"\\\\?\n\s*", " ", path.read_text())  # continued lines
        pieces = [line.strip() for line in text.splitlines() if re.match(r"( {4}|srun|jaxc)", line)]
        pieces += re.findall(r"`([^`\n]+)`", text)
        for piece in pieces:
            if match := re.match(COMMAND, piece):
                found.append((path.name, re.split(r"\s+#|\s*[;|]\s*|\"$", match[1])[0].strip()))
    return sorted(set(found))


COMMANDS = commands()


def test_there_are_commands_of_each_kind():
    for start, least in (("jaxcyto", 30), ("train.py", 8), ("benchmarks", 15), ("pytest", 6)):
        assert sum(command.startswith(start) for _, command in COMMANDS) >= least, start


@pytest.mark.parametrize(("page", "command"), [c for c in COMMANDS if c[1].startswith("jaxcyto")])
def test_jaxcyto(page, command):
    """The command line itself parses the command. Shell variables are replaced by the number 3."""
    name, *arguments = shlex.split(re.sub(r"\$\(\(.*?\)\)|\$\w+", "3", command))[1:]
    assert name in main.commands, f"{page}: {command}"
    known = main.commands[name]
    if arguments and arguments[0].startswith("--"):  # the text only names an option
        options = {option for parameter in known.params for option in parameter.opts}
        assert {flag for flag in arguments if flag.startswith("--")} <= options
    elif arguments and "..." not in arguments:
        parent = click.Context(main, **main.context_settings)  # as on the command line
        known.make_context(name, arguments, parent=parent)


@pytest.mark.parametrize(("page", "command"), [c for c in COMMANDS if c[1].startswith("train.py")])
def test_train(page, command):
    """Config files exist, and their configs have the overridden fields."""
    arguments = shlex.split(command)[1:]
    config: Any = None
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if flag == "--config" and (ROOT / "configs").name in value:
            config = load(ROOT / value).get_config()
        elif match := re.match(r"--config\.([\w.\[\]]+)=?", flag):
            if config is not None:
                follow(config, match[1])
    for flag in arguments:
        if flag.startswith("--") and not flag.startswith("--config."):
            defined = (ROOT / "train.py").read_text()
            assert f'"{flag[2:].split("=")[0]}"' in defined, f"{page}: {flag}"


def follow(value: Any, path: str) -> None:
    for name in re.findall(r"\w+", path):
        if name.isdecimal():
            value = value[int(name)]
        else:
            assert name in {field.name for field in dataclasses.fields(value)}, path
            value = getattr(value, name)


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # its dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "command"), [c for c in COMMANDS if c[1].startswith("benchmarks")]
)
def test_benchmark(page, command):
    name, *arguments = shlex.split(command)
    path = ROOT / name
    assert path.is_file(), f"{page}: {command}"
    defined = set(re.findall(r"\"(--[\w-]+)\"", path.read_text())) | {"--help"}
    flags = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
    assert flags <= defined, f"{page}: {flags - defined}"


@pytest.mark.parametrize(("page", "command"), [c for c in COMMANDS if c[1].startswith("pytest")])
def test_pytest(page, command):
    for argument in shlex.split(command)[1:]:
        if argument.startswith("tests/"):
            assert (ROOT / argument).is_file(), f"{page}: {command}"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
