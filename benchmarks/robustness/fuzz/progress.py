"""Share the progress of a worker with its parent, in a file that survives the worker."""

import mmap
import struct
from pathlib import Path

WORD = 8
SUMS = 4  # per reader: accepted, refused, microseconds, peak KiB


class Progress:
    """The current input and the sums of each reader, in memory shared by two processes.

    Args:
        path: the file that is mapped into memory.
        readers: number of readers.
        new: whether to create the file.
    """

    def __init__(self, path: Path, readers: int, new: bool = False):
        if new:
            path.write_bytes(bytes(WORD * (2 + SUMS * readers)))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def at(self, reader: int, number: int) -> None:
        """Record the current reader and input, (-1, -1) for none yet."""
        struct.pack_into("2q", self._map, 0, reader, number)

    def where(self) -> tuple[int, int]:
        """Return the current reader and input."""
        reader, number = struct.unpack_from("2q", self._map, 0)
        return reader, number

    def add(self, reader: int, accepted: bool, microseconds: float, peak: int) -> None:
        """Add one input to the sums of a reader, with its peak memory in KiB."""
        yes, no, time, most = self.sums(reader)
        values = yes + accepted, no + (not accepted), time + round(microseconds), max(most, peak)
        struct.pack_into("4q", self._map, self._offset(reader), *values)

    def sums(self, reader: int) -> tuple[int, int, int, int]:
        """Return accepted inputs, refused inputs, microseconds and peak KiB of a reader."""
        return struct.unpack_from("4q", self._map, self._offset(reader))

    def _offset(self, reader: int) -> int:
        return WORD * (2 + SUMS * reader)
