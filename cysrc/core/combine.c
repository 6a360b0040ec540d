/* SPDX-License-Identifier: MIT */
#include "core/call.h"
#include "core/graphs.h"
#include "core/launch.h"
#include "core/order.h"
#include "core/room.h"
#include "core/slots.h"
#include "core/util.h"

static struct ep_call_record combine_record(const struct ep_buffer *b,
                                            const struct ep_combine_args *a,
                                            const struct ep_block *staging)
{
    struct ep_call_record record = ep_room_record(b, staging, NULL);
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
    return a->x || a->weights ? EP_KERNEL_COMBINE_PUSH : EP_KERNEL_COMBINE;
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
    return ep_launch_call(b, &a->call, ep_buffer_combine_kernel(a), kernel, &params, sizeof params);
}

/* Where pushed rows land: in landing, or where that is too small in what is free. */
static int reserve_staging(struct ep_buffer *b, const struct ep_combine_args *a,
                           struct ep_block **out)
{
    uint64_t want = ep_room_most_landing(a->num_tokens, min_u32(a->max_ranks, b->comm.num_ranks),
                                 a->hidden_bytes);
    if (b->grows || b->graph)
        TRY(ep_slots_make_landing(b, want));
    if (!b->graph && (!b->landing || b->landing->bytes < want))
        return ep_room_reserve(b, UINT64_MAX, 1, out);
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
    TRY(ep_call_begin(b, &a->call));
    TRY(ep_order_begin(b, &a->call));
    b->num_calls++;
    int rc = reserve_staging(b, a, &staging);
    if (rc == EP_OK)
        rc = launch_combine(b, &kernel, a, staging);
    if (rc == EP_OK)
        rc = ep_graphs_keep(b, staging);
    if (rc == EP_OK && a->x_bytes)
        rc = ep_graphs_keep_at(b, a->x_segment, a->x_offset);
    if (rc == EP_OK && a->weights_bytes)
        rc = ep_graphs_keep_at(b, a->weights_segment, a->weights_offset);
    if (rc == EP_OK)
        rc = a->call.flags & EP_CALL_WAIT ? ep_call_wait_end(b) : ep_call_end(b, &a->call);
    if (rc != EP_OK)
        return ep_call_fail(b, &a->call, staging, rc);
    if (staging)                 /* whoever writes to it next has seen this rank's next record    */
        ep_slots_release(b, staging);
    return EP_OK;
}
