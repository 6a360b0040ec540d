# SPDX-License-Identifier: MIT
# cython: language_level=3
"""What every executor offers: a table of C functions for the core, some methods for Python."""

from deepep_ptx.errors import DeepEPError


cdef class Executor:
    """One rank's machine.  Subclasses fill `table`, `name` and `arch` and define the methods."""

    def load(self, symbol, text, param_bytes):
        """Load kernel `symbol` from PTX `text`; its parameter block takes `param_bytes` bytes.

        Returns an object whose `.handle` (int) goes into launches and which keeps the code loaded.
        """
        raise NotImplementedError

    def map_array(self, address, nbytes, writable, name):
        """Map host bytes [address, address + nbytes) for the kernels; returns a device address.

        `name` appears in error reports.  On a GPU, device memory passes through unchanged.
        """
        raise NotImplementedError

    def unmap(self, dptr):
        """Undo `map_array`."""
        raise NotImplementedError

    def host_view(self, dptr, nbytes):
        """A NumPy uint8 array over device memory [dptr, dptr + nbytes) of this rank."""
        raise NotImplementedError

    def error(self, code):
        """The exception for `code`, which a function of `table` has just returned.

        Subclasses know more than the text of last_error(): which kernel faulted and where, or
        that another rank failed first (`Aborted`).
        """
        reason = self.table.last_error(self.table.self).decode()
        if code == EP_ERR_MEMORY:
            return MemoryError(reason)
        return DeepEPError(reason)

    def counters(self):
        """A dict of this rank's totals: warp instructions, bytes loaded and stored, ..."""
        raise NotImplementedError
