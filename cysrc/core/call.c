/* SPDX-License-Identifier: MIT
 *
 * The calls: parameter blocks, launch order, host waits, and what happens to a slot when a call
 * fails.  docs/protocols.md says why each order is safe. */
#include "core/buffer.h"

#define TRY(call) do { int rc_ = (call); if (rc_ != EP_OK) return rc_; } while (0)

#define NS_PER_S 1000000000ull
#define WARP 32

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* -- launches ------------------------------------------------------------------------------- */

static int launch_on(struct ep_buffer *b, void *stream, uint32_t kernel, const void *params,
                     uint32_t param_bytes, uint32_t grid)
{
    const struct ep_loaded *loaded = &b->kernel[kernel];
    struct ep_launch launch = {
        .kernel = loaded->handle, .params = params, .param_bytes = param_bytes,
        .grid = grid, .block = loaded->threads,
        .smem = loaded->smem + b->comm.num_ranks * loaded->smem_per_rank, .stream = stream};
    if (b->num_launched < EP_NUM_KERNELS)
        b->launched[b->num_launched++] = kernel;
    return b->exec->launch(b->exec->self, &launch);
}

#define LAUNCH(b, kernel, params, grid) \
    launch_on(b, (b)->stream, kernel, &(params), sizeof(params), grid)

/* -- what the device says -------------------------------------------------------------------- */

static int refuse(struct ep_buffer *b, uint32_t code)
{
    b->num_status = 1;
    b->status[0] = (struct ep_status_record){.epoch = b->control.epoch, .code = code,
                                             .peer = EP_NO_PEER, .valid = 1};
    return EP_ERR_STATUS;
}

/* The call's kernels run after what the caller's stream has queued. */
static int begin(struct ep_buffer *b, void *caller_stream)
{
    if (b->closed)
        return EP_ERR_DESTROYED;
    b->num_launched = 0;
    b->num_status = 0;
    if (b->control.abort)
        return refuse(b, EP_CODE_ABORTED);
    return b->exec->stream_wait(b->exec->self, b->stream, caller_stream);
}

/* Take the records written since the last look into b->status, oldest first.  No kernel runs. */
static void drain(struct ep_buffer *b)
{
    uint32_t num_written = min_u32(b->ring->next, EP_STATUS_RECORDS);
    b->num_status = 0;
    for (uint32_t i = 0; i < num_written; i++) {
        if (b->ring->record[i].valid)
            b->status[b->num_status++] = b->ring->record[i];
        b->ring->record[i].valid = 0;
    }
    b->ring->next = 0;
}

/* The end of a call: all its kernels are over; read their verdict.  The host waits here, so what the
 * caller's stream queues next comes after the call without an event.  (An event would be wrong where
 * ranks share a GPU and a stream: one rank's stream would then wait for another rank's kernels.) */
static int finish(struct ep_buffer *b)
{
    const struct ep_executor *exec = b->exec;
    TRY(exec->stream_synchronize(exec->self, b->stream));
    TRY(exec->copy_out(exec->self, &b->control, b->comm.heap, sizeof b->control, b->stream));
    drain(b);
    return b->num_status ? EP_ERR_STATUS : EP_OK;
}

/* The same for a collective call, which an abort or a verdict can end without a record. */
static int finish_collective(struct ep_buffer *b)
{
    TRY(finish(b));
    if (b->control.abort)
        return refuse(b, EP_CODE_ABORTED);
    return b->control.verdict == EP_CODE_OK ? EP_OK : refuse(b, b->control.verdict);
}

static int launch_abort(struct ep_buffer *b)
{
    struct ep_abort_params params = {.comm = b->comm};
    return launch_on(b, b->abort_stream, EP_KERNEL_ABORT, &params, sizeof params, 1);
}

void ep_buffer_abandon(struct ep_buffer *b)
{
    if (b->closed)
        return;
    /* Where even this fails, the peers find out by their time limits. */
    if (!b->control.abort)
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
        finish(b);
    /* Also where nothing could be launched: the device's state is unknown. */
    if (!b->control.abort)
        b->control.abort = b->control.epoch << 8 | (b->comm.rank + 1);
}

/* -- slots ---------------------------------------------------------------------------------- */

static struct ep_block *reserve_largest(struct ep_buffer *b)
{
    pthread_mutex_lock(&b->lock);
    struct ep_block *block = ep_arena_reserve_largest(&b->arena);
    pthread_mutex_unlock(&b->lock);
    return block;
}

/* An extent of `bytes`, or the largest there is: with it this rank still takes part in the
 * exchange, and the device gives all ranks the same capacity error. */
static int reserve_or_largest(struct ep_buffer *b, uint64_t bytes, struct ep_block **out)
{
    pthread_mutex_lock(&b->lock);
    int rc = ep_arena_reserve(&b->arena, bytes, out);
    if (rc == EP_OK && !*out)
        *out = ep_arena_reserve_largest(&b->arena);
    pthread_mutex_unlock(&b->lock);
    return rc;
}

