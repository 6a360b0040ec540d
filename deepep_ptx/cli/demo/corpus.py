# SPDX-License-Identifier: MIT
"""Text to bfloat16 rows: what the main job sends around."""

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import ml_dtypes
import numpy as np

UNITS = ("words", "bytes")
SHIPPED_TEXT = "sorting.txt"
MAX_TEXT_BYTES = 16 << 20  # of a file; more than any run needs


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text as numbers.

    Attributes:
        idx: int64 [count], index into `vocabulary`.
        vocabulary: distinct words (str) or byte values (int), in order of first appearance.
    """

    idx: np.ndarray
    vocabulary: list


def read_text(path=None):
    """The first 16 MiB of file `path`, or the text that ships with the package, as bytes.

    Raises ValueError when it cannot be read or there is nothing in it.
    """
    if path is None:
        return (resources.files("deepep_ptx.cli.demo") / SHIPPED_TEXT).read_bytes()
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_TEXT_BYTES)
    except OSError as error:
        raise ValueError(f"text: cannot read {path}: {error.strerror}") from error
    if not text.strip():
        raise ValueError(f"text: must not be empty, {path} is")
    return text


def tokenise(text, unit, count):
    """The first `count` tokens of `text`, starting over at its end.

    Args:
        text: bytes; for words read as UTF-8, words in lower case and each other sign alone.
        unit: "words" or "bytes".
        count: tokens wanted.

    Raises:
        ValueError: unknown unit, or a text without a token.
    """
    if unit == "bytes":
        pieces = list(text[:count])
    elif unit == "words":
        found = re.finditer(r"\w+|[^\w\s]", text.decode(errors="replace").lower())
        pieces = [match.group() for match, _ in zip(found, range(count), strict=False)]
    else:
        raise ValueError(f"unit: must be one of {', '.join(UNITS)}, got {unit!r}")
    if not pieces:
        raise ValueError(f"text: must have at least one token, it has no {unit}")
    number = {}
    idx = np.array([number.setdefault(piece, len(number)) for piece in pieces], dtype=np.int64)
    return Tokens(np.resize(idx, count), list(number))


def spans(num_ranks, num_tokens):
    """Each rank's share [first, last) of num_ranks * num_tokens tokens, uneven on purpose.

    Shares grow from half the mean on rank 0 to one and a half on the last rank.
    """
    weight = np.linspace(0.5, 1.5, num_ranks) if num_ranks > 1 else np.ones(1)
    ends = np.rint(np.cumsum(weight) * num_tokens).astype(int)
    return [slice(int(first), int(last))
            for first, last in zip([0, *ends[:-1]], ends, strict=True)]


def embedding_table(num_tokens, hidden, rng):
    """One standard normal float32 row per vocabulary entry: [num_tokens, hidden]."""
    return rng.standard_normal((num_tokens, hidden), dtype=np.float32)


def embed(tokens, table):
    """bfloat16 [count, hidden]: each token's row plus half of its predecessor's.

    The predecessor makes two appearances of one word different rows, so that a row in a wrong
    place shows.
    """
    x = table[tokens.idx]
    x[1:] += np.float32(0.5) * table[tokens.idx[:-1]]
    return x.astype(ml_dtypes.bfloat16)
