"""Measure the prose of this checkout: semicolons, and how function docstrings begin.

    python .ci/prose.py                 # figures of the whole checkout; exit status 1 beyond LIMITS
    python .ci/prose.py --list runs     # the places below a path that contains this text

It counts docstrings of jaxcyto/, benchmarks/, configs/ and train.py, and the pages README.md,
CONTRIBUTING.md and docs/**/*.md. Code is left out: fenced and indented blocks, and text between
backticks.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"semicolons": 0.3, "openings": 10.0}  # per 100 words; percent of function docstrings
BRITISH = re.compile(
    r"\b\w*(?:colour|neighbour|centre|grey|behaviour|favour|labell|modell|learnt|"
    r"(?:normal|standard|optim|initial|recogn|summar|organ|raster)is(?:e|ed|ing|ation))\w*",
    re.IGNORECASE,
)
# Names from outside: an attribute of HTML, and a module of an earlier version.
NAMES = ("aria_labelledby", "tiff_grey")
# A summary begins with one of these: what the function does, as an order.
VERBS = frozenset(
    """
    abort accept add adjust align allocate allow answer append apply arrange ask assemble assert
    assign attach augment average begin bind bound broadcast build bundle cache calculate call
    carry change check choose clean clear clip close collect color combine compare compile
    complete compress compute concatenate configure connect contract contrast convert convolve
    copy correct count cover create crop cut darken decide declare decode define delete derive
    describe detect determine digest discard displace divide download draw drop dump embed
    enable encode end enlarge ensure enter enumerate escape estimate evaluate exit expand expect
    explain explore export extend extract fail fall fetch fill filter find finish fit flag
    flatten flush fold follow force fork form format free freeze gather generate get give group
    guess hand handle hash hide hold identify ignore import index inflate inject insert inspect
    integrate interpolate interrupt invert iterate join judge jump keep kill label land launch
    lay leave lengthen lift limit link list listen load locate lock log look loop lower make map
    mark match mean measure merge mirror mix modify move mutate name narrow normalize note
    notice number obtain omit open order outline overwrite pack pad paint pair parse part
    partition paste patch peel perform permute pick place plan plot point pool post predict
    prefer prepare print process produce project propagate prove provide prune pull push put
    raise rank rasterize read rebuild receive recognize recompute record reduce refer refine
    refuse register reject relabel release reload remember remove rename render repair repeat
    replace replicate report request require resample reset reshape resolve restart restore
    restrict resume retry return reverse rewrite rotate round run sample save scale scan
    schedule score search segment select send separate serialize serve set shade shift shorten
    show shrink shuffle shut sign simulate skip smooth solve sort space split spread stack stamp
    standardize start state stay step stop store stream strip submit subtract sum summarize swap
    sweep synchronize take tell test tie tighten time touch trace track train transfer transform
    translate transpose traverse treat try tune turn undo unify unpack update upsample use
    validate verify visit wait walk warn watch weigh weight widen wrap write yield zip
    """.split()
)


class Function(NamedTuple):
    """A function's place and the first line of its docstring."""

    place: str
    summary: str


def without_code(text: str) -> str:
    """Return prose only: no fenced or indented blocks, no text between backticks."""
    text = re.sub(r"^([ \t]*)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"<!--.*?-->|``.+?``|`[^`\n]*`", "", text, flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)|&\w+;", "] ", text)


def docstrings(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Yield each module, class and function that has a docstring, with its cleaned text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield node, text


def unindented(text: str) -> str:
    """Return a docstring whose sections (Args, Returns, Raises) no longer look like code."""
    lines, section = [], False
    for line in text.split("\n"):
        if re.fullmatch(r"(Args|Returns|Raises|Attributes|Yields):", line):
            section = True
        elif line and not line.startswith(" "):
            section = False
        lines.append(line.strip() if section else line)
    return "\n".join(lines)


def is_property(node: ast.AST) -> bool:
    """Return whether a function is read like an attribute."""
    names = [ast.unparse(each) for each in getattr(node, "decorator_list", [])]
    return any(name.endswith(("property", ".setter")) for name in names)


def sources(only: str) -> list[Path]:
    """List the Python files that are counted, those whose path contains the text `only`."""
    found = [ROOT / "train.py"]
    for folder in ("jaxcyto", "benchmarks", "configs"):
        found += sorted((ROOT / folder).glob("**/*.py"))
    return [path for path in found if only in path.relative_to(ROOT).as_posix()]


def pages(only: str) -> list[Path]:
    """List the Markdown pages that are counted, likewise."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
    return [path for path in found if only in path.relative_to(ROOT).as_posix()]


def main() -> None:
    """Print the figures, and with --list the places that make them."""
    parser = argparse.ArgumentParser(description="Measure the prose of this checkout.")
    parser.add_argument("--list", metavar="TEXT", help="show the places below a path with TEXT")
    options = parser.parse_args()
    only = options.list or ""
    semicolons: list[str] = []
    functions: list[Function] = []
    british: list[str] = []
    words = 0
    for path in [*sources(only), *pages(only)]:
        place = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py":
            texts = []
            for node, text in docstrings(path):
                line = getattr(node, "lineno", 1)
                texts.append((f"{place}:{line}", without_code(unindented(text))))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    if not is_property(node):
                        functions.append(Function(f"{place}:{line}", text.split("\n")[0]))
            british += [f"{place}: {found}" for found in BRITISH.findall(path.read_text())]
            british = [line for line in british if not line.endswith(NAMES)]
        else:
            texts = [(place, without_code(path.read_text()))]
            british += [f"{place}: {found}" for found in BRITISH.findall(texts[0][1])]
        for where, text in texts:
            words += len(re.findall(r"[A-Za-z][\w'-]*", text))
            for line in text.split("\n"):
                semicolons += [f"{where}: {line.strip()}"] * line.count(";")
    others = [each for each in functions if first_word(each.summary) not in VERBS]
    figures = {
        "semicolons": 100 * len(semicolons) / max(1, words),
        "openings": 100 * len(others) / max(1, len(functions)),
    }
    if options.list is not None:
        print("\n".join(semicolons), "\n")
        print("\n".join(f"{each.place}: {each.summary}" for each in others), "\n")
        print("\n".join(british))
    print(f"{len(semicolons)} semicolons in {words} words: {figures['semicolons']:.2f} per 100")
    print(
        f"{len(others)} of {len(functions)} function docstrings do not begin with a verb: "
        f"{figures['openings']:.1f} %"
    )
    print(f"{len(british)} words in British spelling")
    over = [name for name, limit in LIMITS.items() if figures[name] > limit]
    sys.exit(bool(options.list is None and (over or british)))


def first_word(summary: str) -> str:
    """Return the first word in lower case."""
    match = re.match(r"[A-Za-z-]+", summary)
    return match[0].lower() if match else ""


if __name__ == "__main__":
    main()
