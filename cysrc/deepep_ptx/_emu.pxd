# SPDX-License-Identifier: MIT
from libc.stdint cimport uint32_t

from deepep_ptx._emu_host cimport (
    emu_executor, host_graph, host_kernel, host_stream, host_world,
)
from deepep_ptx._executor cimport ep_executor, ep_launch


cdef class World:
    cdef host_world *host           # owned
    cdef readonly int num_ranks
    cdef readonly uint32_t cta_smem
    cdef readonly str scheduler
    cdef readonly str checks
    cdef readonly object seed
    cdef dict kernels               # (symbol, text) -> Kernel, without its reference to the world
    cdef dict mappings              # (rank, va) -> Mapping of a raw map_host()
    cdef dict threads               # rank -> identifier of its thread, while its function runs
    cdef object collective          # _Collective that ranks are in, or None
    cdef object __weakref__

    cdef int check(self, int code, uint32_t rank) except -1
    cdef uint32_t valid_rank(self, rank) except? 0xffffffff

    # Captures of `EmuGraph`; graphs are owned by whoever has them.
    cdef host_graph *capture_begin(self, uint32_t rank, host_stream *stream) except NULL
    cdef int capture_end(self, uint32_t rank, host_stream *stream, host_graph **out) noexcept
    cdef int graph_replay(self, uint32_t rank, host_graph *graph, host_stream *stream) except -1
    cdef int graph_keep(self, uint32_t rank, host_graph *graph, void *what,
                        void (*release)(void *what) noexcept nogil) except -1
    cdef void graph_destroy(self, uint32_t rank, host_graph *graph) noexcept


cdef class Kernel:
    cdef readonly World world       # keeps the code loaded
    cdef host_kernel *kernel        # borrowed from the world
    cdef readonly str symbol
    cdef readonly int param_bytes
    cdef readonly str target

    cdef int fill_launch(self, World world, ep_launch *launch, bytes params, grid, block,
                         smem) except -1


cdef class RankTable:
    cdef World world                # keeps the host side alive
    cdef emu_executor *own          # owned; `table` points into it
    cdef const ep_executor *table


cdef class Mapping:
    cdef Py_buffer view
    cdef bint held
