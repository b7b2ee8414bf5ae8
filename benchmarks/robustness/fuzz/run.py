"""Fuzz every reader: it must refuse a changed input with an InputError or return a valid result.

    python benchmarks/robustness/fuzz/run.py --inputs 10000
    python benchmarks/robustness/fuzz/run.py --reader gifti --seed 1 --keep FOLDER

The script writes valid files (and takes some from ../shared/data if it exists) and mutates them at
random. Each input depends on the reader, the seed and the input's number only. A finding is one of:

* an exception other than an InputError that names the file
* a warning other than the reader's own
* an invalid result
* a crash of the interpreter
* more than 10 s, more than 512 MiB, or a request for memory beyond 1.5 GiB
* a file opened outside of the folder, a connection, or a pickle

`--keep` keeps the files with a finding, and `--only NUMBER` reads one input of a reader again. The
exit status is 1 if there is a finding. The last line on stdout is one JSON object.
"""

import argparse
import collections
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.robustness.fuzz.progress import Progress

READERS = (
    *("gifti", "gifti labels", "freesurfer", "freesurfer labels", "text labels", "mni obj"),
    *("other meshes", "vtk", "gzipped", "tiff", "png", "label image", "atlas image"),
    *("class map", "brain.toml", "sections.csv", "coordinate map", "patches", "pairs", "distances"),
    *("geodesic cache", "oracle parts", "geojson", "weights", "run config", "metrics"),
    "checkpoint",
    "export",
)
LIMIT_S = 10


def main() -> None:
    arguments = parse()
    names = [name for name in READERS if arguments.reader in (None, name)]
    if not names:
        sys.exit(f"no reader {arguments.reader!r}. The readers are {', '.join(READERS)}.")
    if arguments.only is not None and len(names) > 1:
        sys.exit("--only needs --reader")
    workers = min(arguments.jobs, len(names))
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=fast) as folder:
        jobs = [Job(names[k::workers], arguments, Path(folder) / str(k)) for k in range(workers)]
        try:
            while not all([job.done() for job in jobs]):
                time.sleep(0.1)
        finally:
            for job in jobs:
                job.process.kill()
        results = {name: value for job in jobs for name, value in job.results().items()}
    for name in names:
        found = results[name]
        print(
            f"{name:<18} {found['tried']:>6} tried {found['accepted']:>6} accepted "
            f"{found['refused']:>6} refused {found['findings']:>4} findings "
            f"{found['seconds']:>7.1f} s {found['peak_mib']:>5.0f} MiB"
        )
    total = sum(found["findings"] for found in results.values())
    readers = {name: results[name] for name in names}
    print(json.dumps({"seed": arguments.seed, "findings": total, "readers": readers}))
    sys.exit(1 if total else 0)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs per reader")
    parser.add_argument("--reader", help="one reader, in quotes if it has a blank (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs with a finding")
    parser.add_argument("--only", type=int, help="number of the only input to read")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes")
    return parser.parse_args()


class Job:
    """A worker process that reads the inputs of some readers.

    If an input ends the process or hangs, a new process starts with the next input.

    Args:
        names: the readers.
        arguments: the command line.
        folder: a folder for the process, which must not exist.
    """

    def __init__(self, names: list[str], arguments: argparse.Namespace, folder: Path):
        self.names, self.arguments, self.folder = names, arguments, folder
        folder.mkdir()
        self.first, self.last = 0, arguments.inputs
        if arguments.only is not None:
            self.first, self.last = arguments.only, arguments.only + 1
        self.findings: list[dict] = []
        self.progress = Progress(folder / "progress", len(names), new=True)
        self.reader, self.number = 0, self.first
        self.start()

    def start(self) -> None:
        """Start a process at the current reader and input."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        self.progress.at(-1, -1)
        keep = self.arguments.keep
        task = {
            "readers": self.names,
            "reader": self.reader,
            "number": self.number,
            "first": self.first,
            "last": self.last,
            "seed": self.arguments.seed,
            "folder": str(self.folder),
            "keep": None if keep is None else str(keep.resolve()),
        }
        worker = Path(__file__).with_name("worker.py")
        with open(self.folder / "stderr", "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(worker), json.dumps(task)], stdout=errors, stderr=errors
            )
        self.seen, self.looks, self.worked = (-2, -2), 0, 0.0

    def done(self) -> bool:
        """Check the process, restart it if needed, and return whether all inputs were read."""
        code = self.process.poll()
        at = self.progress.where()
        if at != self.seen:
            self.seen, self.looks, self.worked = at, 0, self.processor_s()
        # The limit is on processor time, because the machine may be busy with other work. A process
        # that sleeps has a longer limit, counted in looks (ten per second) and not by the clock, so
        # that a suspended machine makes no finding.
        self.looks += 1
        hangs = code is None and self.looks > (600 if at[0] >= 0 else 3000)
        hangs |= code is None and at[0] >= 0 and self.processor_s() - self.worked > LIMIT_S + 2
        if code is None and not hangs:
            return False
        if code == 0:
            return True
        self.process.kill()
        self.process.wait()
        tail = (self.folder / "stderr").read_text(errors="replace")[-3000:]
        reader, number = self.progress.where()
        if reader < 0:
            raise RuntimeError(f"the process did not start\n{tail}")
        what = "hangs" if hangs else f"ends the interpreter (exit status {code})"
        name = self.names[reader]
        self.findings.append({"reader": name, "number": number, "what": what, "where": tail})
        self.reader, self.number = reader, number + 1
        self.start()
        return False

    def processor_s(self) -> float:
        """Return the processor time of the process in seconds, 0 if it has ended."""
        try:
            text = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return 0.0
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def results(self) -> dict[str, dict]:
        """Return the sums by reader, and print the findings, each kind once."""
        log = self.folder / "findings.jsonl"
        if log.exists():
            self.findings += [json.loads(line) for line in log.read_text().splitlines()]
        kinds: dict[tuple, list[dict]] = collections.defaultdict(list)
        for found in self.findings:
            what = found["what"].partition(": ")[0]
            kinds[found["reader"], what, found["where"][-200:]].append(found)
        for (reader, _, where), found in kinds.items():
            first = found[0]
            again = f"--reader '{reader}' --seed {self.arguments.seed} --only {first['number']}"
            print(f"{reader}: {len(found)} x {first['what']}\n  {again}\n{where}", flush=True)
        results = {}
        for index, name in enumerate(self.names):
            accepted, refused, microseconds, peak = self.progress.sums(index)
            results[name] = {
                "tried": self.last - self.first,
                "accepted": accepted,
                "refused": refused,
                "findings": sum(found["reader"] == name for found in self.findings),
                "seconds": round(microseconds / 1e6, 1),
                "peak_mib": round(peak / 1024, 1),
            }
        return results


if __name__ == "__main__":
    main()
