/* SPDX-License-Identifier: MIT */
#include "deepep_ptx/symmetric.h"

#include <stdlib.h>
#include <string.h>

#include "core/gather.h"
#include "core/ll_memory.h"
#include "core/low_latency.h"
#include "core/util.h"

/* Of the buffers of this process.  Ranks that are threads share it, processes do not. */
static uint64_t newest_number;

int ep_symmetric_create(const struct ep_executor *exec, const struct ep_group *group,
                        const struct ep_hooks *hooks, struct ep_symmetric **out)
{
    if (group->size == 0 || group->size > EP_MAX_RANKS || group->rank >= group->size)
        return EP_ERR_ARGUMENT;
    struct ep_symmetric *s = calloc(1, sizeof *s);
    if (!s)
        return EP_ERR_MEMORY;
    s->exec = exec;
    s->group = *group;
    if (hooks)
        s->hooks = *hooks;
    *out = s;
    return EP_OK;
}

void ep_symmetric_free(struct ep_symmetric *s)
{
    free(s);
}

const struct ep_failure *ep_symmetric_failure(const struct ep_symmetric *s)
{
    return &s->failure;
}

uint64_t ep_symmetric_number(const struct ep_symmetric *s)
{
    return s->number;
}

static void begin(struct ep_symmetric *s)
{
    s->failure = (struct ep_failure){.what = EP_FAILED_NOT};
}

/* rc, which nobody else has to hear of. */
static int own(struct ep_symmetric *s, int rc)
{
    if (rc != EP_OK) {
        ep_gather_failed(s, EP_FAILED_HERE, s->group.rank);
        s->failure.code = rc;
    }
    return rc;
}

/* -- segments ------------------------------------------------------------------------------- */

/* Nobody maps a segment any more when its owner frees it.  segments: a bit for each. */
static int drop(struct ep_symmetric *s, uint32_t segments)
{
    for (uint32_t i = 0; i < EP_MAX_SEGMENTS; i++)
        if (segments >> i & 1)
            ep_buffer_unmap_segment(s->buffer, i);
    if (s->group.barrier(s->group.self) != EP_OK)
        return EP_ERR_CALLER;
    for (uint32_t i = 0; i < EP_MAX_SEGMENTS; i++)
        if (segments >> i & 1) {
            if (s->hooks.dropped)
                s->hooks.dropped(s->hooks.self, i);
            ep_buffer_drop_segment(s->buffer, i);
        }
    return EP_OK;
}

/* An own segment.  *segments: the bit of what drop has to give back, also where it fails. */
static int allocate(struct ep_symmetric *s, uint64_t bytes, struct ep_record *mine,
                    uint32_t *segments)
{
    uint32_t index = 0;
    ep_dptr_t base = 0;
    int rc = ep_buffer_add_segment(s->buffer, bytes, &index, &base, mine->handle);
    if (rc == EP_ERR_MEMORY && s->hooks.give_back) {
        rc = s->hooks.give_back(s->hooks.self);
        if (rc != EP_OK)
            return ep_gather_failed(s, EP_FAILED_CALLER, s->group.rank);
        rc = ep_buffer_add_segment(s->buffer, bytes, &index, &base, mine->handle);
    }
    if (rc == EP_ERR_MEMORY)
        s->failure.bytes = bytes;
    if (rc != EP_OK)
        return rc;
    *segments = 1u << index;
    mine->number[0] = index;
    if (s->hooks.added) {
        uint64_t view = base;
        if (s->hooks.added(s->hooks.self, index, base, bytes, &view) != EP_OK)
            return ep_gather_failed(s, EP_FAILED_CALLER, s->group.rank);
        ep_buffer_set_view(s->buffer, index, view);
    }
    return EP_OK;
}

/* Everybody's, which must be the same segment: arenas have theirs in the same places. */
static int open_segments(struct ep_symmetric *s)
{
    uint32_t index = (uint32_t)s->all[s->group.rank].number[0];
    for (uint32_t rank = 0; rank < s->group.size; rank++) {
        if (s->all[rank].number[0] != index)
            return ep_gather_nonsense(s, rank);
        TRY(ep_buffer_open_segment(s->buffer, rank, index, s->all[rank].handle));
    }
    return ep_buffer_publish(s->buffer);
}

/* All ranks get the segment, or none and an error. */
static int add_segment(struct ep_symmetric *s, uint64_t bytes)
{
    struct ep_record mine = {0}, mapped = {0};
    uint32_t segments = 0;
    int rc = ep_gather(s, EP_IN_SEGMENT, allocate(s, bytes, &mine, &segments), &mine);
    if (rc == EP_OK)
        rc = ep_gather(s, EP_IN_MAPPING, open_segments(s), &mapped);
    /* All ranks come here, whatever one of them has met. */
    if (rc != EP_OK && drop(s, segments) != EP_OK)
        s->failure.kept = EP_FAILED_CALLER;
    return rc;
}

