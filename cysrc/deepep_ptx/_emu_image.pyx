# SPDX-License-Identifier: MIT
# cython: language_level=3
"""A decoded kernel, as the CPU executor's C code reads it."""

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from deepep_ptx._emu_host cimport emu_insn, emu_line


cdef class Image:
    """`decoded`, of `deepep_ptx.emu.kernel.load_image`, whose arrays stay with it."""

    def __cinit__(self, decoded):
        cdef const uint8_t[::1] insns = np.ascontiguousarray(decoded.insns).view(np.uint8)
        cdef const uint8_t[::1] constants = np.ascontiguousarray(decoded.constants)
        cdef const uint8_t[::1] lines = np.ascontiguousarray(decoded.lines).view(np.uint8)
        self.insns, self.constants, self.lines = insns, constants, lines
        self.files, self.texts = _Strings(decoded.files), _Strings(decoded.texts)
        self.symbol = decoded.symbol.encode()
        memset(&self.image, 0, sizeof(self.image))
        self.image.symbol = self.symbol
        self.image.num_insns = insns.shape[0] // sizeof(emu_insn)
        if self.image.num_insns:
            self.image.insns = <const emu_insn *>&insns[0]
        self.image.constant_bytes = constants.shape[0]
        if constants.shape[0]:
            self.image.constants = &constants[0]
        self.image.register_bytes = decoded.register_bytes
        self.image.num_predicates = decoded.num_predicates
        self.image.param_bytes = decoded.param_bytes
        self.image.shared_bytes = decoded.shared_bytes
        self.image.local_bytes = decoded.local_bytes
        self.image.max_threads = decoded.max_threads
        self.image.files = self.files.items
        self.image.num_files = len(decoded.files)
        self.image.num_lines = lines.shape[0] // sizeof(emu_line)
        if self.image.num_lines:
            self.image.lines = <const emu_line *>&lines[0]
        self.image.texts = self.texts.items


cdef class _Strings:
    """A C array of C strings; `texts` (bytes) stay with it."""

    def __cinit__(self, tuple texts not None):
        self.texts = texts
        self.items = <const char **>calloc(len(texts) + 1, sizeof(char *))
        if self.items == NULL:
            raise MemoryError("texts: no memory")
        for i, text in enumerate(texts):
            self.items[i] = PyBytes_AS_STRING(text)

    def __dealloc__(self):
        free(self.items)
