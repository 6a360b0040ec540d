/* SPDX-License-Identifier: MIT
 *
 * The calls: parameter blocks, launch order, what the host waits for, and what happens to a slot
 * when a call fails.  docs/protocols.md says why each order is safe. */
#include "core/launch.h"
#include "core/slots.h"
#include "core/status.h"

#define TRY(call) do { int rc_ = (call); if (rc_ != EP_OK) return rc_; } while (0)

#define NS_PER_S 1000000000ull

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }
static uint64_t max_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* -- begin and end of a call ------------------------------------------------------------------ */

/* Whether a call can be made, with what holds for it; nothing is queued yet. */
static int begin(struct ep_buffer *b, const struct ep_call *call)
{
    if (b->closed)
        return EP_ERR_DESTROYED;
    b->num_launched = 0;
    b->num_status = 0;
    b->graph = call->graph;
    b->may_grow = 0;
    if (b->control.abort)        /* what made it so may not have been raised yet                */
        return b->ring->next ? ep_status_look(b, EP_ALL) : ep_status_refuse(b, EP_CODE_ABORTED);
    if (!b->graph) {
        if (ep_status_has_aborted(b))
            return ep_status_look(b, EP_ALL);
        ep_slots_release_retired(b);
    }
    return EP_OK;
}

/* What the call comes after but for `previous`.  With `order` held: no slot that dies may be ordered
 * in between. */
static int order_streams(struct ep_buffer *b, const struct ep_call *call)
{
    /* A captured stream takes this one into its capture only if it is waited for. */
    int waits = b->graph || !call->previous;
    b->between_calls = 0;
    /* What died is ordered before a replay by the caller, as the calls before it are. */
    if (!b->graph && !(waits && call->caller_stream == b->calls_on))
        TRY(ep_slots_await_last_use(b));
    if (!waits)
        return EP_OK;
    TRY(b->exec->stream_wait(b->exec->self, b->stream, call->caller_stream));
    if (!b->graph)
        b->awaits_last_use = 0;
    return EP_OK;
}

/* The call's kernels run after `previous`, or after what the caller's stream has queued. */
static int order(struct ep_buffer *b, const struct ep_call *call)
{
    pthread_mutex_lock(&b->order);
    int rc = order_streams(b, call);
    pthread_mutex_unlock(&b->order);
    TRY(rc);
    return call->previous ? b->exec->event_wait(b->exec->self, b->stream, call->previous) : EP_OK;
}

static int end(struct ep_buffer *b, const struct ep_call *call)
{
    b->unseen = 1;
    if (!(call->flags & EP_CALL_DETACHED))
        TRY(b->exec->stream_wait(b->exec->self, call->caller_stream, b->stream));
    if (b->graph)
        return EP_OK;
    pthread_mutex_lock(&b->order);
    b->calls_on = call->caller_stream;
    b->between_calls = 1;
    pthread_mutex_unlock(&b->order);
    return EP_OK;
}

/* The host waits for the end of a collective call: an abort or a verdict without a record is an error
 * as well. */
static int wait_end(struct ep_buffer *b)
{
    int rc = ep_status_look(b, EP_TOLD);
    if (rc != EP_OK || b->control.verdict == EP_CODE_OK)
        return rc;
    return ep_status_refuse(b, b->control.verdict);
}

/* The word that ends this rank's waits needs no launch, which may queue behind the call that waits
 * (CUDA_DEVICE_MAX_CONNECTIONS).  The launch tells the peers, also where no call of this rank runs. */
static int launch_abort(struct ep_buffer *b)
{
    struct ep_abort_params params = {.comm = b->comm};
    __atomic_store_n(&b->ring->stop, 1, __ATOMIC_RELEASE);
    return ep_launch_on(b, b->abort_stream, EP_KERNEL_ABORT, &b->kernel[EP_KERNEL_ABORT], &params,
                        sizeof params, 1);
}

void ep_buffer_abandon(struct ep_buffer *b)
{
    if (b->closed)
        return;
    /* Where even this fails, the peers find out by their time limits. */
    if (!b->control.abort && !b->alone)
        launch_abort(b);
    b->abandoned = 1;
    ep_buffer_close(b);
}

