"""Write the tables and figures of docs/results.md from the result files of run.py.

    python benchmarks/evidence/report.py                  # size "small"
    python benchmarks/evidence/report.py --size tiny --out somewhere

The script replaces the text between the two marks of the page. The rest of the page is written by
hand. The last line on stdout is one JSON array of the claims with their values.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.evidence import figures
from benchmarks.evidence.columns import (
    COLUMNS,
    DETAILS,
    Column,
    Results,
    by_seed,
    cell,
    read_results,
    values,
)
from benchmarks.evidence.plan import ABLATIONS, ALL_ROWS, ROWS, STUDIES
from jaxcyto.errors import InputError
from jaxcyto.utils.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
BEGIN = "<!-- begin: written by benchmarks/evidence/report.py -->"
END = "<!-- end -->"
BASELINES = {
    "other cortex": "true tissue, all cortex called other cortex",
    "true depth": "true tissue, random forest on the texture by true depth",
    "random forest": "random forest on intensity statistics",
    "linear": "linear on intensity statistics",
    "atlas": "the atlas alone",
}


def study_table(
    results: Results, study: str, rows: dict[str, Any], columns: Sequence[Column] = COLUMNS
) -> list[str]:
    """Return the lines of a Markdown table of the rows that have results.

    Args:
        results: all records.
        study: a key of `STUDIES`.
        rows: the rows to show, by name, each with a `title`.
        columns: the columns after the number of seeds.

    Returns:
        The lines, or an empty list if no row has results.
    """
    lines = [
        f"| row | pre-training | seeds | {' | '.join(title for title, _, _ in columns)} |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for row, what in rows.items():
        found = [by_seed(results, study, row, read) for _, _, read in columns]
        if any(found):
            seeds = sorted({len(each) for each in found if each})  # "1-3": cells have 1 to 3
            cells = [cell(each, form) for each, (_, form, _) in zip(found, columns, strict=True)]
            count = "-".join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))
            lines.append(f"| {row} | {what.title} | {count} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


# ---- the paper's claims -------------------------------------------------------------------------


def compare(
    results: Results, study: str, before: str, after: str, title: str, lower: bool
) -> dict[str, Any] | None:
    """Compare one column of two rows over the seeds that both have.

    Args:
        results: all records.
        study: a key of `STUDIES`.
        before: the row to compare with.
        after: the row that a claim says is better.
        title: a title of `COLUMNS`.
        lower: whether lower values are better.

    Returns:
        The means of both rows, the change in percent (None if the first mean is 0), the number of
        seeds and the number of seeds in which `after` is better. None if no seed has both rows.
    """
    a, b = (values(results, study, row, title) for row in (before, after))
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    first, second = (np.array([found[s] for s in seeds]) for found in (a, b))
    better = second < first if lower else second > first
    return {
        "study": study,
        "column": title,
        "rows": [before, after],
        "before": float(first.mean()),
        "after": float(second.mean()),
        "change_percent": float(100 * (second.mean() / first.mean() - 1)) if first.any() else None,
        "better_seeds": int(better.sum()),
        "seeds": len(seeds),
    }


SHOWN = ("phantom", "longer", "longest", "other", "painted", "null")
LONG, STEPS = "4 times the steps of pre-training", ("2 steps x4", "4 steps x4")
# claim, row before, row after, column, whether lower is better
CLAIMS = (
    ("coordinates halve the distance error (row 2 -> 4: -50 %)", "2", "4", "distance error, mm", 1),
    ("both losses are better than distance alone (2 -> 4)", "2", "4", "Dice, areas", 0),
    ("both losses are better than coordinates alone (3 -> 4)", "3", "4", "Dice, areas", 0),
    ("err_seg falls by a third: 21.2 -> 14.4 % (1 -> 4: -32 %)", "1", "4", "err_seg, %", 1),
    ("Dice rises clearly (1 -> 4)", "1", "4", "Dice, areas", 0),
    ("ten times the pairs help moderately (4 -> 5)", "4", "5", "Dice, areas", 0),
    ("ten times the pairs help moderately (4 -> 5)", "4", "5", "distance error, mm", 1),
    ("all pairs of a batch help (4 -> 6, not in the paper)", "4", "6", "Dice, areas", 0),
    ("all pairs of a batch help (4 -> 6, not in the paper)", "4", "6", "distance error, mm", 1),
    ("contrastive instead of both losses (4 -> 7, not in the paper)", "4", "7", "Dice, areas", 0),
    (f"coordinates halve the distance error ({LONG})", *STEPS, "distance error, mm", 1),
    (f"both losses are better than distance alone ({LONG})", *STEPS, "Dice, areas", 0),
)


def claims(results: Results) -> list[dict[str, Any]]:
    """Compare the rows of each claim in each study that has both.

    The entry `null_difference` is the difference on the null phantom at the same budget. Areas do
    not differ there, so this is the gain that a row shows without learning areas.
    """
    found = []
    for study in (*SHOWN, "ablation"):
        for claim, before, after, title, lower in CLAIMS:
            compared = compare(results, study, before, after, title, bool(lower))
            if compared is None:
                continue
            floor = None
            if study != "null" and STUDIES[study].longer == STUDIES["null"].longer:
                floor = compare(results, "null", before, after, title, bool(lower))
            null = None if floor is None else floor["after"] - floor["before"]
            found.append({"claim": claim, **compared, "null_difference": null})
    return found


def claims_table(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| claim | study | measure | before | after | difference | on the null phantom | change "
        "| better in |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        null = "" if each["null_difference"] is None else f"{each['null_difference']:+.2g}"
        change = each["change_percent"]  # None where `before` is 0
        change = "" if change is None else f"{change:+.0f} %"
        lines.append(
            f"| {each['claim']} | {STUDIES[each['study']].title} | {each['column']} "
            f"| {each['before']:.3g} | {each['after']:.3g} "
            f"| {each['after'] - each['before']:+.2g} | {null} | {change} "
            f"| {each['better_seeds']} of {each['seeds']} seeds |"
        )
    return lines if found else []


# ---- floors and ceilings ------------------------------------------------------------------------


def bounds_table(results: Results) -> list[str]:
    """Return the lines of a table of bounds.

    The rows are the baselines without a network, the network from scratch, and the network from
    scratch with all sections annotated.
    """
    lines = ["| study | what | Dice, areas | err_seg, % |", "|---|---|---|---|"]
    for study in STUDIES:
        baseline = results.get((study, "baseline", 0), {}).get("baseline")
        for name, found in (baseline or {}).get("models", {}).items():
            test = found.get("test") or {}
            cells = [
                "" if test.get(key) is None else format(test[key], form)
                for key, form in (("dice_macro_areas", ".3f"), ("err_seg_percent", ".1f"))
            ]
            title = STUDIES[study].title
            lines.append(f"| {title} | {BASELINES[name]} | {' | '.join(cells)} |")
        for row, what in (("1", "U-Net from scratch"), ("ceiling", ALL_ROWS["ceiling"].title)):
            cells = [
                cell(values(results, study, row, title), form)
                for title, form in (("Dice, areas", ".3f"), ("err_seg, %", ".1f"))
            ]
            if any(cells):
                lines.append(f"| {STUDIES[study].title} | {what} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


# ---- choices ------------------------------------------------------------------------------------


def choices_tables(results: Results) -> list[str]:
    """Return the lines of the tables of `ABLATIONS`, one table per set of seeds.

    Each table begins with rows 1, 2 and 4 of the same seeds.
    """
    seeds_of: dict[str, list[int]] = {}
    for study, row, seed in sorted(results):
        if study == "ablation":
            seeds_of.setdefault(row, []).append(seed)
    lines = []
    for seeds in sorted(map(list, {*map(tuple, seeds_of.values())}), reverse=True):
        same = {key: found for key, found in results.items() if key[2] in seeds}
        known = study_table(same, "phantom", {row: ROWS[row] for row in ("1", "2", "4")})
        rows = {row: what for row, what in ABLATIONS.items() if seeds_of.get(row) == seeds}
        if table := study_table(same, "ablation", rows):
            title = f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
            lines += [f"{title}:", "", *table[:2], *known[2:], *table[2:], ""]
    return lines


# ---- the page -----------------------------------------------------------------------------------


def _title(study: str) -> str:
    title = STUDIES[study].title
    return title[:1].upper() + title[1:]


def page(results: Results, drawn: dict[str, str], command: str) -> str:
    """Return the text between the marks of the page.

    Args:
        results: all records.
        drawn: captions of the figures that were drawn, by file name.
        command: the command that writes the page, which is quoted there.
    """
    records = [r for kinds in results.values() for r in kinds.values()]
    # `seconds` counts only the last session of a unit that was interrupted and resumed
    took = [max(record["seconds"], record.get("training_seconds", 0)) for record in records]
    hours = sum(took) / 3600
    devices = sorted({record["device"] for record in records})
    lines = [
        BEGIN,
        "",
        f"`{command}` wrote this part from {len(records)} result files, each of which names its "
        f"commit. The runs took {hours:.1f} hours on {' and on '.join(devices)}, which also had "
        "other work. Cells are mean ± standard deviation over seeds.",
        "",
    ]
    for study in SHOWN:
        rows = {row: ALL_ROWS[row] for row in STUDIES[study].rows}
        if table := study_table(results, study, rows):
            lines += [f"### {_title(study)}", "", *table, ""]
    if table := claims_table(claims(results)):
        lines += ["### The claims", "", *table, ""]
    if table := bounds_table(results):
        lines += ["### Is the task neither too easy nor too hard?", "", *table, ""]
    if tables := choices_tables(results):
        lines += ["### What the paper leaves open", "", *tables]
    for study in ("phantom", "painted", "null"):
        rows = {row: ALL_ROWS[row] for row in STUDIES[study].rows}
        if table := study_table(results, study, rows, DETAILS):
            lines += [f"### {_title(study)}: heads and neighbors", ""]
            lines += [*table, ""]
    for name, caption in drawn.items():
        lines += [f"![{caption}](figures/{name})", "", f"*{caption}*", ""]
    return "\n".join([*lines, END])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", default="small")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results" / "evidence"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of results.md")
    arguments = parser.parse_args()
    try:
        results = read_results(arguments.results / arguments.size)
    except InputError as error:
        raise SystemExit(str(error)) from None
    if not results:
        raise SystemExit(
            f"{arguments.results / arguments.size}: no results. "
            "Run benchmarks/evidence/run.py first."
        )
    drawn = figures.draw(results, arguments.out / "figures")
    path = arguments.out / "results.md"
    text = path.read_text() if path.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    command = f"python benchmarks/evidence/report.py --size {arguments.size}"
    with atomic_write(path) as file:
        file.write((before + page(results, drawn, command) + after).encode())
    print(json.dumps(claims(results)))


if __name__ == "__main__":
    main()
