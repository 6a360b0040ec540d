/* SPDX-License-Identifier: MIT
 *
 * The low-latency calls: what they take of memory, and their parameter blocks. */
#include "core/low_latency.h"

#include <stddef.h>

#include "core/call.h"
#include "core/graphs.h"
#include "core/launch.h"
#include "core/order.h"
#include "core/status.h"
#include "core/util.h"

_Static_assert(offsetof(struct ep_control, masked) % sizeof(uint64_t) == 0, "it is one u64");

#define BF16_BYTES 2
#define ROWS_AT_ONCE 2           /* of a team that takes rows, in shared memory                 */

static uint64_t in_lines(uint64_t bytes)
{
    return (bytes + EP_SLOT_ALIGN - 1) / EP_SLOT_ALIGN * EP_SLOT_ALIGN;
}

/* Of a row of bfloat16. */
static uint32_t words_of_row(uint32_t hidden)
{
    return (hidden * BF16_BYTES + EP_LL_DATA_BYTES - 1) / EP_LL_DATA_BYTES;
}

/* -- memory --------------------------------------------------------------------------------- */

static uint32_t words_of_dispatch(const struct ep_ll_shape *shape, uint32_t cast)
{
    return cast ? shape->hidden / EP_LL_GROUP * EP_LL_GROUP_WORDS : words_of_row(shape->hidden);
}

static uint32_t dispatch_slot(const struct ep_ll_shape *shape, uint32_t cast)
{
    return (uint32_t)in_lines((uint64_t)(shape->num_topk + words_of_dispatch(shape, cast))
                              * EP_LL_WORD_BYTES);
}

/* A sum is of FP32: twice as much as a row. */
static uint32_t of_reduce(const struct ep_ll_shape *shape)
{
    return shape->reduce == EP_LL_REDUCE_RANK ? 2 : 1;
}

static uint32_t word_slot(const struct ep_ll_shape *shape, int logfmt)
{
    uint32_t words = of_reduce(shape) * words_of_row(shape->hidden);
    if (logfmt)
        words = shape->hidden / EP_LL_PIECE * EP_LL_PIECE_WORDS;
    return (uint32_t)in_lines((uint64_t)words * EP_LL_WORD_BYTES);
}

static uint32_t raw_slot(const struct ep_ll_shape *shape, int logfmt)
{
    uint64_t ranges = logfmt ? shape->hidden / EP_LL_PIECE * EP_LL_PIECE_RANGES : 0;
    return (uint32_t)in_lines((uint64_t)of_reduce(shape) * shape->hidden * BF16_BYTES
                              + ranges * sizeof(uint32_t));
}

/* Whether rows of that shape can be encoded: then there is room for them, which takes more where
 * they cross as they are after all. */
static int may_encode(const struct ep_ll_shape *shape)
{
    return shape->reduce == EP_LL_REDUCE_EXACT && shape->hidden % EP_LL_PIECE == 0;
}

struct ep_ll_areas ep_ll_areas_of(const struct ep_ll_shape *shape, uint32_t num_ranks)
{
    uint64_t tokens = shape->max_tokens, all = num_ranks * tokens;
    int sums = shape->reduce == EP_LL_REDUCE_RANK;
    uint64_t slots = sums ? num_ranks : shape->num_topk;         /* of a combine, for a token    */
    uint64_t numbers = all * (EP_LL_MAX_PARTS + (sums ? shape->num_topk : 0));
    uint64_t words = slots * min_u32(shape->max_tokens, shape->word_tokens)
                     * max_u64(word_slot(shape, 0), word_slot(shape, may_encode(shape)));
    uint64_t raw = tokens > shape->word_tokens
                   ? slots * tokens * raw_slot(shape, may_encode(shape)) : 0;
    return (struct ep_ll_areas){
        .numbers = in_lines(max_u64(numbers, shape->num_experts) * sizeof(uint64_t)),
        .words = max_u64(words, all * dispatch_slot(shape, 0)), .raw = raw};
}

