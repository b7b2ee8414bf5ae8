"""Compare the records of run_all.py with the goals of the speed benchmarks."""

from collections.abc import Callable, Iterator
from typing import Any

Records = dict[str, dict[str, Any]]
Goal = tuple[str, float, float, bool]  # name, measured value, goal, whether lower is better


def _peer(found: dict[str, Any]) -> Iterator[Goal]:
    on_cpu = found["about"]["ours"]["platform"] == "cpu"
    for row in found["results"]:
        train = row["mode"] == "train"
        installed, tuned = (1.1, 0.9) if train else (1.2, 0.95)
        failed = [who for who, value in row["values"].items() if isinstance(value, str)]
        what = f"{row['net']} {row['mode']} {row['dtype']}: ours / fastest PyTorch"
        what += f" (without {', '.join(failed)})" if failed else ""
        if not on_cpu:
            installed = 1.3
        if "ratio_best_peer" in row:
            yield f"{what} as installed", row["ratio_best_peer"], installed, False
        if "ratio_best_tuned_peer" in row:
            yield f"{what} tuned", row["ratio_best_tuned_peer"], tuned, False


def _predict(found: dict[str, Any]) -> Iterator[Goal]:
    goals = {"equal tiles": 1.0, "ratio_best_peer": 1.0, "default/2025": 3.0}
    names = {"equal tiles": "whole section: ours / PyTorch (eager), tiles of 2025 px",
             "ratio_best_peer": "whole section: best of ours / best of PyTorch (eager)",
             "default/2025": "whole section: our default tile / our 2025 px"}  # fmt: skip
    for key, ratio in found["ratios"].items():
        yield names[key], ratio, goals[key], False


def _loader(found: dict[str, Any]) -> Iterator[Goal]:
    goals = {"ours/limit": 0.8, "ours/zarr": 1.0, "loader/DataLoader": 1.0}
    for row in found["rows"]:
        for key, goal in goals.items():
            if row.get(key) is not None:
                yield (
                    f"windows, {row['codec']} tiles of {row['tile_px']} px: {key}",
                    row[key],
                    goal,
                    False,
                )


def _end_to_end(found: dict[str, Any]) -> Iterator[Goal]:
    for row in found["rows"]:
        ratio = row["with_loader_per_device"] / row["images_per_second_per_device"]
        yield "training: with loader / step alone", ratio, 0.95, False


def _startup(found: dict[str, Any]) -> Iterator[Goal]:
    for row in found["rows"]:
        goal = 30.0 if row["cache"] == "cold" else 8.0
        yield (
            f"{row['config']}, {row['cache']} cache: s to the first step",
            row["first_step"],
            goal,
            True,
        )


def _scaling(found: dict[str, Any]) -> Iterator[Goal]:
    for row in found["rows"]:
        if row.get("overhead") is not None:
            yield "parallel wrapper, one device: overhead, %", 100 * row["overhead"], 2.0, True


READERS: dict[str, Callable[[dict[str, Any]], Iterator[Goal]]] = {
    "peer": _peer,
    "predict": _predict,
    "loader": _loader,
    "end_to_end": _end_to_end,
    "startup": _startup,
    "scaling": _scaling,
}


def read(records: Records) -> list[Goal]:
    """List all goals for which there are records."""
    return [goal for name, reader in READERS.items() if name in records
            for goal in reader(records[name]["found"])]  # fmt: skip


def table(records: Records) -> list[str]:
    """Return the lines of a Markdown table of the goals."""
    lines = ["| what | measured | goal | |", "|---|---|---|---|"]
    for what, value, goal, less in read(records):
        met = value <= goal if less else value >= goal
        sign = "<=" if less else ">="
        lines.append(f"| {what} | {value:.2f} | {sign} {goal:g} | {'met' if met else 'missed'} |")
    return lines


def reached(records: Records) -> dict[str, list[float]]:
    """Return [measured value, goal] by name."""
    return {what: [round(value, 3), goal] for what, value, goal, _ in read(records)}