/* -- making --------------------------------------------------------------------------------- */

static int fill_connection(struct ep_symmetric *s, const struct ep_connection *c,
                           struct ep_record *mine)
{
    size_t name = strlen(c->device_name), place = strlen(c->place);
    if (name >= EP_NAME_BYTES || place >= EP_NAME_BYTES)
        return EP_ERR_ARGUMENT;
    memcpy(mine->text.device.name, c->device_name, name);
    memcpy(mine->text.device.place, c->place, place);
    mine->number[0] = c->limit_bytes;
    mine->number[1] = c->start_bytes;
    mine->number[2] = __atomic_load_n(&newest_number, __ATOMIC_RELAXED) + 1;
    return ep_buffer_heap_handle(s->buffer, mine->handle);
}

static int mismatch(struct ep_symmetric *s, uint32_t rank, const char *argument)
{
    const uint32_t ranks[2] = {0, rank};
    for (int i = 0; i < 2; i++) {
        const struct ep_record *got = &s->all[ranks[i]];
        s->failure.sizes[i] = got->number[0];
        memcpy(s->failure.names[i], got->text.device.name, EP_NAME_BYTES);
    }
    s->failure.argument = argument;
    return ep_gather_failed(s, EP_FAILED_MISMATCH, rank);
}

/* Whether all ranks have made the same kind of buffer, on the same kind of device. */
static int compare(struct ep_symmetric *s)
{
    for (uint32_t rank = 0; rank < s->group.size; rank++) {
        const struct ep_record *first = &s->all[0], *got = &s->all[rank];
        if (got->number[0] % EP_SLOT_ALIGN || got->number[1] % EP_SLOT_ALIGN
            || got->number[2] == 0)
            return ep_gather_nonsense(s, rank);
        if ((got->number[0] != 0) != (first->number[0] != 0))
            return mismatch(s, rank, "arena_limit_bytes");
        if (strcmp(got->text.device.name, first->text.device.name) != 0)
            return mismatch(s, rank, "group");
    }
    return EP_OK;
}

static void take_number(struct ep_symmetric *s)
{
    uint64_t seen = __atomic_load_n(&newest_number, __ATOMIC_RELAXED);
    s->number = ep_gather_most(s, 2);
    while (seen < s->number
           && !__atomic_compare_exchange_n(&newest_number, &seen, s->number, 0, __ATOMIC_RELAXED,
                                           __ATOMIC_RELAXED))
        ;
}

static uint32_t count_here(const struct ep_symmetric *s)
{
    const char *place = s->all[s->group.rank].text.device.place;
    uint32_t num_here = 0;
    for (uint32_t rank = 0; rank < s->group.size; rank++)
        num_here += strcmp(s->all[rank].text.device.place, place) == 0;
    return num_here;
}

static int open_heaps(struct ep_symmetric *s)
{
    for (uint32_t rank = 0; rank < s->group.size; rank++)
        TRY(ep_buffer_open_heap(s->buffer, rank, s->all[rank].handle));
    return EP_OK;
}

int ep_symmetric_connect(struct ep_symmetric *s, const struct ep_connection *connection,
                         uint32_t *num_here)
{
    struct ep_record mine = {0}, opened = {0}, published = {0};
    int rc = connection->made;
    begin(s);
    s->buffer = connection->buffer;
    s->growth_step = connection->growth_step ? connection->growth_step : EP_GROWTH_STEP;
    if (rc == EP_OK)
        rc = fill_connection(s, connection, &mine);
    TRY(ep_gather(s, EP_IN_CONNECT, rc, &mine));
    TRY(compare(s));
    take_number(s);
    *num_here = count_here(s);
    uint64_t bytes = connection->limit_bytes ? connection->limit_bytes : ep_gather_most(s, 1);
    TRY(ep_gather(s, EP_IN_HEAPS, open_heaps(s), &opened));
    if (bytes)
        return add_segment(s, bytes);
    return ep_gather(s, EP_IN_PUBLISH, ep_buffer_publish(s->buffer), &published);
}

/* -- growth --------------------------------------------------------------------------------- */

static uint64_t in_steps(uint64_t bytes, uint64_t step)
{
    return (bytes + step - 1) / step * step;
}

