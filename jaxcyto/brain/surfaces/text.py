"""Convert the words of text files to numbers."""

import numpy as np

MAX_LETTERS = 64  # of a number in a text file


def numbers_of(words: list[bytes]) -> np.ndarray:
    """Convert N words to float64 [N]. Raises ValueError if one is not a number."""
    # In a NumPy array every word takes as much memory as the longest.
    if max(map(len, words), default=0) > MAX_LETTERS:
        raise ValueError(f"a word of over {MAX_LETTERS} letters")
    return np.array(words, "S").astype(np.float64)
