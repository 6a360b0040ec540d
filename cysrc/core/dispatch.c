/* SPDX-License-Identifier: MIT
 *
 * Dispatch: its parameter block, its room, and what the host waits for. */
#include "core/call.h"
#include "core/copy_out.h"
#include "core/graphs.h"
#include "core/launch.h"
#include "core/order.h"
#include "core/room.h"
#include "core/slot.h"
#include "core/slots.h"
#include "core/status.h"
#include "core/util.h"

#include <stddef.h>

#define NS_PER_S 1000000000ull

/* -- room ----------------------------------------------------------------------------------- */

static uint64_t landing_want(const struct ep_buffer *b, const struct ep_dispatch_args *a)
{
    uint32_t num_ranks = b->comm.num_ranks;
    uint32_t max_ranks = a->num_topk ? min_u32(num_ranks, a->num_topk) : num_ranks;
    if (a->handle || !b->grows)
        return 0;
    return max_u64(ep_room_most_landing(a->num_tokens, max_ranks, a->landing_bytes), b->landing_want);
}

static uint64_t in_granules(const struct ep_dispatch_args *a, uint64_t bytes)
{
    return a->granule ? (bytes + a->granule - 1) / a->granule * a->granule : bytes;
}

/* Landing and the slot of a dispatch; `bytes` of the slot as in ep_room_reserve(). */
static int make_room(struct ep_buffer *b, const struct ep_dispatch_args *a, uint64_t bytes,
                     struct ep_block **block)
{
    TRY(ep_slots_make_landing(b, landing_want(b, a)));
    *block = NULL;
    /* Calls that do not wait cannot grow the arena; one that waits does it for them, by offering no
     * room itself. */
    if (bytes == UINT64_MAX && b->wants_room && !b->lands) {
        b->wants_room = 0;
        return EP_OK;
    }
    if (bytes != UINT64_MAX && a->granule)
        TRY(ep_slots_exact(b, in_granules(a, bytes), block));
    if (!*block)
        TRY(ep_room_reserve(b, bytes, bytes != UINT64_MAX || b->lands, block));   /* or the arena grows */
    return ep_room_require(b, *block, bytes == UINT64_MAX ? 0 : bytes);
}

/* -- the call ------------------------------------------------------------------------------- */

static struct ep_call_record dispatch_record(const struct ep_buffer *b,
                                             const struct ep_dispatch_args *a,
                                             const struct ep_block *block)
{
    struct ep_call_record record = ep_room_record(b, block, b->landing);
    record.landing_want = landing_want(b, a);
    record.agree[EP_AGREE_OP] = a->handle ? EP_OP_CACHED_DISPATCH : EP_OP_DISPATCH;
    record.agree[EP_AGREE_NUM_EXPERTS] = a->num_experts;
    record.agree[EP_AGREE_HIDDEN_BYTES] = a->hidden_bytes;
    record.agree[EP_AGREE_DTYPE] = a->dtype;
    record.agree[EP_AGREE_NUM_TOPK] = a->num_topk;
    record.agree[EP_AGREE_TOPK_IDX_BYTES] = a->topk_idx_bytes | a->combine_hidden << 8;
    record.agree[EP_AGREE_HANDLE] = (uint32_t)a->handle;
    record.agree[EP_AGREE_SCALE_BYTES] = a->scale_bytes;
    record.agree[EP_AGREE_WORST_ROWS] = a->worst_rows;
    return record;
}

static int launch_dispatch(struct ep_buffer *b, const struct ep_loaded *kernel,
                           const struct ep_dispatch_args *a, const struct ep_block *block,
                           const struct ep_slot *slot)
{
    struct ep_dispatch_params params = {
        .exchange = {.comm = b->comm, .record = dispatch_record(b, a, block)},
        .x = a->x, .scales = a->scales, .scale_row_stride = a->scale_row_stride,
        .scale_stride = a->scale_stride, .topk_idx = a->topk_idx, .topk_weights = a->topk_weights,
        .in_rank = a->in_rank, .rank_counts = a->rank_counts, .expert_counts = a->expert_counts,
        .pos = a->pos, .rank_prefix = a->rank_prefix, .totals = b->totals_dptr,
        .ticket = ++b->ticket, .num_tokens = a->num_tokens, .hidden_bytes = a->hidden_bytes,
        .scale_bytes = a->scale_bytes, .scale_width = a->scale_width, .num_topk = a->num_topk,
        .topk_idx_bytes = a->topk_idx_bytes,
        .num_local_experts = a->num_experts / b->comm.num_ranks, .worst_rows = a->worst_rows,
        .num_stages = kernel->stages, .stage_bytes = kernel->stage_bytes,
        .block_tokens = (a->num_tokens + a->call.num_sms - 1) / a->call.num_sms};
    if (b->grows && !a->handle) {
        params.landing_bytes = a->landing_bytes;
        params.land_received = 1;
    }
    if (a->worst_rows && block && block->bytes >= slot->bytes)
        params.worst_idx = b->arena.segment[block->segment].base + block->offset + slot->topk_idx;
    return ep_launch_call(b, &a->call, EP_KERNEL_DISPATCH, kernel, &params, sizeof params);
}

static struct ep_slot slot_of(const struct ep_dispatch_args *a, uint32_t rows)
{
    return ep_slot_of(rows, a->hidden_bytes, a->scale_bytes, a->num_topk, a->topk_idx_bytes);
}