/* Of an aborted call a peer may still write: its slot stays out of use until reset. */
static void give_up_slot(struct ep_buffer *b, struct ep_block *block, int rc)
{
    if (!block)
        return;
    if (rc == EP_ERR_STATUS && !b->control.abort) {
        ep_buffer_release(b, block);
        return;
    }
    pthread_mutex_lock(&b->lock);
    block->link = b->quarantine;
    b->quarantine = block;
    pthread_mutex_unlock(&b->lock);
}

static struct ep_call_record record_with(const struct ep_buffer *b, const struct ep_block *block)
{
    struct ep_call_record record = {.held_bytes = b->arena.total};
    if (block) {
        record.slot_segment = block->segment;
        record.slot_offset = block->offset;
        record.slot_bytes = block->bytes;
        record.held_bytes -= block->bytes;
    }
    return record;
}

/* -- layout --------------------------------------------------------------------------------- */

int ep_buffer_layout(struct ep_buffer *b, const struct ep_layout_args *a)
{
    const struct ep_executor *exec = b->exec;
    TRY(begin(b, a->caller_stream));
    TRY(exec->fill(exec->self, a->rank_counts, 0, b->comm.num_ranks * sizeof(int32_t), b->stream));
    TRY(exec->fill(exec->self, a->expert_counts, 0, a->num_experts * sizeof(int32_t), b->stream));
    struct ep_layout_params params = {
        .comm = b->comm, .topk_idx = a->topk_idx, .rank_counts = a->rank_counts,
        .expert_counts = a->expert_counts, .in_rank = a->in_rank, .num_tokens = a->num_tokens,
        .num_topk = a->num_topk, .num_experts = a->num_experts,
        .topk_idx_bytes = a->topk_idx_bytes};
    uint32_t warps = b->kernel[EP_KERNEL_LAYOUT].threads / WARP;     /* one token per warp */
    uint32_t ctas = (a->num_tokens + warps - 1) / warps;
    TRY(LAUNCH(b, EP_KERNEL_LAYOUT, params, max_u32(1, min_u32(a->num_sms, ctas))));
    return finish(b);
}

/* -- dispatch ------------------------------------------------------------------------------- */

static struct ep_notify_params notify_params(struct ep_buffer *b, const struct ep_dispatch_args *a,
                                             const struct ep_block *block)
{
    struct ep_notify_params params = {
        .exchange = {.comm = b->comm, .record = record_with(b, block)},
        .in_rank = a->in_rank, .rank_counts = a->rank_counts, .expert_counts = a->expert_counts,
        .pos = a->pos, .sent = b->sent, .rank_prefix = a->rank_prefix, .dest = b->dest,
        .totals = b->totals_dptr, .ticket = ++b->ticket,
        .num_tokens = a->num_tokens, .hidden_bytes = a->hidden_bytes, .num_topk = a->num_topk,
        .topk_idx_bytes = a->topk_idx_bytes,
        .num_local_experts = a->num_experts / b->comm.num_ranks};
    struct ep_call_record *record = &params.exchange.record;
    record->worst_rows = a->worst_rows;
    record->agree[EP_AGREE_OP] = EP_OP_DISPATCH;
    record->agree[EP_AGREE_NUM_EXPERTS] = a->num_experts;
    record->agree[EP_AGREE_HIDDEN_BYTES] = a->hidden_bytes;
    record->agree[EP_AGREE_DTYPE] = a->dtype;
    record->agree[EP_AGREE_NUM_TOPK] = a->num_topk;
    record->agree[EP_AGREE_TOPK_IDX_BYTES] = a->topk_idx_bytes;
    return params;
}

/* Until the totals of this call are there.  The device gives up after timeout_ns; the host waits
 * longer, so that it is the device that says for whom it waited. */
static int wait_totals(struct ep_buffer *b)
{
    uint64_t limit = b->comm.timeout_ns;
    limit = limit > (EP_FOREVER - NS_PER_S) / 2 ? EP_FOREVER : 2 * limit + NS_PER_S;
    return b->exec->wait_word(b->exec->self, &b->totals->ticket, b->ticket, limit);
}

static int launch_dispatch(struct ep_buffer *b, const struct ep_dispatch_args *a,
                           const struct ep_block *block, const struct ep_slot *slot)
{
    struct ep_dispatch_params params = {
        .comm = b->comm, .x = a->x, .topk_idx = a->topk_idx, .topk_weights = a->topk_weights,
        .pos = a->pos, .rank_prefix = a->rank_prefix, .dest = b->dest,
        .num_tokens = a->num_tokens, .hidden_bytes = a->hidden_bytes, .num_topk = a->num_topk,
        .topk_idx_bytes = a->topk_idx_bytes,
        .num_local_experts = a->num_experts / b->comm.num_ranks, .worst_rows = a->worst_rows};
    if (a->worst_rows && block && block->bytes >= slot->bytes)
        params.worst_idx = b->arena.segment[block->segment].base + block->offset + slot->topk_idx;
    return LAUNCH(b, EP_KERNEL_DISPATCH, params, a->num_sms);
}