static int add_as_large_as_can_be(struct ep_symmetric *s, uint64_t needed)
{
    struct ep_arena_stats held;
    ep_buffer_stats(s->buffer, &held);
    int rc = add_segment(s, in_steps(max_u64(needed, held.arena_bytes), s->growth_step));
    if (rc == EP_OK || needed >= held.arena_bytes || s->failure.kept || !ep_gather_was_short(s))
        return rc;
    begin(s);                    /* some device is nearly full                                  */
    return add_segment(s, in_steps(needed, s->growth_step));
}

/* Segments in which no rank holds anything go, and *needed becomes what is needed without them. */
static int recycle(struct ep_symmetric *s, uint64_t landing, uint64_t *needed)
{
    struct ep_record mine = {.number = {ep_buffer_idle_segments(s->buffer), landing}};
    uint32_t idle = UINT32_MAX;
    TRY(ep_gather(s, EP_IN_RECYCLING, EP_OK, &mine));
    for (uint32_t rank = 0; rank < s->group.size; rank++)
        idle &= (uint32_t)s->all[rank].number[0];
    *needed += ep_gather_most(s, 1);
    idle &= ~1u;                 /* arrays of the caller's may show the first one               */
    return drop(s, idle) == EP_OK ? EP_OK : ep_gather_failed(s, EP_FAILED_CALLER, s->group.rank);
}

static int grow(struct ep_symmetric *s, uint64_t needed)
{
    struct ep_record mine = {.number = {needed}};
    struct ep_arena_stats held;
    uint64_t landing = 0;
    /* Kernels that nobody has waited for may use what goes; the gathering is their barrier. */
    TRY(ep_gather(s, EP_IN_GROWTH, ep_buffer_settle(s->buffer), &mine));
    needed = ep_gather_most(s, 0);
    int rc = EP_OK, made;
    ep_buffer_stats(s->buffer, &held);
    if (held.num_segments == EP_MAX_SEGMENTS) {
        landing = held.landing_bytes;
        rc = recycle(s, landing, &needed);
    }
    if (rc == EP_OK)
        rc = add_as_large_as_can_be(s, needed);
    /* Where it was is gone, and calls count on it. */
    int landed = ep_buffer_make_landing(s->buffer, landing, &made);
    return rc != EP_OK ? rc : own(s, landed);
}

int ep_symmetric_grow(struct ep_symmetric *s, uint64_t needed)
{
    begin(s);
    return grow(s, needed);
}

static void hear(const struct ep_symmetric *s, uint32_t first, struct ep_heard *heard)
{
    for (uint32_t i = 0; i < EP_NUM_SAID; i++) {
        heard->least[i] = ep_gather_least(s, first + i);
        heard->most[i] = ep_gather_most(s, first + i);
    }
}

int ep_symmetric_ensure_landing(struct ep_symmetric *s, uint64_t bytes,
                                const uint64_t said[EP_NUM_SAID], struct ep_heard *heard)
{
    struct ep_record mine = {0};
    int made = 0;
    begin(s);
    int rc = ep_buffer_make_landing(s->buffer, bytes, &made);
    mine.number[0] = made ? 0 : bytes;
    memcpy(&mine.number[1], said, EP_NUM_SAID * sizeof *said);
    TRY(ep_gather(s, EP_IN_ROOM, rc, &mine));
    hear(s, 1, heard);
    uint64_t missing = ep_gather_most(s, 0);
    if (missing == 0)
        return EP_OK;
    TRY(grow(s, missing));
    return own(s, ep_buffer_make_landing(s->buffer, bytes, &made));
}

/* -- low latency ---------------------------------------------------------------------------- */

/* In the order of struct ep_ll_shape. */
static const char *const shape_arguments[EP_NUM_SAID] = {
    "num_max_dispatch_tokens_per_rank", "hidden", "num_experts", "num_topk", "reduce",
    "word_tokens"};

static int compare_shapes(struct ep_symmetric *s)
{
    for (uint32_t rank = 0; rank < s->group.size; rank++)
        for (uint32_t i = 0; i < EP_NUM_SAID; i++) {
            uint64_t values[2] = {s->all[0].number[1 + i], s->all[rank].number[1 + i]};
            if (values[0] == values[1])
                continue;
            s->failure.argument = shape_arguments[i];
            memcpy(s->failure.sizes, values, sizeof values);
            return ep_gather_failed(s, EP_FAILED_MISMATCH, rank);
        }
    return EP_OK;
}

static int open_memory(struct ep_symmetric *s)
{
    for (uint32_t rank = 0; rank < s->group.size; rank++)
        TRY(ep_ll_memory_open(s->buffer, rank, s->all[rank].handle));
    ep_ll_memory_swap(s->buffer);
    return ep_buffer_publish(s->buffer);
}

