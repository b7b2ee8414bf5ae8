"""What a process of `fuzz.py` is at, in a file that outlives it."""

import mmap
import struct
from pathlib import Path

WORD = 8
SUMS = 4  # accepted, refused, microseconds, peak KiB


class Progress:
    """Numbers shared by two processes: the input at work, and sums of each reader."""

    def __init__(self, path: Path, readers: int, new: bool = False):
        if new:
            path.write_bytes(bytes(WORD * (2 + SUMS * readers)))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def at(self, reader: int, number: int) -> None:
        """Says which input is at work; (-1, -1): none yet."""
        struct.pack_into("2q", self._map, 0, reader, number)

    def where(self) -> tuple[int, int]:
        reader, number = struct.unpack_from("2q", self._map, 0)
        return reader, number

    def add(self, reader: int, accepted: bool, microseconds: float, peak: int) -> None:
        yes, no, time, most = self.sums(reader)
        values = yes + accepted, no + (not accepted), time + round(microseconds), max(most, peak)
        struct.pack_into("4q", self._map, self._place(reader), *values)

    def sums(self, reader: int) -> tuple[int, int, int, int]:
        return struct.unpack_from("4q", self._map, self._place(reader))

    def _place(self, reader: int) -> int:
        return WORD * (2 + SUMS * reader)
