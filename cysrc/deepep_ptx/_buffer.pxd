# SPDX-License-Identifier: MIT
from libc.stdint cimport int64_t, uint32_t, uint64_t

from deepep_ptx._array cimport Array
from deepep_ptx._executor cimport Executor, ep_dptr_t, ep_executor
from gen.params cimport ep_control, ep_copy, ep_status_record, ep_status_ring

cdef extern from "core/arena.h" nogil:
    struct ep_block:
        ep_block *next
        uint64_t offset
        uint64_t bytes
        uint32_t segment
        uint32_t used

    struct ep_segment:
        ep_dptr_t base
        uint64_t view
        uint64_t bytes
        ep_block *first

    struct ep_arena:
        ep_segment segment[8]
        uint32_t num_segments
        uint64_t total
        uint64_t in_use

    uint32_t ep_arena_next(const ep_arena *arena)
    int ep_arena_add(ep_arena *arena, ep_dptr_t base, uint64_t view, uint64_t bytes)
    ep_dptr_t ep_arena_drop(ep_arena *arena, uint32_t index)
    ep_block *ep_arena_reserve_largest(ep_arena *arena)
    int ep_arena_reserve(ep_arena *arena, uint64_t bytes, ep_block **out)
    void ep_arena_trim(ep_arena *arena, ep_block *block, uint64_t bytes)
    void ep_arena_release(ep_arena *arena, ep_block *block)
    uint64_t ep_arena_largest_free(const ep_arena *arena)
    bint ep_arena_find(const ep_arena *arena, uint64_t view, uint64_t bytes, uint32_t *segment,
                       uint64_t *offset)
    void ep_arena_clear(ep_arena *arena)

