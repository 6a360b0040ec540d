/* SPDX-License-Identifier: MIT
 *
 * How a buffer is made, and its table of kernels. */
#include <stddef.h>
#include <stdlib.h>

#include "core/launch.h"
#include "core/residency.h"
#include "core/util.h"
#include "heap_layout.h"
#include "params_check.h"

#define TOTALS_BYTES (sizeof(struct ep_totals) + EP_MAX_LOCAL_EXPERTS * sizeof(uint32_t))

_Static_assert(sizeof(struct ep_call_record) == 32 * sizeof(uint32_t), "a lane per word");
_Static_assert(sizeof(struct ep_sent_record) % EP_SLOT_ALIGN == 0, "each record starts on a line");
_Static_assert(offsetof(struct ep_heap, control) == 0, "kernels find it at the heap's address");
#define AT_ENTRY(field, entry) \
    _Static_assert(offsetof(struct ep_peers, field) == (entry) * sizeof(ep_dptr_t), "as kernels find it")

AT_ENTRY(low_latency, EP_PEER_ENTRIES);
AT_ENTRY(half_bytes, EP_LL_HALF_ENTRY);
AT_ENTRY(words_at, EP_LL_WORDS_ENTRY);
AT_ENTRY(raw_at, EP_LL_RAW_ENTRY);

static int alloc_zeroed(struct ep_buffer *b, uint64_t bytes, const char *name, ep_dptr_t *out)
{
    TRY(b->exec->alloc(b->exec->self, bytes, name, out));
    return b->exec->fill(b->exec->self, *out, 0, bytes, b->stream);
}

static int host_alloc_zeroed(struct ep_buffer *b, uint64_t bytes, const char *name, void **host,
                             ep_dptr_t *out)
{
    TRY(b->exec->host_alloc(b->exec->self, bytes, name, host, out));
    int rc = b->exec->fill(b->exec->self, *out, 0, bytes, b->stream);
    if (rc != EP_OK)
        b->exec->host_free(b->exec->self, *host);
    return rc;
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

/* -- kernels -------------------------------------------------------------------------------- */

void ep_buffer_set_kernel(struct ep_buffer *b, uint32_t kernel, const struct ep_loaded *loaded)
{
    b->kernel[kernel] = *loaded;
    ep_launch_fit(b, &b->kernel[kernel]);
}

int ep_buffer_max_ctas(struct ep_buffer *b, uint32_t *ctas)
{
    if (b->closed)
        return EP_ERR_DESTROYED;
    TRY(ep_launch_max_ctas(b, ctas));
    if (*ctas)
        ep_residency_join(b, *ctas);
    return EP_OK;
}

uint32_t ep_buffer_most_stage_bytes(const struct ep_buffer *b, uint32_t kernel)
{
    return ep_launch_most_stage_bytes(b, &b->kernel[kernel]);
}
