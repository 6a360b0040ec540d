# SPDX-License-Identifier: MIT
"""Lines that no run has come to: a verdict says nothing about them."""

import numpy as np

from deepep_ptx.emu.coverage import missing
from deepep_ptx.emu.kernel import load_image


def packed(ran, texts):
    """What a run executed, in little: (name of the text, symbol) -> bits, as bytes.

    ran: as `World.ran` gives it.  texts: symbol -> name of its text.
    """
    return {(texts[symbol], symbol): np.packbits(flags).tobytes()
            for (symbol, _), flags in ran.items() if symbol in texts}


def not_executed(runs, text_of):
    """Lines of all kernels that ran, in the words of `emu.coverage.ranges`.

    runs: of each run what `packed` gave.  text_of: name of a text -> the text.
    """
    total = {}
    for run in runs:
        for kernel, bits in run.items():
            flags = np.frombuffer(bits, np.uint8)
            total[kernel] = total.get(kernel, 0) | flags
    ran, names = {}, set()
    for (name, symbol), flags in total.items():
        text = text_of(name)
        count = len(load_image(text, symbol).insns) - 1
        ran[symbol, text] = np.unpackbits(flags, count=count).astype(bool)
        names.add(name)
    # A text of its own has one name for all that no `.loc` names.
    return [line.replace("<ptx>", min(names)) for line in missing([ran])]
