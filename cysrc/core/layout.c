/* SPDX-License-Identifier: MIT */
#include "core/call.h"
#include "core/launch.h"
#include "core/order.h"
#include "core/util.h"

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
    TRY(ep_call_begin(b, &a->call));
    TRY(ep_order_begin(b, &a->call));
    return ep_call_end_local(b, &a->call, launch_layout(b, a));
}