/* A host error in the middle of a call: tell the peers, who may already wait for this rank. */
static void abort_call(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    if (launch_abort(b) == EP_OK
        && exec->stream_synchronize(exec->self, b->abort_stream) == EP_OK)
        ep_status_look(b, EP_ALL);
    /* Also where nothing could be launched: the device's state is unknown. */
    if (!b->control.abort)
        b->host_abort = b->control.abort = b->control.epoch << 8 | (b->comm.rank + 1);
}

/* A call that failed with rc once it had begun, its slot included, NULL for none. */
static int fail(struct ep_buffer *b, const struct ep_call *call, struct ep_block *block, int rc)
{
    if (b->graph) {              /* nothing runs; the capture gets its streams back             */
        b->exec->stream_wait(b->exec->self, call->caller_stream, b->stream);
    } else if (rc != EP_ERR_STATUS) {
        abort_call(b);
    }
    if (block && b->control.abort && block != b->landing)
        ep_slots_quarantine(b, block);
    else if (block)
        ep_slots_release(b, block);
    return rc;
}

/* -- layout --------------------------------------------------------------------------------- */

static int launch_layout(struct ep_buffer *b, const struct ep_layout_args *a)
{
    const struct ep_loaded *kernel = &b->kernel[EP_KERNEL_LAYOUT];
    struct ep_layout_params params = {
        .comm = b->comm, .topk_idx = a->topk_idx, .rank_counts = a->rank_counts,
        .expert_counts = a->expert_counts, .in_rank = a->in_rank, .tally = b->tally,
        .num_tokens = a->num_tokens, .num_topk = a->num_topk, .num_experts = a->num_experts,
        .topk_idx_bytes = a->topk_idx_bytes};
    uint32_t ctas = (a->num_tokens + kernel->threads - 1) / kernel->threads;
    return ep_launch_on(b, b->stream, EP_KERNEL_LAYOUT, kernel, &params, sizeof params,
                        max_u32(1, min_u32(a->call.num_sms, ctas)));
}

/* Local: it takes nothing of what the ranks shall learn together. */
int ep_buffer_layout(struct ep_buffer *b, const struct ep_layout_args *a)
{
    TRY(begin(b, &a->call));
    TRY(order(b, &a->call));
    int rc = launch_layout(b, a);
    if (rc == EP_OK)
        return a->call.flags & EP_CALL_WAIT ? ep_status_look(b, EP_UNTOLD) : end(b, &a->call);
    if (b->graph)
        end(b, &a->call);
    return rc;
}

static uint64_t view_of(const struct ep_buffer *b, const struct ep_block *block)
{
    return b->arena.segment[block->segment].view + block->offset;
}

/* -- room for a call's rows -------------------------------------------------------------------- */

/* `block`: of this call; landing: likewise where the call counts on it. */
static struct ep_call_record record_with(const struct ep_buffer *b, const struct ep_block *block,
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

/* Room of `bytes` under a capture, which no verdict can refuse later. */
static int require(struct ep_buffer *b, const struct ep_block *block, uint64_t bytes)
{
    if (!b->graph || bytes == 0 || (block && block->bytes >= bytes))
        return EP_OK;
    return ep_status_no_room(b, bytes, ep_buffer_used(b) - (block ? block->bytes : 0));
}

/* What a combine of at most num_tokens rows to max_ranks ranks needs whatever its routing is. */
static uint64_t most_landing(uint32_t num_tokens, uint32_t max_ranks, uint32_t row_bytes)
{
    return ep_landing_bytes((uint64_t)num_tokens * max_ranks, row_bytes);
}

static uint64_t landing_want(const struct ep_buffer *b, const struct ep_dispatch_args *a)
{
    uint32_t num_ranks = b->comm.num_ranks;
    uint32_t max_ranks = a->num_topk ? min_u32(num_ranks, a->num_topk) : num_ranks;
    if (a->handle || !b->grows)
        return 0;
    return max_u64(most_landing(a->num_tokens, max_ranks, a->landing_bytes), b->landing_want);
}

/* An extent for a result of `bytes`, UINT64_MAX = as many as can be.  What is free, else landing,
 * else whatever there is: with it this rank still takes part in the exchange, and the device gives
 * all ranks the same capacity error.  lands: landing may be taken. */
static int reserve(struct ep_buffer *b, uint64_t bytes, int lands, struct ep_block **out)
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

static uint64_t in_granules(const struct ep_dispatch_args *a, uint64_t bytes)
{
    return a->granule ? (bytes + a->granule - 1) / a->granule * a->granule : bytes;
}

/* Landing and the slot of a dispatch; `bytes` of the slot as in reserve(). */
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
        TRY(reserve(b, bytes, bytes != UINT64_MAX || b->lands, block));   /* or the arena grows */
    return require(b, *block, bytes == UINT64_MAX ? 0 : bytes);
}

