# SPDX-License-Identifier: MIT
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from deepep_ptx._executor cimport ep_dptr_t, ep_executor, ep_launch

cdef extern from "emu/device/emu.h" nogil:
    enum:
        EMU_CHECK_UNINIT
        EMU_SCHED_RR
        EMU_SCHED_RANDOM
        EMU_SCHED_LATE_ASYNC

    struct emu_options:
        uint32_t num_ranks
        uint32_t sms_per_rank
        uint32_t cta_smem
        uint32_t scheduler
        uint32_t checks
        uint64_t seed
        uint64_t stall_limit
        uint64_t instruction_limit

    struct emu_insn:
        uint16_t op

    struct emu_line:
        uint32_t file
        uint32_t line
        uint32_t ptx_line

    struct emu_kernel_image:
        const char *symbol
        const emu_insn *insns
        uint32_t num_insns
        const uint8_t *constants
        uint32_t constant_bytes
        uint32_t register_bytes
        uint32_t num_predicates
        uint32_t param_bytes
        uint32_t shared_bytes
        uint32_t local_bytes
        uint32_t max_threads
        const char *const *files
        uint32_t num_files
        const emu_line *lines
        uint32_t num_lines
        const char *const *texts

    struct emu_fault:
        const char *kind
        const char *kernel
        const char *file
        uint32_t line
        uint32_t ptx_line
        int32_t rank
        int32_t cta
        int32_t warp
        int32_t lane
        const char *text

    struct emu_counters:
        uint64_t warp_instructions
        uint64_t thread_instructions
        uint64_t global_load_bytes
        uint64_t global_store_bytes
        uint64_t peer_load_bytes
        uint64_t peer_store_bytes
        uint64_t global_load_transactions
        uint64_t global_store_transactions

cdef extern from "emu/race/race.h" nogil:
    struct race_place:
        const char *what
        const char *kernel
        const char *file
        const char *statement
        uint32_t line
        uint32_t ptx_line
        uint32_t lanes
        int32_t rank
        int32_t cta
        int32_t warp

    struct race_link:
        race_place first "from"
        race_place second "to"
        const char *by
        const char *lacks

    struct race_found:
        race_found *next
        uint8_t kind
        uint64_t count
        race_place first
        race_place second
        char memory[64]
        int32_t owner
        uint64_t offset
        uint32_t nbytes "bytes"
        uint32_t num_links
        race_link links[12]
        char fix[256]

cdef extern from "emu/host/host.h" nogil:
    struct host_world
    struct host_stream
    struct host_kernel
    struct host_graph

    enum host_run_result "host_run":
        HOST_RUN_IDLE
        HOST_RUN_LIMIT
        HOST_RUN_MORE
        HOST_RUN_FAILED

    enum host_failure_kind "host_failure":
        HOST_OK
        HOST_RANK_FAILED
        HOST_FAULT
        HOST_LAUNCH_FAILED
        HOST_STOPPED

    enum host_checks:
        HOST_RACES
        HOST_WEAK
        HOST_STRICT

    host_world *host_create(const emu_options *options, uint64_t wait_limit_ns, uint32_t races)
    const race_found *host_races(host_world *h)
    int host_races_whole(host_world *h)
    void host_destroy(host_world *h)
    void host_start(host_world *h)
    int host_enter(host_world *h, uint32_t rank)
    void host_leave(host_world *h, uint32_t rank, int failed)
    void host_abort(host_world *h)
    int host_holder(host_world *h)
    int host_wait_word(host_world *h, uint32_t rank, const uint64_t *word, uint64_t want,
                       uint64_t timeout_ns, const char *what)
    int host_synchronize(host_world *h, uint32_t rank, host_stream *stream)
    int host_yield(host_world *h, uint32_t rank)
    int host_run(host_world *h, uint64_t until, uint32_t rounds, int touched)
    int host_alloc(host_world *h, uint32_t rank, uint64_t nbytes, const char *name,
                   ep_dptr_t *out)
    int host_map(host_world *h, uint32_t rank, void *address, uint64_t nbytes, int writable,
                 const char *name, ep_dptr_t *out)
    int host_unmap(host_world *h, uint32_t rank, ep_dptr_t va)
    int host_free(host_world *h, uint32_t rank, ep_dptr_t va, host_stream *stream)
    int host_map_peer(host_world *h, uint32_t rank, uint32_t owner, ep_dptr_t owner_va,
                      uint64_t nbytes, ep_dptr_t *out)
    int host_unmap_peer(host_world *h, uint32_t rank, ep_dptr_t va)
    int host_pin(host_world *h, uint32_t rank, ep_dptr_t va, uint64_t nbytes, void **host,
                 uint32_t *owner, ep_dptr_t *pin)
    void host_unpin(host_world *h, uint32_t owner, ep_dptr_t pin)
    int host_written(host_world *h, uint32_t rank, ep_dptr_t va, uint64_t nbytes)
    int host_stream_create(host_world *h, uint32_t rank, host_stream **out)
    int host_stream_destroy(host_world *h, uint32_t rank, host_stream *stream)
    int host_copy_in(host_world *h, uint32_t rank, ep_dptr_t dst, const void *src,
                     uint64_t nbytes, host_stream *stream)
    int host_copy_out(host_world *h, uint32_t rank, void *dst, ep_dptr_t src, uint64_t nbytes,
                      host_stream *stream)
    int host_launch(host_world *h, uint32_t rank, const ep_launch *launch)
    int host_capture_begin(host_world *h, uint32_t rank, host_stream *stream)
    int host_capture_end(host_world *h, uint32_t rank, host_stream *stream, host_graph **out)
    int host_capture_of(host_world *h, uint32_t rank, host_stream *stream, host_graph **out)
    int host_graph_replay(host_world *h, uint32_t rank, host_graph *graph, host_stream *stream)
    int host_graph_destroy(host_world *h, uint32_t rank, host_graph *graph)
    int host_graph_keep(host_world *h, uint32_t rank, host_graph *graph, void *what,
                        void (*release)(void *what) noexcept nogil)
    host_kernel *host_kernel_load(host_world *h, const emu_kernel_image *image)
    void host_kernel_ran(host_world *h, const host_kernel *kernel, uint8_t *ran)
    int host_max_resident(host_world *h, uint32_t rank, const host_kernel *kernel, uint32_t block,
                          uint32_t smem, uint32_t *ctas)
    uint64_t host_now(host_world *h)
    void host_counters(host_world *h, uint32_t rank, emu_counters *out)
    const char *host_last_error()
    int host_failure(host_world *h, int *rank)
    const emu_fault *host_fault(host_world *h)
    const char *host_report(host_world *h)

cdef extern from "emu/host/executor.h" nogil:
    struct emu_executor
    emu_executor *emu_executor_create(host_world *host, uint32_t rank)
    void emu_executor_destroy(emu_executor *executor)
    const ep_executor *emu_executor_table(const emu_executor *executor)
