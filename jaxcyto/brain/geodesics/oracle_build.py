"""Build an oracle in parts: by several processes, as a job array, or in several runs."""

import os
import tempfile
from pathlib import Path

import numpy as np
from scipy import sparse

from jaxcyto.brain.geodesics.landmarks import (
    CHUNK,
    Anchors,
    Fields,
    Parts,
    Rows,
    choose_anchors,
    near_matrix,
    network,
    working_mesh,
)
from jaxcyto.brain.geodesics.oracle import (
    ANCHORS,
    REACH,
    Oracle,
    load_oracle,
    oracle_key,
    oracle_settings,
)
from jaxcyto.brain.geodesics.solvers import pooled_map
from jaxcyto.brain.surfaces.surface import Surface
from jaxcyto.errors import InputError
from jaxcyto.utils.processes import leave_with_parent
from jaxcyto.utils.progress import Progress

POOL_FROM = 512  # anchors; below this, starting processes takes longer than solving
MOST_ANCHORS = 30_000  # these take 3.6 GB; more only if `anchors` requests about as many


def build_oracle(
    surface: Surface,
    *,
    anchors: int = ANCHORS,
    reach: float = REACH,
    seed: int = 0,
    workers: int = 1,
    folder: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Oracle:
    """Build an oracle of distances.

    Args:
        surface: any triangle mesh.
        anchors: approximate number of anchors A. The oracle takes 4 A^2 bytes of memory.
        reach: radius around an anchor in which distances are solved, in spacings of the anchors.
        seed: draws the anchors.
        workers: number of processes. The result does not depend on it.
        folder: where solved parts are kept. A build that was interrupted continues from there, and
            it uses the parts that other jobs solved (`solve_shard`). The parts stay there until
            `cached_oracle` has saved the oracle and removes them.
        progress: called with (anchors done, anchors). Each anchor counts twice, once for its field
            and once for its row. Then called with (sources done, sources) of the calibration.

    Returns:
        The oracle, calibrated.

    Raises:
        InputError: if the mesh has no area, its triangles name vertices that do not exist, or it
            consists of more pieces than `MOST_ANCHORS`.
    """
    settings = oracle_settings(anchors, reach, seed)
    plan = _Plan(surface, settings, folder)
    fields = list(plan.fields(plan.chunks, workers, progress))
    mesh, chosen = plan.mesh, plan.anchors
    near = near_matrix(fields, len(mesh.surface.vertices))
    far = np.empty((len(chosen.vertex),) * 2, np.float32)
    done = 0
    for part in plan.rows(network(mesh, chosen, near), workers, progress):
        far[done : done + len(part["row"])] = part["row"]
        done += len(part["row"])
    far = np.minimum(far, far.T)  # the two directions differ by rounding
    oracle = Oracle(mesh, chosen.spacing_mm, near, far, settings)
    oracle.calibrate(progress=progress)
    return oracle


def solve_shard(
    surface: Surface,
    folder: str | os.PathLike,
    shard: tuple[int, int],
    *,
    anchors: int = ANCHORS,
    reach: float = REACH,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> int:
    """Solve every n-th part of an oracle's fields into a folder.

    `build_oracle` with the same settings and folder uses these parts. The result is the same as
    without them.

    Args:
        surface: any triangle mesh.
        folder: where parts are written.
        shard: (i, n), where i counts from 1.
        anchors, reach, seed, workers, progress: as for `build_oracle`.

    Returns:
        The number of parts of this shard.

    Raises:
        InputError: if the shard is out of range, or as `build_oracle`.
    """
    index, number = shard
    if not 1 <= index <= number:
        raise InputError(f"shard {index}/{number}: expected 1/n ... n/n")
    plan = _Plan(surface, oracle_settings(anchors, reach, seed), folder)
    chunks = plan.chunks[index - 1 :: number]
    for _ in plan.fields(chunks, workers, progress):
        pass
    return len(chunks)


def cached_oracle(
    path: str | os.PathLike,
    surface: Surface,
    *,
    anchors: int = ANCHORS,
    reach: float = REACH,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Oracle:
    """Read the oracle at `path` if it has this mesh and these settings, else build and save it.

    A file that is damaged or has another mesh or other settings is replaced. Parts of an
    unfinished build lie in the folder `path`.parts. Arguments are those of `build_oracle`.
    """
    path = Path(path)
    folder = parts_folder(path)
    settings = oracle_settings(anchors, reach, seed)
    if (saved := saved_oracle(path, surface, settings)) is not None:
        return saved
    oracle = build_oracle(
        surface,
        anchors=anchors,
        reach=reach,
        seed=seed,
        workers=workers,
        folder=folder,
        progress=progress,
    )
    oracle.save(path)
    Parts(folder, oracle_key(surface, settings)).clear()
    return oracle


def saved_oracle(path: str | os.PathLike, surface: Surface, settings: dict) -> Oracle | None:
    """Read the oracle at `path`. Return None if it has another mesh or other `oracle_settings`."""
    try:
        oracle = load_oracle(path)
    except InputError:
        return None
    same = oracle_key(oracle.surface, oracle.settings) == oracle_key(surface, settings)
    return oracle if same else None


def parts_folder(path: str | os.PathLike) -> Path:
    """Return the folder in which `cached_oracle` keeps parts of an unfinished build."""
    return Path(path).with_name(f"{Path(path).name}.parts")


class _Plan:
    """The parts of an oracle: which there are, and how to read or solve them."""

    def __init__(self, surface: Surface, settings: dict, folder):
        self.mesh = working_mesh(surface, settings["anchors"] / 4)
        self.anchors: Anchors = choose_anchors(self.mesh, settings["anchors"], settings["seed"])
        number = len(self.anchors.vertex)
        if number > max(MOST_ANCHORS, 2 * settings["anchors"]):
            raise InputError(
                f"a surface in so many pieces that distances between them would take "
                f"{4e-9 * number**2:.0f} GB ({number} anchors instead of {settings['anchors']}); "
                "are its triangles joined? Vertices at the same place must be one vertex"
            )
        self.reach_mm = settings["reach"] * self.anchors.spacing_mm
        self.chunks = list(range(-(-len(self.anchors.vertex) // CHUNK)))
        self.parts = Parts(None if folder is None else Path(folder), oracle_key(surface, settings))

    def fields(self, chunks, workers, progress):
        """Yield the parts of `Fields` for some chunks of anchors."""
        surface = self.mesh.surface
        arrays = (surface.vertices, surface.faces, self.anchors.vertex, np.float64(self.reach_mm))
        yield from self._solve("field", Fields, arrays, chunks, workers, progress, 0)

    def rows(self, network: sparse.csr_array, workers, progress):
        """Yield the parts of `Rows` for all chunks of anchors."""
        arrays = (network.indptr, network.indices, network.data)
        yield from self._solve("row", Rows, arrays, self.chunks, workers, progress, 1)

    def _solve(self, name, solver, arrays, chunks, workers, progress, step):
        """Yield parts in the order of `chunks`. Read those that exist, and solve the others."""
        saved = {chunk: self.parts.read(f"{name}_{chunk:05d}") for chunk in chunks}
        missing = [chunk for chunk in chunks if saved[chunk] is None]
        solved = iter(_parallel(solver, arrays, missing, workers))
        number = len(self.anchors.vertex)
        for count, chunk in enumerate(chunks, 1):
            part = saved.pop(chunk)  # and so it is freed once the caller drops it
            if part is None:
                part = next(solved)
                self.parts.write(f"{name}_{chunk:05d}", part)
            if progress:
                progress(step * number + min(count * CHUNK, number), 2 * number)
            yield part


def _parallel(solver, arrays: tuple, chunks: list[int], workers: int):
    """Yield `solver(*arrays)(chunk)` for each chunk, by several processes if that pays."""
    if not chunks:
        return
    if workers <= 1 or len(chunks) * CHUNK < POOL_FROM:
        yield from map(solver(*arrays), chunks)
        return
    # Arrays are passed by file, see `solvers.solve_queries`.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, *arrays)
        yield from pooled_map(_start, (path, solver), _run, chunks, workers)


_worker: Fields | Rows


def _start(path: Path, solver) -> None:
    """Prepare a worker process."""
    global _worker
    leave_with_parent()
    os.environ["OMP_NUM_THREADS"] = "1"  # each worker has one processor
    with np.load(path, allow_pickle=False) as file:
        _worker = solver(*(file[f"arr_{number}"] for number in range(len(file.files))))


def _run(chunk: int) -> dict[str, np.ndarray]:
    return _worker(chunk)
