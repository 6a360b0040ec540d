/* SPDX-License-Identifier: MIT
 *
 * What a buffer says of itself: nothing is changed here, and nothing waited for. */
#include <string.h>

#include "core/buffer.h"

static struct ep_extent extent(const struct ep_buffer *b, uint32_t segment, uint64_t offset,
                               uint64_t bytes)
{
    const struct ep_segment *s = &b->arena.segment[segment];
    return (struct ep_extent){.dptr = s->base + offset, .view = s->view + offset, .bytes = bytes,
                              .offset = offset, .segment = segment};
}

void ep_buffer_segment(const struct ep_buffer *b, uint32_t index, struct ep_extent *out)
{
    *out = extent(b, index, 0, b->arena.segment[index].bytes);
}

int ep_buffer_find(const struct ep_buffer *b, uint64_t view, uint64_t bytes, struct ep_extent *out)
{
    uint32_t segment;
    uint64_t offset;
    if (!ep_arena_find(&b->arena, view, bytes, &segment, &offset))
        return 0;
    *out = extent(b, segment, offset, bytes);
    return 1;
}

void ep_buffer_extent(const struct ep_buffer *b, const struct ep_block *slot, struct ep_extent *out)
{
    *out = extent(b, slot->segment, slot->offset, slot->bytes);
}

uint32_t ep_buffer_status(const struct ep_buffer *b, const struct ep_status_record **records)
{
    *records = b->status;
    return b->num_status;
}

int ep_buffer_may_grow(const struct ep_buffer *b)
{
    return b->may_grow;
}

int ep_buffer_is_crowded(const struct ep_buffer *b)
{
    return b->crowded;
}

uint32_t ep_buffer_launched(const struct ep_buffer *b, uint32_t *kernels)
{
    memcpy(kernels, b->launched, b->num_launched * sizeof *kernels);
    return b->num_launched;
}

void ep_buffer_stats(struct ep_buffer *b, struct ep_arena_stats *out)
{
    pthread_mutex_lock(&b->lock);
    *out = (struct ep_arena_stats){.arena_bytes = b->arena.total, .used_bytes = b->arena.in_use,
                                    .landing_bytes = b->landing ? b->landing->bytes : 0,
                                    .num_segments = b->arena.num_segments};
    pthread_mutex_unlock(&b->lock);
}

void *ep_buffer_stream(const struct ep_buffer *b)
{
    return b->stream;
}