struct ep_ll_areas ep_ll_areas_both(const struct ep_ll_areas *a, const struct ep_ll_areas *b)
{
    return (struct ep_ll_areas){.numbers = max_u64(a->numbers, b->numbers),
                                .words = max_u64(a->words, b->words),
                                .raw = max_u64(a->raw, b->raw)};
}

uint64_t ep_ll_areas_bytes(const struct ep_ll_areas *areas)
{
    return 2 * (areas->numbers + areas->words + areas->raw);
}

uint64_t ep_ll_bytes(const struct ep_ll_shape *shape, uint32_t num_ranks)
{
    struct ep_ll_areas areas = ep_ll_areas_of(shape, num_ranks);
    return ep_ll_areas_bytes(&areas);
}

/* With so many teams that take rows. */
static uint64_t smem_of(const struct ep_ll_shape *shape, uint32_t teams)
{
    uint64_t row = (uint64_t)shape->hidden * BF16_BYTES
                   + shape->hidden / EP_LL_GROUP * sizeof(float);
    return (shape->num_experts + 1) / 2 * 2 * 2 * sizeof(uint32_t)
           + teams * ROWS_AT_ONCE * ((row + 15) / 16 * 16);
}

uint64_t ep_ll_smem(const struct ep_ll_shape *shape)
{
    return smem_of(shape, 1);
}

/* -- calls ---------------------------------------------------------------------------------- */

static struct ep_ll_params common(const struct ep_buffer *b, const struct ep_ll_args *a, uint32_t op)
{
    const struct ep_ll_shape *shape = &a->shape;
    struct ep_ll_params params = {
        .comm = b->comm, .phases = a->phases,
        .num_tokens = a->num_tokens, .max_tokens = shape->max_tokens, .num_topk = shape->num_topk,
        .topk_idx_bytes = a->topk_idx_bytes,
        .num_local_experts = shape->num_experts / b->comm.num_ranks,
        .row_bytes = shape->hidden * BF16_BYTES};
    params.agree[EP_AGREE_OP] = op;
    params.agree[EP_AGREE_NUM_EXPERTS] = shape->num_experts;
    params.agree[EP_AGREE_HIDDEN_BYTES] = params.row_bytes;
    params.agree[EP_AGREE_NUM_TOPK] = shape->num_topk;
    params.agree[EP_AGREE_WORST_ROWS] = shape->max_tokens;
    return params;
}

/* Begins the call, or its second launch, which is no call of its own. */
static int begin(struct ep_buffer *b, const struct ep_ll_args *a)
{
    struct ep_ll_areas needed = ep_ll_areas_of(&a->shape, b->comm.num_ranks);
    if (!a->call.num_sms || !a->phases || needed.numbers > b->ll.areas.numbers
        || needed.words > b->ll.areas.words || needed.raw > b->ll.areas.raw)
        return EP_ERR_ARGUMENT;
    TRY(ep_call_begin(b, &a->call));
    TRY(ep_order_begin(b, &a->call));
    b->num_calls += (a->phases & EP_LL_SEND) != 0;
    return EP_OK;
}

/* A launch that only sends leaves no verdict. */
static int end(struct ep_buffer *b, const struct ep_ll_args *a, int rc)
{
    if (rc == EP_OK && !(a->call.flags & EP_CALL_WAIT))
        rc = ep_call_end(b, &a->call);
    else if (rc == EP_OK)
        rc = a->phases & EP_LL_RECEIVE ? ep_call_wait_end(b) : ep_status_look(b, EP_TOLD);
    return rc == EP_OK ? EP_OK : ep_call_fail(b, &a->call, NULL, rc);
}

