# SPDX-License-Identifier: MIT
# What Cython knows of the C core: its public headers.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from deepep_ptx._executor cimport ep_dptr_t, ep_executor
from gen.params cimport ep_copy, ep_status_record

cdef extern from "deepep_ptx/deepep_ptx.h" nogil:
    enum:
        EP_CALL_WAIT
        EP_CALL_DETACHED

    struct ep_buffer:
        pass

    struct ep_block:
        pass

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

    struct ep_extent:
        ep_dptr_t dptr
        uint64_t view
        uint64_t bytes
        uint64_t offset
        uint32_t segment

    struct ep_arena_stats:
        uint64_t arena_bytes
        uint64_t used_bytes
        uint64_t landing_bytes
        uint32_t num_segments

    struct ep_call:
        void *caller_stream
        void *previous
        void *graph
        void *started
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

    struct ep_ll_shape:
        uint32_t max_tokens
        uint32_t hidden
        uint32_t num_experts
        uint32_t num_topk
        uint32_t reduce
        uint32_t word_tokens

    struct ep_ll_args:
        ep_call call
        ep_ll_shape shape
        uint32_t num_tokens
        uint32_t topk_idx_bytes
        uint32_t phases

    struct ep_ll_dispatch_args:
        ep_ll_args ll
        ep_dptr_t x
        ep_dptr_t topk_idx
        ep_dptr_t recv_x
        ep_dptr_t recv_scales
        ep_dptr_t recv_count
        ep_dptr_t src_info
        ep_dptr_t layout_range
        ep_dptr_t rows_of
        ep_dptr_t source_tokens
        ep_dptr_t recv_stats
        ep_dptr_t wait_stats
        uint32_t cast

    struct ep_ll_mask_args:
        ep_call call
        uint64_t mask
        ep_dptr_t status

    struct ep_ll_combine_args:
        ep_ll_args ll
        ep_dptr_t x
        ep_dptr_t topk_idx
        ep_dptr_t topk_weights
        ep_dptr_t out
        ep_dptr_t rows_of
        ep_dptr_t source_tokens
        ep_dptr_t wait_stats
        uint64_t handle
        uint32_t x_row_bytes
        uint32_t logfmt

    int ep_buffer_create(const ep_executor *exec, uint32_t rank, uint32_t num_ranks,
                         uint64_t timeout_ns, int grows, ep_buffer **out)
    void ep_buffer_close(ep_buffer *b)
    void ep_buffer_abandon(ep_buffer *b)
    void ep_buffer_leave(ep_buffer *b)
    bint ep_buffer_is_last(const ep_buffer *b)
    void ep_buffer_destroy(ep_buffer *b)

    void ep_buffer_set_kernel(ep_buffer *b, uint32_t kernel, const ep_loaded *loaded)
    uint32_t ep_param_bytes(uint32_t kernel)
    uint32_t ep_buffer_most_stage_bytes(const ep_buffer *b, uint32_t kernel)
    int ep_buffer_max_ctas(ep_buffer *b, uint32_t *ctas)

    uint32_t ep_buffer_idle_segments(ep_buffer *b)
    void ep_buffer_unmap_segment(ep_buffer *b, uint32_t index)
    void ep_buffer_drop_segment(ep_buffer *b, uint32_t index)
    int ep_buffer_make_landing(ep_buffer *b, uint64_t bytes, int *made)
    void ep_buffer_land_results(ep_buffer *b, int lands)
    void ep_buffer_poison_slots(ep_buffer *b)
    void ep_buffer_segment(const ep_buffer *b, uint32_t index, ep_extent *out)
    bint ep_buffer_find(const ep_buffer *b, uint64_t view, uint64_t bytes, ep_extent *out)

    void ep_buffer_extent(const ep_buffer *b, const ep_block *slot, ep_extent *out)
    int ep_buffer_reserve(ep_buffer *b, uint64_t bytes, void *stream, ep_block **out)
    void ep_buffer_retire(ep_buffer *b, ep_block *slot, void **streams, int lasting)
    void ep_buffer_give_back(ep_buffer *b, ep_block *slot)

    int ep_buffer_check(ep_buffer *b)
    int ep_buffer_settle(ep_buffer *b)
    bint ep_buffer_is_aborted(const ep_buffer *b)
    uint32_t ep_buffer_status(const ep_buffer *b, const ep_status_record **records)
    bint ep_buffer_has_news(const ep_buffer *b)
    uint32_t ep_buffer_unraised(const ep_buffer *b, ep_status_record *records)
    bint ep_buffer_may_grow(const ep_buffer *b)
    bint ep_buffer_is_crowded(const ep_buffer *b)
    uint32_t ep_buffer_launched(const ep_buffer *b, uint32_t *kernels)
    void ep_buffer_stats(ep_buffer *b, ep_arena_stats *out)
    void *ep_buffer_stream(const ep_buffer *b)
    void ep_buffer_keep_stream(ep_buffer *b)

    int ep_buffer_look(ep_buffer *b, void *stream, void **graph)
    int ep_buffer_layout(ep_buffer *b, const ep_layout_args *args)
    int ep_buffer_dispatch(ep_buffer *b, const ep_dispatch_args *args, ep_dispatch_result *out)
    int ep_buffer_copy_out(ep_buffer *b, const ep_call *call, const ep_copies *copies,
                           const ep_block *slot, uint32_t slot_rows)
    int ep_buffer_combine(ep_buffer *b, const ep_combine_args *args)
    uint32_t ep_buffer_combine_kernel(const ep_combine_args *args)

    uint64_t ep_ll_bytes(const ep_ll_shape *shape, uint32_t num_ranks)
    uint64_t ep_ll_smem(const ep_ll_shape *shape)
    uint64_t ep_buffer_ll_bytes(const ep_buffer *b)
    int ep_buffer_ll_dispatch(ep_buffer *b, const ep_ll_dispatch_args *args, uint64_t *number)
    int ep_buffer_ll_combine(ep_buffer *b, const ep_ll_combine_args *args)
    void ep_buffer_ll_shrink(ep_buffer *b)
    int ep_buffer_ll_mask(ep_buffer *b, const ep_ll_mask_args *args)
    int ep_buffer_ll_masked(ep_buffer *b, uint64_t *mask)