/* All ranks have the new memory, or the old; the other goes. */
static int replace_memory(struct ep_symmetric *s, uint64_t bytes, const struct ep_ll_areas *areas)
{
    struct ep_record mine = {0}, mapped = {0};
    struct ep_buffer *b = s->buffer;
    ep_dptr_t before = b->ll.base;
    int rc = ep_gather(s, EP_IN_MEMORY, ep_ll_memory_make(b, bytes, areas, mine.handle), &mine);
    if (rc == EP_OK)
        rc = ep_gather(s, EP_IN_MEMORY_MAPPING, open_memory(s), &mapped);
    if (rc != EP_OK && b->ll.base != before) {
        ep_ll_memory_swap(b);
        ep_buffer_publish(b);    /* a device that takes no copies runs no kernels either        */
    }
    ep_ll_memory_unmap(b, &b->next_ll);
    if (s->group.barrier(s->group.self) != EP_OK) {
        if (rc != EP_OK)
            s->failure.kept = EP_FAILED_CALLER;
        return rc != EP_OK ? rc : ep_gather_failed(s, EP_FAILED_CALLER, s->group.rank);
    }
    ep_ll_memory_free(b, &b->next_ll);
    return rc;
}

/* The areas are the same for all calls.  Where a shape needs larger ones the memory is replaced, for
 * what they would take from each other is not zero any more; memory of no shape so far is. */
static int make_areas(struct ep_symmetric *s, const struct ep_ll_areas *areas, uint64_t bytes)
{
    struct ep_buffer *b = s->buffer;
    struct ep_record divided = {0};
    int same = memcmp(areas, &b->ll.areas, sizeof *areas) == 0;
    if (bytes > b->ll.bytes || (!same && b->ll.areas.numbers))
        return replace_memory(s, max_u64(bytes, b->ll.bytes), areas);
    if (same)
        return EP_OK;
    ep_ll_memory_divide(b, areas);
    int rc = ep_gather(s, EP_IN_MEMORY_MAPPING, ep_buffer_publish(b), &divided);
    if (rc != EP_OK)             /* some rank's device may not know: to be done again            */
        b->ll.areas = (struct ep_ll_areas){0};
    return rc;
}

/* Kernels that nobody has waited for may use what goes: those of calls, and of replays, which are on
 * the caller's stream.  The gathering behind it is their barrier. */
static int settle_replays(struct ep_buffer *b, void *stream)
{
    if (b->ll.base && !b->closed)
        TRY(b->exec->stream_wait(b->exec->self, b->stream, stream));
    return ep_buffer_settle(b);
}

int ep_symmetric_ensure_low_latency(struct ep_symmetric *s, const struct ep_ll_shape *shape,
                                    uint64_t bytes, void *stream)
{
    struct ep_record mine = {.number = {bytes, shape->max_tokens, shape->hidden,
                                        shape->num_experts, shape->num_topk, shape->reduce,
                                        shape->word_tokens}};
    struct ep_ll_areas areas = ep_ll_areas_of(shape, s->group.size);
    begin(s);
    TRY(ep_gather(s, EP_IN_SHAPE, settle_replays(s->buffer, stream), &mine));
    TRY(compare_shapes(s));
    areas = ep_ll_areas_both(&areas, &s->buffer->ll.areas);
    bytes = in_steps(ep_gather_most(s, 0), 2 * EP_SLOT_ALIGN);
    return make_areas(s, &areas, max_u64(bytes, ep_ll_areas_bytes(&areas)));
}

/* -- reset and end -------------------------------------------------------------------------- */

int ep_symmetric_reset(struct ep_symmetric *s, const uint64_t said[EP_NUM_SAID],
                       struct ep_heard *heard)
{
    struct ep_record mine = {0}, kept = {0};
    begin(s);
    TRY(own(s, ep_buffer_reset_begin(s->buffer, &mine.number[0])));
    TRY(ep_gather_everybody(s, EP_IN_RESET));
    TRY(ep_gather(s, EP_IN_EPOCH, EP_OK, &mine));
    int rc = ep_buffer_reset_end(s->buffer, ep_gather_most(s, 0));
    memcpy(&kept.number[0], said, EP_NUM_SAID * sizeof *said);
    TRY(ep_gather(s, EP_IN_RESET_END, rc, &kept));
    hear(s, 0, heard);
    return EP_OK;
}

int ep_symmetric_end(struct ep_symmetric *s)
{
    struct ep_record mine = {0};
    begin(s);
    TRY(ep_gather(s, EP_IN_END, EP_OK, &mine));
    ep_buffer_close_peers(s->buffer);
    if (s->group.barrier(s->group.self) != EP_OK)
        return ep_gather_failed(s, EP_FAILED_CALLER, s->group.rank);
    return EP_OK;
}