int ep_buffer_ll_dispatch(struct ep_buffer *b, const struct ep_ll_dispatch_args *a, uint64_t *number)
{
    const struct ep_ll_shape *shape = &a->ll.shape;
    struct ep_loaded kernel = b->kernel[EP_KERNEL_LL_DISPATCH];
    uint32_t teams = smem_of(shape, EP_LL_TEAMS) > kernel.max_smem ? 1 : EP_LL_TEAMS;
    if (smem_of(shape, teams) > kernel.max_smem)
        return EP_ERR_ARGUMENT;
    kernel.smem = (uint32_t)smem_of(shape, teams);
    TRY(begin(b, &a->ll));
    *number = b->num_calls;
    struct ep_ll_dispatch_params params = {
        .ll = common(b, &a->ll, EP_OP_LL_DISPATCH), .x = a->x, .topk_idx = a->topk_idx,
        .recv_x = a->recv_x, .recv_scales = a->recv_scales, .recv_count = a->recv_count,
        .src_info = a->src_info, .layout_range = a->layout_range, .rows_of = a->rows_of,
        .source_tokens = a->source_tokens, .recv_stats = a->recv_stats,
        .wait_stats = a->wait_stats, .slot_bytes = dispatch_slot(shape, a->cast),
        .row_words = words_of_dispatch(shape, a->cast), .cast = a->cast, .teams = teams,
        .block_tokens = (a->ll.num_tokens + a->ll.call.num_sms - 1) / a->ll.call.num_sms};
    params.ll.agree[EP_AGREE_DTYPE] = a->cast;
    return end(b, &a->ll, ep_launch_call(b, &a->ll.call, EP_KERNEL_LL_DISPATCH, &kernel, &params,
                                         sizeof params));
}

int ep_buffer_ll_combine(struct ep_buffer *b, const struct ep_ll_combine_args *a)
{
    const struct ep_ll_shape *shape = &a->ll.shape;
    int logfmt = a->logfmt != 0;
    uint32_t kernel = logfmt ? EP_KERNEL_LL_LOGFMT_COMBINE : EP_KERNEL_LL_COMBINE;
    if (logfmt && (b->ll_shrink || !may_encode(shape)))
        return EP_ERR_ARGUMENT;
    TRY(begin(b, &a->ll));
    struct ep_ll_combine_params params = {
        .ll = common(b, &a->ll, EP_OP_LL_COMBINE), .x = a->x, .topk_idx = a->topk_idx,
        .topk_weights = a->topk_weights, .out = a->out, .rows_of = a->rows_of,
        .source_tokens = a->source_tokens, .wait_stats = a->wait_stats,
        .slot_bytes = word_slot(shape, logfmt), .raw_bytes = raw_slot(shape, logfmt),
        .reduce = shape->reduce, .x_row_bytes = a->x_row_bytes, .word_tokens = shape->word_tokens};
    params.ll.agree[EP_AGREE_DTYPE] = (uint32_t)logfmt;      /* the hosts agreed on `reduce`     */
    params.ll.agree[EP_AGREE_HANDLE] = (uint32_t)a->handle;
    return end(b, &a->ll, ep_launch_call(b, &a->ll.call, kernel, &b->kernel[kernel], &params,
                                         sizeof params));
}

/* -- ranks that calls do without ---------------------------------------------------------------- */

void ep_buffer_ll_shrink(struct ep_buffer *b)
{
    b->ll_shrink = 1;
}

int ep_buffer_ll_mask(struct ep_buffer *b, const struct ep_ll_mask_args *a)
{
    uint64_t ranks = ~0ull >> (64 - b->comm.num_ranks);
    if (!b->ll_shrink || (a->mask & (~ranks | 1ull << b->comm.rank)))
        return EP_ERR_ARGUMENT;
    TRY(ep_call_begin(b, &a->call));
    TRY(ep_order_begin(b, &a->call));
    struct ep_ll_mask_params params = {.comm = b->comm, .status = a->status, .mask = a->mask};
    return ep_call_end_local(b, &a->call,
                             ep_launch_on(b, b->stream, EP_KERNEL_LL_MASK,
                                          &b->kernel[EP_KERNEL_LL_MASK], &params, sizeof params, 1));
}

int ep_buffer_ll_masked(struct ep_buffer *b, uint64_t *mask)
{
    const struct ep_executor *exec = b->exec;
    if (b->closed)
        return EP_ERR_DESTROYED;
    TRY(exec->stream_synchronize(exec->self, b->stream));
    return exec->copy_out(exec->self, mask, b->comm.heap + offsetof(struct ep_control, masked),
                          sizeof *mask, b->stream);
}