/* -- dispatch ------------------------------------------------------------------------------- */

static struct ep_call_record dispatch_record(const struct ep_buffer *b,
                                             const struct ep_dispatch_args *a,
                                             const struct ep_block *block)
{
    struct ep_call_record record = record_with(b, block, b->landing);
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
    return ep_launch_on(b, b->stream, EP_KERNEL_DISPATCH, kernel, &params, sizeof params,
                        a->call.num_sms);
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

/* Until the totals of this call are there.  What the streams had queued before it takes its own time;
 * once the call runs the device gives up after timeout_ns.  The host waits longer, so that it is the
 * device that says for whom it waited. */
static int wait_totals(struct ep_buffer *b)
{
    uint64_t limit = b->comm.timeout_ns;
    limit = limit > (EP_FOREVER - NS_PER_S) / 2 ? EP_FOREVER : 2 * limit + NS_PER_S;
    TRY(b->exec->wait_word(b->exec->self, b->stream, &b->totals->started, b->ticket, EP_FOREVER));
    return b->exec->wait_word(b->exec->self, b->stream, &b->totals->ticket, b->ticket, limit);
}

/* Host-wait mode: rows and slot of this call, the extent trimmed. */
static int settle(struct ep_buffer *b, const struct ep_dispatch_args *a, struct ep_block *block,
                  struct ep_dispatch_result *out)
{
    uint64_t kept = 0;
    if (a->queued && block && block != b->landing)
        kept = a->queued(a->what, view_of(b, block), block->bytes);
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
        TRY(end(b, &a->call));
    if (waits_for_totals(a))     /* while the rows are on their way                             */
        TRY(settle(b, a, block, out));
    TRY(ep_slots_keep(b, block));
    TRY(ep_slots_keep(b, b->landing));
    return a->call.flags & EP_CALL_WAIT ? wait_end(b) : EP_OK;
}

int ep_buffer_dispatch(struct ep_buffer *b, const struct ep_dispatch_args *a,
                       struct ep_dispatch_result *out)
{
    int waits = waits_for_totals(a);
    struct ep_block *block = NULL;
    struct ep_loaded kernel;
    TRY(ep_launch_choose(b, EP_KERNEL_DISPATCH, &a->call, &kernel));
    TRY(begin(b, &a->call));
    if (waits && b->unseen) {    /* before this stream waits for the caller's                   */
        int rc = ep_status_look_back(b);
        if (rc == EP_ERR_INTERRUPTED || rc == EP_ERR_ABORTED)
            abort_call(b);       /* the others go on to wait for this rank                      */
        if (rc != EP_OK)
            return rc;
    }
    TRY(order(b, &a->call));
    b->num_calls++;
    *out = (struct ep_dispatch_result){.rows = a->rows, .slot = slot_of(a, a->rows),
                                       .number = b->num_calls};
    int rc = make_room(b, a, waits ? UINT64_MAX : out->slot.bytes, &block);
    if (rc == EP_OK)
        rc = dispatch_into(b, &kernel, a, block, out);
    if (rc != EP_OK)
        return fail(b, &a->call, block, rc);
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
    if (block)
        out->view = view_of(b, block);
    out->expert_counts = (const uint32_t *)(b->totals + 1);
    return EP_OK;
}

/* -- combine -------------------------------------------------------------------------------- */

static struct ep_call_record combine_record(const struct ep_buffer *b,
                                            const struct ep_combine_args *a,
                                            const struct ep_block *staging)
{
    struct ep_call_record record = record_with(b, staging, NULL);
    record.mode = a->mode;
    record.x_segment = a->x_segment;
    record.x_offset = a->x_offset;
    record.weights_segment = a->weights_segment;
    record.weights_offset = a->weights_offset;
    record.agree[EP_AGREE_OP] = EP_OP_COMBINE;
    record.agree[EP_AGREE_HIDDEN_BYTES] = a->hidden_bytes;
    record.agree[EP_AGREE_NUM_TOPK] = a->num_topk;
    record.agree[EP_AGREE_TOPK_IDX_BYTES] = a->num_topk != 0;
    record.agree[EP_AGREE_HANDLE] = (uint32_t)a->handle;
    return record;
}

uint32_t ep_buffer_combine_kernel(const struct ep_combine_args *a)
{
    return a->x || a->weights ? EP_PUSHING_COMBINE : EP_KERNEL_COMBINE;
}

static int launch_combine(struct ep_buffer *b, const struct ep_loaded *kernel,
                          const struct ep_combine_args *a, const struct ep_block *staging)
{
    struct ep_combine_params params = {
        .exchange = {.comm = b->comm, .record = combine_record(b, a, staging)},
        .x = a->x, .weights = a->weights, .out = a->out, .out_weights = a->out_weights,
        .bias0 = a->bias0, .bias1 = a->bias1, .pos = a->pos, .rank_prefix = a->rank_prefix,
        .num_tokens = a->num_tokens, .hidden_bytes = a->hidden_bytes, .num_topk = a->num_topk,
        .num_stages = kernel->stages, .stage_bytes = kernel->stage_bytes};
    return ep_launch_on(b, b->stream, ep_buffer_combine_kernel(a), kernel, &params, sizeof params,
                        a->call.num_sms);
}

/* Where pushed rows land: in landing, or where that is too small in what is free. */
static int reserve_staging(struct ep_buffer *b, const struct ep_combine_args *a,
                           struct ep_block **out)
{
    uint64_t want = most_landing(a->num_tokens, min_u32(a->max_ranks, b->comm.num_ranks),
                                 a->hidden_bytes);
    if (b->grows || b->graph)
        TRY(ep_slots_make_landing(b, want));
    if (!b->graph && (!b->landing || b->landing->bytes < want))
        return reserve(b, UINT64_MAX, 1, out);
    *out = b->landing;           /* a graph keeps no more than that                             */
    if (*out)
        ep_slots_hold(b, *out);
    return EP_OK;
}

int ep_buffer_combine(struct ep_buffer *b, const struct ep_combine_args *a)
{
    struct ep_block *staging = NULL;
    struct ep_loaded kernel;
    TRY(ep_launch_choose(b, ep_buffer_combine_kernel(a), &a->call, &kernel));
    TRY(begin(b, &a->call));
    TRY(order(b, &a->call));
    b->num_calls++;
    int rc = reserve_staging(b, a, &staging);
    if (rc == EP_OK)
        rc = launch_combine(b, &kernel, a, staging);
    if (rc == EP_OK)
        rc = ep_slots_keep(b, staging);
    if (rc == EP_OK && a->x_bytes)
        rc = ep_slots_keep_at(b, a->x_segment, a->x_offset);
    if (rc == EP_OK && a->weights_bytes)
        rc = ep_slots_keep_at(b, a->weights_segment, a->weights_offset);
    if (rc == EP_OK)
        rc = a->call.flags & EP_CALL_WAIT ? wait_end(b) : end(b, &a->call);
    if (rc != EP_OK)
        return fail(b, &a->call, staging, rc);
    if (staging)                 /* whoever writes to it next has seen this rank's next record    */
        ep_slots_release(b, staging);
    return EP_OK;
}