cdef extern from "deepep_ptx/symmetric.h" nogil:
    enum:
        EP_GROWTH_STEP
        EP_NUM_SAID
        EP_REASON_BYTES

    enum ep_collective:
        EP_IN_GROWTH
        EP_IN_RECYCLING
        EP_IN_ROOM
        EP_IN_SHAPE
        EP_IN_MEMORY
        EP_IN_MEMORY_MAPPING
        EP_IN_RESET
        EP_IN_EPOCH
        EP_IN_RESET_END
        EP_IN_END

    enum ep_failed:
        EP_FAILED_NOT
        EP_FAILED_HERE
        EP_FAILED_CALLER
        EP_FAILED_PEER
        EP_FAILED_ELSEWHERE
        EP_FAILED_NONSENSE
        EP_FAILED_MISMATCH

    struct ep_symmetric

    # `self` is spelled `context` here, as in struct ep_executor.
    struct ep_group:
        void *self
        uint32_t rank
        uint32_t size
        int (*allgather)(void *context, const void *mine, void *everybody,
                         uint64_t nbytes) noexcept nogil
        int (*barrier)(void *context) noexcept nogil

    struct ep_failure:
        ep_failed what
        ep_failed untold
        ep_failed kept
        int code
        bint described
        uint32_t rank
        ep_collective collective
        uint64_t buffer
        uint64_t bytes
        const char *argument
        uint64_t sizes[2]
        const char names[2][256]
        const char reason[512]

    struct ep_hooks:
        void *self
        int (*added)(void *context, uint32_t index, ep_dptr_t base, uint64_t nbytes,
                     uint64_t *view) noexcept nogil
        void (*dropped)(void *context, uint32_t index) noexcept nogil
        int (*give_back)(void *context) noexcept nogil
        void (*describe)(void *context, const ep_failure *failure, char *reason) noexcept nogil

    struct ep_connection:
        ep_buffer *buffer
        int made
        uint64_t start_bytes
        uint64_t limit_bytes
        uint64_t growth_step
        const char *device_name
        const char *place

    struct ep_heard:
        uint64_t *least         # arrays of EP_NUM_SAID, as C has them
        uint64_t *most

    int ep_symmetric_create(const ep_executor *exec, const ep_group *group, const ep_hooks *hooks,
                            ep_symmetric **out)
    void ep_symmetric_free(ep_symmetric *s)
    const ep_failure *ep_symmetric_failure(const ep_symmetric *s)
    uint64_t ep_symmetric_number(const ep_symmetric *s)
    int ep_symmetric_connect(ep_symmetric *s, const ep_connection *connection, uint32_t *num_here)
    int ep_symmetric_grow(ep_symmetric *s, uint64_t needed)
    int ep_symmetric_ensure_landing(ep_symmetric *s, uint64_t nbytes, const uint64_t *said,
                                    ep_heard *heard)
    int ep_symmetric_ensure_low_latency(ep_symmetric *s, const ep_ll_shape *shape, uint64_t bytes,
                                        void *stream)
    int ep_symmetric_reset(ep_symmetric *s, const uint64_t *said, ep_heard *heard)
    int ep_symmetric_end(ep_symmetric *s)