/* Host-wait mode between its two kernels: rows and slot of this call, the extent trimmed. */
static int settle(struct ep_buffer *b, const struct ep_dispatch_args *a, struct ep_block *block,
                  struct ep_dispatch_result *out)
{
    TRY(wait_totals(b));
    if (b->totals->verdict != EP_CODE_OK) {
        TRY(finish(b));
        return refuse(b, b->totals->verdict);
    }
    out->rows = b->totals->num_recv;
    out->slot = ep_slot_of(out->rows, a->hidden_bytes, a->num_topk, a->topk_idx_bytes);
    if (out->rows) {
        pthread_mutex_lock(&b->lock);
        ep_arena_trim(block, out->slot.bytes);
        pthread_mutex_unlock(&b->lock);
    }
    return EP_OK;
}

static int dispatch_into(struct ep_buffer *b, const struct ep_dispatch_args *a,
                         struct ep_block *block, struct ep_dispatch_result *out)
{
    struct ep_notify_params notify = notify_params(b, a, block);
    TRY(LAUNCH(b, EP_KERNEL_NOTIFY, notify, b->comm.num_ranks));
    if (!a->worst_rows)
        TRY(settle(b, a, block, out));
    TRY(launch_dispatch(b, a, block, &out->slot));
    return finish_collective(b);
}

int ep_buffer_dispatch(struct ep_buffer *b, const struct ep_dispatch_args *a,
                       struct ep_dispatch_result *out)
{
    TRY(begin(b, a->caller_stream));
    struct ep_block *block;
    *out = (struct ep_dispatch_result){.rows = a->worst_rows};
    out->slot = ep_slot_of(a->worst_rows, a->hidden_bytes, a->num_topk, a->topk_idx_bytes);
    if (a->worst_rows)
        TRY(reserve_or_largest(b, out->slot.bytes, &block));
    else
        block = reserve_largest(b);

    int rc = dispatch_into(b, a, block, out);
    if (rc != EP_OK) {
        if (rc != EP_ERR_STATUS)
            abort_call(b);
        give_up_slot(b, block, rc);
        return rc;
    }
    if (block && out->rows == 0) {
        ep_buffer_release(b, block);
        block = NULL;
    }
    out->block = block;
    if (block)
        out->view = b->arena.segment[block->segment].view + block->offset;
    out->epoch = b->control.epoch;
    out->expert_counts = (const uint32_t *)(b->totals + 1);
    return EP_OK;
}

/* -- combine -------------------------------------------------------------------------------- */

static int combine_with(struct ep_buffer *b, const struct ep_combine_args *a,
                        const struct ep_block *staging)
{
    struct ep_combine_notify_params notify = {
        .exchange = {.comm = b->comm, .record = record_with(b, staging)},
        .rank_prefix = a->rank_prefix, .source = b->source, .push = b->push,
        .hidden_bytes = a->hidden_bytes, .num_topk = a->num_topk};
    struct ep_call_record *record = &notify.exchange.record;
    record->mode = a->mode;
    record->x_segment = a->x_segment;
    record->x_offset = a->x_offset;
    record->weights_segment = a->weights_segment;
    record->weights_offset = a->weights_offset;
    record->agree[EP_AGREE_OP] = EP_OP_COMBINE;
    record->agree[EP_AGREE_HIDDEN_BYTES] = a->hidden_bytes;
    record->agree[EP_AGREE_DTYPE] = a->dtype;
    record->agree[EP_AGREE_NUM_TOPK] = a->num_topk;
    record->agree[EP_AGREE_TOPK_IDX_BYTES] = a->num_topk != 0;
    record->agree[EP_AGREE_HANDLE_EPOCH] = (uint32_t)a->handle_epoch;
    TRY(LAUNCH(b, EP_KERNEL_COMBINE_NOTIFY, notify, 1));

    if (a->x || a->weights) {
        struct ep_combine_push_params push = {
            .comm = b->comm, .x = a->x, .weights = a->weights, .push = b->push,
            .hidden_bytes = a->hidden_bytes, .num_topk = a->num_topk};
        TRY(LAUNCH(b, EP_KERNEL_COMBINE_PUSH, push, a->num_sms));
    }

    struct ep_combine_reduce_params reduce = {
        .comm = b->comm, .out = a->out, .out_weights = a->out_weights, .bias0 = a->bias0,
        .bias1 = a->bias1, .pos = a->pos, .source = b->source, .num_tokens = a->num_tokens,
        .hidden_bytes = a->hidden_bytes, .num_topk = a->num_topk};
    TRY(LAUNCH(b, EP_KERNEL_COMBINE_REDUCE, reduce, a->num_sms));
    return finish_collective(b);
}

int ep_buffer_combine(struct ep_buffer *b, const struct ep_combine_args *a)
{
    TRY(begin(b, a->caller_stream));
    struct ep_block *staging = reserve_largest(b);
    int rc = combine_with(b, a, staging);
    if (rc == EP_OK) {
        if (staging)
            ep_buffer_release(b, staging);
        return EP_OK;
    }
    if (rc != EP_ERR_STATUS)
        abort_call(b);
    give_up_slot(b, staging, rc);
    return rc;
}
