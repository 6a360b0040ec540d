/* SPDX-License-Identifier: MIT */
#include "core/room.h"

#include "core/graphs.h"
#include "core/order.h"
#include "core/slot.h"
#include "core/slots.h"
#include "core/status.h"
#include "core/util.h"

uint64_t ep_room_view(const struct ep_buffer *b, const struct ep_block *block)
{
    return b->arena.segment[block->segment].view + block->offset;
}

struct ep_call_record ep_room_record(const struct ep_buffer *b, const struct ep_block *block,
                                     const struct ep_block *landing)
{
    struct ep_call_record record = {.held_bytes = b->arena.total};
    if (block) {
        record.slot_segment = block->segment;
        record.slot_offset = block->offset;
        record.slot_bytes = block->bytes;
        record.held_bytes -= block->bytes;
    }
    if (landing) {               /* a result that lies there is gone before rows are pushed        */
        record.landing_bytes = landing->bytes;
        record.held_bytes -= landing == block ? 0 : landing->bytes;
    }
    return record;
}

int ep_room_require(struct ep_buffer *b, const struct ep_block *block, uint64_t bytes)
{
    if (!b->graph || bytes == 0 || (block && block->bytes >= bytes))
        return EP_OK;
    return ep_status_no_room(b, bytes, ep_slots_used(b) - (block ? block->bytes : 0));
}

uint64_t ep_room_most_landing(uint32_t num_tokens, uint32_t max_ranks, uint32_t row_bytes)
{
    return ep_landing_bytes((uint64_t)num_tokens * max_ranks, row_bytes);
}

int ep_room_reserve(struct ep_buffer *b, uint64_t bytes, int lands, struct ep_block **out)
{
    *out = NULL;
    if (bytes != UINT64_MAX)
        TRY(ep_slots_exact(b, bytes, out));
    if (*out)
        return EP_OK;
    struct ep_block *free = ep_slots_largest(b);
    if (b->landing && lands && !b->graph && (!free || free->bytes < b->landing->bytes)) {
        if (free)
            ep_slots_release(b, free);
        ep_slots_hold(b, b->landing);
        free = b->landing;
    }
    *out = free;
    return EP_OK;
}

/* -- room that callers ask for -------------------------------------------------------------- */

int ep_buffer_make_landing(struct ep_buffer *b, uint64_t bytes, int *made)
{
    if (b->closed)
        return EP_ERR_DESTROYED;
    TRY(ep_slots_make_landing(b, bytes));
    *made = bytes == 0 || (b->landing && b->landing->bytes >= bytes);
    return EP_OK;
}

void ep_buffer_land_results(struct ep_buffer *b, int lands)
{
    b->lands = lands;
}

static int reserve_on(struct ep_buffer *b, uint64_t bytes, void *stream, struct ep_block **out)
{
    int rc = b->exec->capture(b->exec->self, stream, &b->graph);
    if (rc == EP_OK && !b->graph)
        ep_order_release_retired(b);
    if (rc == EP_OK)
        rc = ep_slots_exact(b, bytes, out);
    if (rc != EP_OK || !*out)
        return rc;
    /* It may have been staging or a result that is still in use.  A graph's order with what came
     * before it is the caller's. */
    rc = b->graph ? ep_graphs_keep(b, *out) : ep_order_follow(b, stream);
    if (rc != EP_OK)
        ep_slots_release(b, *out);
    return rc;
}

int ep_buffer_reserve(struct ep_buffer *b, uint64_t bytes, void *stream, struct ep_block **out)
{
    if (b->closed)
        return EP_ERR_DESTROYED;
    *out = NULL;
    int rc = reserve_on(b, bytes, stream, out);
    if (rc != EP_OK)
        return rc;
    return *out ? EP_OK : ep_status_no_room(b, bytes, ep_slots_used(b));
}
