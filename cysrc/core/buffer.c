/* SPDX-License-Identifier: MIT
 *
 * Life of a buffer: allocation, peers, growth, reset, end. */
#include "core/launch.h"
#include "core/residency.h"
#include "core/slots.h"
#include "core/util.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "heap_layout.h"
#include "params_check.h"

#define TOTALS_BYTES (sizeof(struct ep_totals) + EP_MAX_LOCAL_EXPERTS * sizeof(uint32_t))

_Static_assert(sizeof(struct ep_call_record) == 32 * sizeof(uint32_t), "a lane per word");
_Static_assert(offsetof(struct ep_heap, control) == 0, "kernels find it at the heap's address");
_Static_assert(sizeof(struct ep_comm) % 16 == 0, "kernels load the record behind it by 16 bytes");
_Static_assert(sizeof(struct ep_peers) == EP_PEER_ENTRIES * sizeof(ep_dptr_t), "the table is the kernels'");

/* Where that rank's flags are in any heap. */
static uint64_t flags_at(const struct ep_buffer *b, uint32_t rank)
{
    return b->comm.regions.flags + rank * sizeof(struct ep_flags);
}

/* -- allocation ----------------------------------------------------------------------------- */

static int alloc_zeroed(struct ep_buffer *b, uint64_t bytes, const char *name, ep_dptr_t *out)
{
    TRY(b->exec->alloc(b->exec->self, bytes, name, out));
    return b->exec->fill(b->exec->self, *out, 0, bytes, b->stream);
}

static int host_alloc_zeroed(struct ep_buffer *b, uint64_t bytes, const char *name, void **host,
                             ep_dptr_t *out)
{
    TRY(b->exec->host_alloc(b->exec->self, bytes, name, host, out));
    return b->exec->fill(b->exec->self, *out, 0, bytes, b->stream);
}

static int allocate(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    uint32_t num_ranks = b->comm.num_ranks;
    TRY(exec->stream_create(exec->self, &b->stream));
    TRY(exec->stream_create(exec->self, &b->abort_stream));
    TRY(exec->event_create(exec->self, &b->last_use));
    uint64_t heap_bytes = ep_heap_layout(&b->comm.regions, num_ranks);
    TRY(alloc_zeroed(b, heap_bytes, "heap", &b->comm.heap));
    TRY(alloc_zeroed(b, sizeof b->peers, "peer tables", &b->comm.peers));
    TRY(alloc_zeroed(b, num_ranks * (1 + EP_MAX_LOCAL_EXPERTS) * sizeof(uint32_t), "tally",
                     &b->tally));
    void *host;
    TRY(host_alloc_zeroed(b, sizeof(struct ep_status_ring), "status ring", &host,
                          &b->comm.status));
    b->ring = host;
    TRY(host_alloc_zeroed(b, TOTALS_BYTES, "totals", &host, &b->totals_dptr));
    b->totals = host;
    return exec->stream_synchronize(exec->self, b->stream);
}

int ep_buffer_create(const struct ep_executor *exec, uint32_t rank, uint32_t num_ranks,
                     uint64_t timeout_ns, int grows, struct ep_buffer **out)
{
    if (num_ranks == 0 || num_ranks > EP_MAX_RANKS || rank >= num_ranks)
        return EP_ERR_ARGUMENT;
    struct ep_buffer *b = calloc(1, sizeof *b);
    if (!b)
        return EP_ERR_MEMORY;
    b->exec = exec;
    b->grows = grows;
    b->comm = (struct ep_comm){.timeout_ns = timeout_ns, .rank = rank, .num_ranks = num_ranks};
    pthread_mutex_init(&b->order, NULL);
    pthread_mutex_init(&b->lock, NULL);
    int rc = allocate(b);
    if (rc != EP_OK) {
        ep_buffer_destroy(b);
        return rc;
    }
    b->peers.heap[rank] = b->comm.heap;
    *out = b;
    return EP_OK;
}

void ep_buffer_set_kernel(struct ep_buffer *b, uint32_t kernel, const struct ep_loaded *loaded)
{
    b->kernel[kernel] = *loaded;
    ep_launch_fit(b, &b->kernel[kernel]);
}

int ep_buffer_max_ctas(struct ep_buffer *b, uint32_t *ctas)
{
    TRY(ep_launch_max_ctas(b, ctas));
    if (*ctas)
        ep_residency_join(b, *ctas);
    return EP_OK;
}

