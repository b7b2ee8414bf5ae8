"""Read mutated inputs in a process of run.py, with limited memory and watched for what it opens."""

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
LIMIT_MIB = 512  # resident memory of one input. The readers' own limits are below it.
ADDRESS_MIB = 1536  # address space beyond what the imports use
FORBIDDEN = ("pickle.find_class", "socket.connect", "subprocess.Popen", "os.system", "os.exec")


def work(task: dict) -> None:
    """Read the inputs `first` to `last` - 1 of the readers, from input `number` of `reader` on.

    Args:
        task: what run.py passes as JSON.
    """
    faulthandler.enable()
    folder = Path(task["folder"])
    tempfile.tempdir = str(folder)
    targets = make_targets(folder / "work")
    progress = Progress(folder / "progress", len(task["readers"]))
    limit_memory()
    watch = Watch(folder)
    for index, name in enumerate(task["readers"]):
        first = task["number"] if index == task["reader"] else task["first"]
        if index < task["reader"]:
            continue
        target, path = targets[name]
        original = path.read_bytes() if path.exists() else None
        for number in range(first, task["last"]):
            progress.at(index, number)
            data = draw(target, name, task["seed"], number)
            path.unlink(missing_ok=True)
            path.write_bytes(data)
            before, began = watch.reset(), time.process_time()
            accepted, what, where = attempt(target, path, watch)
            seconds, used = time.process_time() - began, watch.peak() - before
            progress.add(index, accepted, 1e6 * seconds, used)
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
    """Return the targets of all readers, each with the path of its changed file."""
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
    """Limit the address space of this process."""
    status = Path("/proc/self/status").read_text()
    used = int(status.split("VmSize:")[1].split()[0])
    most = (used << 10) + (ADDRESS_MIB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def keep(folder: Path, name: str, data: bytes) -> None:
    """Write an input with a finding to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name.replace(" ", "_")).write_bytes(data)


def draw(target: Target, name: str, seed: int, number: int) -> bytes:
    """Draw the input `number` of a reader. It depends on name, seed and number only."""
    rng = random.Random(f"{name} {seed} {number}")
    pool = target.real if target.real and rng.random() < 0.02 else target.seeds
    data, mutations = rng.choice(pool)
    for _ in range(1 if rng.random() < 0.8 else 2):
        # a second mutation may fail on a file that the first has broken
        with contextlib.suppress(Exception):
            data = rng.choice(mutations)(rng, data)
    if target.repair and rng.random() < 0.7:
        with contextlib.suppress(Exception):
            data = target.repair(data)
    return data


def attempt(target: Target, path: Path, watch: "Watch") -> tuple[bool, str, str]:
    """Read one input.

    Returns:
        Whether it was accepted, a description of the finding (empty for none), and the last frames
        of its traceback.
    """
    printed = io.StringIO()
    own = re.escape(str(path))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), watch:
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", f"{own}: ", UserWarning)
            target.read(path)
        what = "; ".join(watch.seen)
        return True, what or (printed.getvalue() and "prints"), ""
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
    """Format the last two frames of an error's traceback."""
    return "".join(traceback.format_tb(error.__traceback__)[-2:])


class Watch:
    """A context that records forbidden operations of a reader and measures its memory.

    Forbidden are the audit events in `FORBIDDEN`, and opening files outside of the work folder, the
    interpreter's folders and the checkout. The work folder contains a link to `outside.tif`, which
    a reader must not follow.

    Args:
        folder: the folder of the process.
    """

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
        """Reset the peak of the resident memory, and return it in KiB."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        return self.peak()

    def peak(self) -> int:
        """Return the peak of the resident memory in KiB."""
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
