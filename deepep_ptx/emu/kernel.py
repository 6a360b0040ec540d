# SPDX-License-Identifier: MIT
"""PTX text -> KernelImage, once for each of the last texts of the process."""

from functools import lru_cache

from deepep_ptx.emu.decode import KernelImage, decode
from deepep_ptx.emu.parse import parse

__all__ = ["KernelImage", "load_image"]

_parse = lru_cache(maxsize=16)(parse)


@lru_cache(maxsize=256)
def load_image(text, symbol=None, name="<ptx>"):
    """Parse and decode one entry of a PTX text.

    text: str.  symbol: the entry's name; None where the text has just one entry.
    name: what errors and reports call the text where no `.loc` names a source file.
    Raises PtxError (file, line) for what the executor does not execute, and ValueError for a
    symbol that is not there.  The image is shared: do not write to its arrays.
    """
    module = _parse(text, name)
    entries = {e.name: e for e in module.entries}
    if symbol is None and len(entries) == 1:
        symbol, = entries
    if symbol not in entries:
        raise ValueError(f"symbol must be one of {', '.join(entries)}, is {symbol!r}")
    return decode(module, entries[symbol])