uint32_t ep_buffer_most_stage_bytes(const struct ep_buffer *b, uint32_t kernel)
{
    return ep_launch_most_stage_bytes(b, &b->kernel[kernel]);
}

/* -- peers ---------------------------------------------------------------------------------- */

int ep_buffer_heap_handle(struct ep_buffer *b, void *handle)
{
    return b->exec->export_memory(b->exec->self, b->comm.heap, handle);
}

int ep_buffer_open_heap(struct ep_buffer *b, uint32_t rank, const void *handle)
{
    if (rank == b->comm.rank)
        return EP_OK;
    return b->exec->import_memory(b->exec->self, handle, &b->peers.heap[rank]);
}

int ep_buffer_add_segment(struct ep_buffer *b, uint64_t bytes, uint32_t *index, ep_dptr_t *base,
                          void *handle)
{
    if (bytes == 0 || bytes % EP_SLOT_ALIGN)
        return EP_ERR_ARGUMENT;
    if (b->arena.num_segments == EP_MAX_SEGMENTS)
        return EP_ERR_CAPACITY;
    TRY(b->exec->alloc(b->exec->self, bytes, "arena", base));
    int rc = b->exec->export_memory(b->exec->self, *base, handle);
    if (rc == EP_OK) {
        pthread_mutex_lock(&b->lock);
        *index = ep_arena_next(&b->arena);
        rc = ep_arena_add(&b->arena, *base, *base, bytes);
        pthread_mutex_unlock(&b->lock);
    }
    if (rc != EP_OK) {
        b->exec->free(b->exec->self, *base, b->stream);
        return rc;
    }
    b->peers.arena[*index][b->comm.rank] = *base;
    return EP_OK;
}

void ep_buffer_set_view(struct ep_buffer *b, uint32_t index, uint64_t view)
{
    b->arena.segment[index].view = view;
}

int ep_buffer_open_segment(struct ep_buffer *b, uint32_t rank, uint32_t index, const void *handle)
{
    if (rank == b->comm.rank)
        return EP_OK;
    return b->exec->import_memory(b->exec->self, handle, &b->peers.arena[index][rank]);
}

int ep_buffer_publish(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    TRY(exec->copy_in(exec->self, b->comm.peers, &b->peers, sizeof b->peers, b->stream));
    return exec->stream_synchronize(exec->self, b->stream);
}

static void release_segment(struct ep_buffer *b, uint32_t index, uint32_t rank)
{
    if (rank != b->comm.rank && b->peers.arena[index][rank])
        b->exec->release_memory(b->exec->self, b->peers.arena[index][rank]);
    b->peers.arena[index][rank] = 0;
}

void ep_buffer_unmap_segment(struct ep_buffer *b, uint32_t index)
{
    for (uint32_t rank = 0; rank < b->comm.num_ranks; rank++)
        release_segment(b, index, rank);
}

void ep_buffer_drop_segment(struct ep_buffer *b, uint32_t index)
{
    pthread_mutex_lock(&b->lock);
    ep_dptr_t base = ep_arena_drop(&b->arena, index);
    pthread_mutex_unlock(&b->lock);
    b->exec->free(b->exec->self, base, b->stream);
}

void ep_buffer_close_peers(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    for (uint32_t rank = 0; rank < b->comm.num_ranks; rank++) {
        if (rank == b->comm.rank)
            continue;
        if (b->peers.heap[rank])
            exec->release_memory(exec->self, b->peers.heap[rank]);
        b->peers.heap[rank] = 0;
        for (uint32_t i = 0; i < EP_MAX_SEGMENTS; i++)
            release_segment(b, i, rank);
    }
    b->alone = 1;
}

/* -- the end -------------------------------------------------------------------------------- */

/* The first to close, who then frees; a slot that dies meanwhile waits, and finds it closed. */
static int begin_close(struct ep_buffer *b)
{
    pthread_mutex_lock(&b->order);
    pthread_mutex_lock(&b->lock);
    int closed = b->closed;
    b->closed = 1;
    ep_slots_release_quarantine(b);
    pthread_mutex_unlock(&b->lock);
    pthread_mutex_unlock(&b->order);
    return !closed && !b->abandoned;
}

/* The heap, and the stream of what is done with it. */
static void free_heap(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    if (b->comm.heap)
        exec->free(exec->self, b->comm.heap, b->stream);
    if (b->stream && !b->stream_stays)
        exec->stream_destroy(exec->self, b->stream);
}