cdef extern from "core/buffer.h" nogil:
    enum:
        EP_CALL_WAIT
        EP_CALL_DETACHED

    struct ep_slot:
        uint64_t scales
        uint64_t topk_idx
        uint64_t topk_weights
        uint64_t src_idx
        uint64_t bytes

    struct ep_loaded:
        void *handle
        uint32_t threads
        uint32_t smem
        uint32_t smem_per_rank
        uint32_t max_smem
        uint32_t rings
        uint32_t stages
        uint32_t stage_bytes

    struct ep_buffer:
        ep_loaded kernel[6]
        ep_status_record status[16]
        uint32_t num_status
        uint32_t launched[6]
        uint32_t num_launched
        void *stream
        int closed
        int grows
        int crowded
        int may_grow
        int stream_stays
        int lands
        ep_control control
        ep_arena arena
        ep_block *landing
        ep_status_ring *ring

    struct ep_call:
        void *caller_stream
        void *previous
        void *graph
        uint32_t num_sms
        uint32_t flags
        uint32_t stages
        uint32_t stage_bytes

    struct ep_layout_args:
        ep_call call
        ep_dptr_t topk_idx
        ep_dptr_t rank_counts
        ep_dptr_t expert_counts
        ep_dptr_t in_rank
        uint32_t num_tokens
        uint32_t num_topk
        uint32_t num_experts
        uint32_t topk_idx_bytes

    struct ep_copies:
        ep_copy copy[5]
        ep_dptr_t rank_prefix
        uint32_t rows

    struct ep_dispatch_args:
        ep_call call
        ep_dptr_t x
        ep_dptr_t scales
        ep_dptr_t topk_idx
        ep_dptr_t topk_weights
        int64_t scale_row_stride
        int64_t scale_stride
        ep_dptr_t in_rank
        ep_dptr_t rank_counts
        ep_dptr_t expert_counts
        ep_dptr_t pos
        ep_dptr_t rank_prefix
        uint64_t handle
        uint32_t num_tokens
        uint32_t hidden_bytes
        uint32_t scale_bytes
        uint32_t scale_width
        uint32_t num_topk
        uint32_t topk_idx_bytes
        uint32_t num_experts
        uint32_t dtype
        uint32_t rows
        uint32_t worst_rows
        uint32_t landing_bytes
        uint32_t combine_hidden
        uint32_t granule
        ep_copies copies
        uint64_t (*queued)(void *what, uint64_t view, uint64_t nbytes) noexcept nogil
        void *what

    struct ep_dispatch_result:
        ep_block *block
        uint64_t view
        ep_slot slot
        uint32_t rows
        uint32_t landed
        uint64_t number
        const uint32_t *expert_counts

    struct ep_combine_args:
        ep_call call
        ep_dptr_t x
        ep_dptr_t weights
        uint64_t x_offset
        uint64_t weights_offset
        uint64_t x_bytes
        uint64_t weights_bytes
        uint32_t x_segment
        uint32_t weights_segment
        uint32_t mode
        uint32_t num_tokens
        uint32_t hidden_bytes
        uint32_t num_topk
        uint32_t max_ranks
        uint64_t handle
        ep_dptr_t out
        ep_dptr_t out_weights
        ep_dptr_t bias0
        ep_dptr_t bias1
        ep_dptr_t pos
        ep_dptr_t rank_prefix

    int ep_buffer_create(const ep_executor *exec, uint32_t rank, uint32_t num_ranks,
                         uint64_t timeout_ns, int grows, ep_buffer **out)
    void ep_buffer_set_kernel(ep_buffer *b, uint32_t kernel, const ep_loaded *loaded)
    int ep_buffer_max_ctas(ep_buffer *b, uint32_t *ctas)
    uint32_t ep_buffer_most_stage_bytes(const ep_buffer *b, uint32_t kernel)
    int ep_buffer_heap_handle(ep_buffer *b, void *handle)
    int ep_buffer_open_heap(ep_buffer *b, uint32_t rank, const void *handle)
    int ep_buffer_add_segment(ep_buffer *b, uint64_t bytes, uint32_t *index, ep_dptr_t *base,
                              void *handle)
    void ep_buffer_set_view(ep_buffer *b, uint32_t index, uint64_t view)
    int ep_buffer_open_segment(ep_buffer *b, uint32_t rank, uint32_t index, const void *handle)
    int ep_buffer_publish(ep_buffer *b)
    int ep_buffer_make_landing(ep_buffer *b, uint64_t bytes, int *made)
    uint32_t ep_buffer_idle_segments(ep_buffer *b)
    void ep_buffer_unmap_segment(ep_buffer *b, uint32_t index)
    void ep_buffer_drop_segment(ep_buffer *b, uint32_t index)
    void ep_buffer_close_peers(ep_buffer *b)
    void ep_buffer_close(ep_buffer *b)
    void ep_buffer_abandon(ep_buffer *b)
    void ep_buffer_leave(ep_buffer *b)
    bint ep_buffer_is_last(const ep_buffer *b)
    void ep_buffer_destroy(ep_buffer *b)
    int ep_buffer_reset_begin(ep_buffer *b, uint64_t *epoch)
    int ep_buffer_reset_end(ep_buffer *b, uint64_t max_epoch)
    int ep_buffer_look(ep_buffer *b, void *stream, void **graph)
    int ep_buffer_check(ep_buffer *b)
    void ep_buffer_retire(ep_buffer *b, ep_block *slot, void **streams, int lasting)
    void ep_buffer_give_back(ep_buffer *b, ep_block *slot)
    int ep_buffer_reserve(ep_buffer *b, uint64_t bytes, void *stream, ep_block **out,
                          uint64_t *view)
    int ep_buffer_settle(ep_buffer *b)
    bint ep_buffer_is_aborted(const ep_buffer *b)
    uint64_t ep_buffer_used(ep_buffer *b)
    int ep_buffer_layout(ep_buffer *b, const ep_layout_args *args)
    int ep_buffer_dispatch(ep_buffer *b, const ep_dispatch_args *args, ep_dispatch_result *out)
    int ep_buffer_copy_out(ep_buffer *b, const ep_call *call, const ep_copies *copies,
                           const ep_block *slot, uint32_t slot_rows)
    int ep_buffer_combine(ep_buffer *b, const ep_combine_args *args)
    uint32_t ep_buffer_combine_kernel(const ep_combine_args *args)


cdef class CoreBuffer:
    cdef ep_buffer *core             # owned
    cdef readonly Executor executor  # outlives the core
    cdef readonly uint32_t rank
    cdef readonly uint32_t num_ranks
    cdef list kernels                # keeps the loaded code
    cdef list symbols
    cdef dict views                  # segment -> what keeps the memory that its slots show
    cdef list captured               # mappings of captured calls

    cdef int raise_for(self, int code) except -1
    cdef int check_peer(self, uint32_t rank, bytes handle) except -1
    cdef int check_stage_bytes(self, uint32_t kernel, uint32_t stage_bytes) except -1
    cdef bint find_pulled(self, Array array, bint zero_copy, uint32_t *segment,
                          uint64_t *offset) except -1
