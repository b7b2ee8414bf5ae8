"""Damage files at random."""

from collections.abc import Sequence

from hypothesis import strategies as st


@st.composite
def damaged_files(draw: st.DrawFn, wholes: Sequence[bytes]) -> bytes:
    """Cut off one of the files somewhere, and change up to four of its bytes."""
    whole = draw(st.sampled_from(wholes))
    content = bytearray(whole[: draw(st.integers(1, len(whole)))])
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)
