"""The process of `fuzz.py` that reads: limited in memory, and watched in what it opens."""

import contextlib
import faulthandler
import io
import json
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.robustness.fuzz.progress import Progress
from benchmarks.robustness.fuzz.runs import run_targets
from benchmarks.robustness.fuzz.targets import Target, brain_targets
from jaxcyto.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 10
LIMIT_MIB = 512  # resident, of one input: fixed limits of the readers stay below it
ADDRESS_MIB = 1536  # beyond what the imports take
FORBIDDEN = ("pickle.find_class", "socket.connect", "subprocess.Popen", "os.system", "os.exec")


def work(task: dict) -> None:
    """Reads inputs `first` ... `last` - 1 of the readers, from (`reader`, `number`) on."""
    faulthandler.enable()
    folder = Path(task["folder"])
    tempfile.tempdir = str(folder)
    targets = make_targets(folder / "work")
    progress = Progress(folder / "progress", len(task["readers"]))
    limit_memory()
    watch = Watch(folder)
    for place, name in enumerate(task["readers"]):
        first = task["number"] if place == task["reader"] else task["first"]
        if place < task["reader"]:
            continue
        target, path = targets[name]
        original = path.read_bytes() if path.exists() else None
        for number in range(first, task["last"]):
            progress.at(place, number)
            data = draw(target, name, task["seed"], number)
            path.unlink(missing_ok=True)
            path.write_bytes(data)
            before, began = watch.reset(), time.process_time()
            accepted, what, where = attempt(target, path, watch)
            seconds, used = time.process_time() - began, watch.peak() - before
            progress.add(place, accepted, 1e6 * seconds, used)
            if not what and seconds > LIMIT_S:
                what = f"takes {seconds:.0f} s"
            if not what and used > LIMIT_MIB << 10:
                what = f"takes {used >> 10} MiB"
            if what:
                found = {"reader": name, "number": number, "what": what[:500], "where": where}
                with open(folder / "findings.jsonl", "a") as log:
                    log.write(json.dumps(found) + "\n")
                if task["keep"]:
                    keep(Path(task["keep"]), f"{name}_{task['seed']}_{number}_{path.name}", data)
        path.unlink(missing_ok=True)
        if original is not None:
            path.write_bytes(original)  # the next readers need it


def make_targets(root: Path) -> dict[str, tuple[Target, Path]]:
    """All readers, and where the changed file of each goes."""
    root.mkdir()
    shared = ROOT.parent / "shared" / "data"
    brain = brain_targets(root / "ball", shared if shared.is_dir() else None)
    runs = run_targets(root / "run")
    return {
        name: (target, root / folder / target.file)
        for folder, group in (("ball", brain), ("run", runs))
        for name, target in group.items()
    }


def limit_memory() -> None:
    status = Path("/proc/self/status").read_text()
    used = int(status.split("VmSize:")[1].split()[0])
    most = (used << 10) + (ADDRESS_MIB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def keep(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name.replace(" ", "_")).write_bytes(data)


def draw(target: Target, name: str, seed: int, number: int) -> bytes:
    """Input `number` of a reader."""
    rng = random.Random(f"{name} {seed} {number}")
    pool = target.real if target.real and rng.random() < 0.02 else target.seeds
    data, mutations = rng.choice(pool)
    for _ in range(1 if rng.random() < 0.8 else 2):
        # A second change may not find its way in what the first has left.
        with contextlib.suppress(Exception):
            data = rng.choice(mutations)(rng, data)
    if target.repair and rng.random() < 0.7:
        with contextlib.suppress(Exception):
            data = target.repair(data)
    return data


def attempt(target: Target, path: Path, watch: "Watch") -> tuple[bool, str, str]:
    """Reads one input: whether it was accepted, what was found, and where."""
    said = io.StringIO()
    own = re.escape(str(path))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), watch:
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", f"{own}: ", UserWarning)
            target.read(path)
        what = "; ".join(watch.seen)
        return True, what or (said.getvalue() and "prints"), ""
    except InputError as error:
        what = "; ".join(watch.seen)
        if str(path.parent) not in str(error):
            what = what or f"InputError that does not name the file: {error}"
        chain, seen = error, []
        while chain is not None and chain not in seen:
            seen.append(chain)
            if isinstance(chain, MemoryError):
                what = what or f"asks for memory beyond {ADDRESS_MIB} MiB: {chain}"
            chain = chain.__context__
        return False, what, last_frames(seen[-1]) if what else ""
    except BaseException as error:
        return False, f"{type(error).__name__}: {error}"[:500], last_frames(error)


def last_frames(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__)[-2:])


class Watch:
    """What a reader opens, and the memory it takes."""

    def __init__(self, folder: Path):
        roots = [folder, Path(sys.prefix), Path(sys.base_prefix), ROOT]
        self._allowed = tuple(str(root.resolve()) + os.sep for root in roots)
        self._outside = str(folder / "work" / "outside.tif")
        self._on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def __enter__(self) -> None:
        self.seen, self._on = [], True

    def __exit__(self, *_) -> None:
        self._on = False

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self._on:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r}"[:200])
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path = os.fsdecode(arguments[0])
            real = os.path.realpath(path)
            if not real.startswith(self._allowed) or real == self._outside:
                self.seen.append(f"opens {path[:100]!r}")

    def reset(self) -> int:
        """Memory in KiB; the peak starts anew."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        return self.peak()

    def peak(self) -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