void ep_buffer_close(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    ep_residency_leave(b);
    if (!begin_close(b))
        return;
    ep_slots_settle(b);
    if (b->stream)               /* where it fails nothing runs any more                        */
        exec->stream_synchronize(exec->self, b->stream);
    ep_slots_release_retired(b);
    ep_slots_drop_landing(b);
    ep_buffer_close_peers(b);
    ep_slots_close(b);
    if (b->comm.peers)
        exec->free(exec->self, b->comm.peers, b->stream);
    if (b->tally)
        exec->free(exec->self, b->tally, b->stream);
    if (b->ring)
        exec->host_free(exec->self, b->ring);
    if (b->totals)
        exec->host_free(exec->self, b->totals);
    if (b->last_use)
        exec->event_destroy(exec->self, b->last_use);
    if (b->abort_stream)
        exec->stream_destroy(exec->self, b->abort_stream);
    if (!b->left)
        free_heap(b);
}

static int tell_peers(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    struct ep_flags flags = {.abort = (b->num_calls + 1) << 8 | (b->comm.rank + 1), .left = 1};
    for (uint32_t rank = 0; rank < b->comm.num_ranks; rank++)
        if (rank != b->comm.rank && b->peers.heap[rank])
            TRY(exec->copy_in(exec->self, b->peers.heap[rank] + flags_at(b, b->comm.rank), &flags,
                              sizeof flags, b->stream));
    return exec->stream_synchronize(exec->self, b->stream);
}

void ep_buffer_leave(struct ep_buffer *b)
{
    if (b->closed)
        return;
    b->left = 1;
    b->abandoned = tell_peers(b) != EP_OK;       /* of a device that works no more              */
    ep_buffer_close(b);
}

int ep_buffer_is_last(const struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    struct ep_flags flags[EP_MAX_RANKS];
    uint32_t num_ranks = b->comm.num_ranks, num_left = 0;
    if (b->abandoned || exec->copy_out(exec->self, flags, b->comm.heap + flags_at(b, 0),
                                       num_ranks * sizeof *flags, b->stream) != EP_OK)
        return 0;
    for (uint32_t rank = 0; rank < num_ranks; rank++)
        num_left += rank != b->comm.rank && flags[rank].left;
    return num_left == num_ranks - 1;
}

void ep_buffer_destroy(struct ep_buffer *b)
{
    ep_buffer_close(b);
    if (b->left && !b->orphan && ep_buffer_is_last(b))
        free_heap(b);
    pthread_mutex_lock(&b->lock);
    b->orphan = b->num_kept != 0;
    int orphan = b->orphan;
    pthread_mutex_unlock(&b->lock);
    if (orphan)
        return;
    ep_arena_clear(&b->arena);
    pthread_mutex_destroy(&b->order);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

/* -- reset ---------------------------------------------------------------------------------- */

int ep_buffer_reset_begin(struct ep_buffer *b, uint64_t *epoch)
{
    const struct ep_executor *exec = b->exec;
    if (b->closed)
        return EP_ERR_DESTROYED;
    TRY(exec->stream_synchronize(exec->self, b->abort_stream));
    TRY(exec->stream_synchronize(exec->self, b->stream));
    TRY(exec->copy_out(exec->self, &b->control, b->comm.heap, sizeof b->control, b->stream));
    /* Captured calls have numbers and no epoch: neither may come again. */
    *epoch = b->num_calls > b->control.epoch ? b->num_calls : b->control.epoch;
    return EP_OK;
}

int ep_buffer_reset_end(struct ep_buffer *b, uint64_t max_epoch)
{
    const struct ep_executor *exec = b->exec;
    /* Two past the maximum: no flag that any rank has raised reaches the new epoch. */
    struct ep_control control = {.epoch = max_epoch + 2};
    TRY(exec->copy_in(exec->self, b->comm.heap, &control, sizeof control, b->stream));
    TRY(exec->fill(exec->self, b->comm.heap + flags_at(b, 0), 0,
                   b->comm.num_ranks * sizeof(struct ep_flags), b->stream));
    TRY(exec->stream_synchronize(exec->self, b->stream));
    b->control = control;
    b->num_calls = control.epoch;        /* equal on all ranks again                       */
    b->host_abort = 0;
    b->unseen = 0;
    b->num_status = 0;
    memset(b->ring, 0, sizeof *b->ring);
    pthread_mutex_lock(&b->lock);
    ep_slots_release_quarantine(b);
    pthread_mutex_unlock(&b->lock);
    return EP_OK;
}