/* Whether the host waits for the totals: nothing else says how many rows there are. */
static int waits_for_totals(const struct ep_dispatch_args *a)
{
    return !a->rows && !a->handle;
}

static void will_read(const struct ep_buffer *b, const void *host, uint64_t bytes)
{
    if (b->exec->will_read)
        b->exec->will_read(b->exec->self, host, bytes);
}

/* Until the totals of this call are there.  What the streams had queued before it takes its own time;
 * once the call runs the device gives up after timeout_ns.  The host waits longer, so that it is the
 * device that says for whom it waited. */
static int wait_totals(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    uint64_t limit = b->comm.timeout_ns;
    limit = limit > (EP_FOREVER - NS_PER_S) / 2 ? EP_FOREVER : 2 * limit + NS_PER_S;
    TRY(exec->wait_word(exec->self, b->stream, &b->totals->started, b->ticket, EP_FOREVER));
    TRY(exec->wait_word(exec->self, b->stream, &b->totals->ticket, b->ticket, limit));
    will_read(b, &b->totals->verdict, sizeof *b->totals - offsetof(struct ep_totals, verdict));
    return EP_OK;
}

/* Host-wait mode: rows and slot of this call, the extent trimmed. */
static int settle(struct ep_buffer *b, const struct ep_dispatch_args *a, struct ep_block *block,
                  struct ep_dispatch_result *out)
{
    uint64_t kept = 0;
    if (a->queued && block && block != b->landing)
        kept = a->queued(a->what, ep_room_view(b, block), block->bytes);
    TRY(wait_totals(b));
    if (b->totals->verdict != EP_CODE_OK) {
        b->may_grow = b->totals->verdict == EP_CODE_CAPACITY && b->grows;
        if (b->may_grow)
            b->landing_want = max_u64(b->landing_want, ep_landing_bytes(b->totals->landing_rows,
                                                                        a->landing_bytes));
        TRY(ep_status_look(b, EP_TOLD));
        return ep_status_refuse(b, b->totals->verdict);
    }
    out->rows = b->totals->num_recv;
    out->slot = slot_of(a, out->rows);
    if (!out->rows)
        return EP_OK;
    out->landed = block == b->landing;
    if (!out->landed)
        ep_slots_trim(b, block, max_u64(in_granules(a, out->slot.bytes), kept));
    /* So that the next call finds room, whatever lives by then. */
    b->largest_slot = max_u64(b->largest_slot, out->slot.bytes);
    if (!b->grows && !out->landed)
        out->landed = ep_slots_room(b) < b->largest_slot;
    return EP_OK;
}

static int dispatch_into(struct ep_buffer *b, const struct ep_loaded *kernel,
                         const struct ep_dispatch_args *a, struct ep_block *block,
                         struct ep_dispatch_result *out)
{
    TRY(launch_dispatch(b, kernel, a, block, &out->slot));
    TRY(ep_launch_copies(b, &a->copies, block, a->rows));
    /* Before the host waits for the totals: nothing of the driver's is left to do behind them. */
    if (!(a->call.flags & EP_CALL_WAIT))
        TRY(ep_call_end(b, &a->call));
    if (waits_for_totals(a))     /* while the rows are on their way                             */
        TRY(settle(b, a, block, out));
    TRY(ep_graphs_keep(b, block));
    TRY(ep_graphs_keep(b, b->landing));
    return a->call.flags & EP_CALL_WAIT ? ep_call_wait_end(b) : EP_OK;
}

int ep_buffer_dispatch(struct ep_buffer *b, const struct ep_dispatch_args *a,
                       struct ep_dispatch_result *out)
{
    int waits = waits_for_totals(a);
    struct ep_block *block = NULL;
    struct ep_loaded kernel;
    TRY(ep_launch_choose(b, EP_KERNEL_DISPATCH, &a->call, &kernel));
    TRY(ep_call_begin(b, &a->call));
    if (waits && b->unseen) {    /* before this stream waits for the caller's                   */
        int rc = ep_status_look_back(b);
        if (rc == EP_ERR_INTERRUPTED || rc == EP_ERR_ABORTED)
            ep_call_abort(b);       /* the others go on to wait for this rank                      */
        if (rc != EP_OK)
            return rc;
    }
    TRY(ep_order_begin(b, &a->call));
    b->num_calls++;
    *out = (struct ep_dispatch_result){.rows = a->rows, .slot = slot_of(a, a->rows),
                                       .number = b->num_calls};
    int rc = make_room(b, a, waits ? UINT64_MAX : out->slot.bytes, &block);
    if (rc == EP_OK)
        rc = dispatch_into(b, &kernel, a, block, out);
    if (rc != EP_OK)
        return ep_call_fail(b, &a->call, block, rc);
    b->landing_want = 0;
    /* Too small: the device refuses the call, and nobody knows yet. */
    if (block && (out->rows == 0 || block->bytes < out->slot.bytes)) {
        ep_slots_release(b, block);
        block = NULL;
    }
    out->block = block;
    if (!waits) {
        out->landed = block && block == b->landing;
        b->wants_room |= out->landed && b->grows && !b->graph;
    }
    out->expert_counts = (const uint32_t *)(b->totals + 1);
    if (waits && !a->handle)
        will_read(b, out->expert_counts,
                  a->num_experts / b->comm.num_ranks * sizeof *out->expert_counts);
    return EP_OK;
}
