/* SPDX-License-Identifier: MIT */
#include "core/arena.h"

#include <stdlib.h>

#include "deepep_ptx/executor.h"

uint32_t ep_arena_next(const struct ep_arena *arena)
{
    uint32_t index = 0;
    while (index < EP_MAX_SEGMENTS && arena->segment[index].first)
        index++;
    return index;
}

int ep_arena_add(struct ep_arena *arena, ep_dptr_t base, uint64_t view, uint64_t bytes)
{
    uint32_t index = ep_arena_next(arena);
    if (index == EP_MAX_SEGMENTS)
        return EP_ERR_CAPACITY;
    struct ep_block *block = calloc(1, sizeof *block);
    if (!block)
        return EP_ERR_MEMORY;
    block->bytes = bytes;
    block->segment = index;
    arena->segment[index] =
        (struct ep_segment){.base = base, .view = view, .bytes = bytes, .first = block};
    arena->num_segments++;
    arena->total += bytes;
    return EP_OK;
}

static void free_blocks(struct ep_segment *segment)
{
    for (struct ep_block *block = segment->first, *next; block; block = next) {
        next = block->next;
        free(block);
    }
}

ep_dptr_t ep_arena_drop(struct ep_arena *arena, uint32_t index)
{
    struct ep_segment *segment = &arena->segment[index];
    ep_dptr_t base = segment->base;
    free_blocks(segment);
    arena->num_segments--;
    arena->total -= segment->bytes;
    *segment = (struct ep_segment){0};
    return base;
}

/* Cut `block` to `bytes`; the rest becomes a free block behind it. */
static int split(struct ep_block *block, uint64_t bytes)
{
    struct ep_block *rest = calloc(1, sizeof *rest);
    if (!rest)
        return EP_ERR_MEMORY;
    rest->segment = block->segment;
    rest->offset = block->offset + bytes;
    rest->bytes = block->bytes - bytes;
    rest->prev = block;
    rest->next = block->next;
    if (rest->next)
        rest->next->prev = rest;
    block->next = rest;
    block->bytes = bytes;
    return EP_OK;
}

/* Merge the block behind `block` into it when both are free. */
static void merge_next(struct ep_block *block)
{
    struct ep_block *next = block->next;
    if (block->used || !next || next->used)
        return;
    block->bytes += next->bytes;
    block->next = next->next;
    if (block->next)
        block->next->prev = block;
    free(next);
}

static void take(struct ep_arena *arena, struct ep_block *block)
{
    block->used = 1;
    arena->segment[block->segment].num_used++;
    arena->in_use += block->bytes;
}

/* NULL: nothing is to be reserved there. */
static struct ep_block *first_of(const struct ep_segment *segment)
{
    return segment->withdrawn ? NULL : segment->first;
}

static struct ep_block *largest(const struct ep_arena *arena)
{
    struct ep_block *best = NULL;
    for (uint32_t i = 0; i < EP_MAX_SEGMENTS; i++)
        for (struct ep_block *block = first_of(&arena->segment[i]); block; block = block->next)
            if (!block->used && (!best || block->bytes > best->bytes))
                best = block;
    return best;
}

struct ep_block *ep_arena_reserve_largest(struct ep_arena *arena)
{
    struct ep_block *block = largest(arena);
    if (block)
        take(arena, block);
    return block;
}

static struct ep_block *first_fit(const struct ep_arena *arena, uint64_t bytes)
{
    for (uint32_t i = 0; i < EP_MAX_SEGMENTS; i++)
        for (struct ep_block *block = first_of(&arena->segment[i]); block; block = block->next)
            if (!block->used && block->bytes >= bytes)
                return block;
    return NULL;
}

int ep_arena_reserve(struct ep_arena *arena, uint64_t bytes, struct ep_block **out)
{
    *out = NULL;
    if (bytes > arena->total)    /* it might not be aligned without passing the end of numbers  */
        return EP_OK;
    bytes = ep_align_slot(bytes);
    struct ep_block *block = first_fit(arena, bytes);
    if (!block)
        return EP_OK;
    if (block->bytes > bytes && split(block, bytes) != EP_OK)
        return EP_ERR_MEMORY;
    take(arena, block);
    *out = block;
    return EP_OK;
}

void ep_arena_trim(struct ep_arena *arena, struct ep_block *block, uint64_t bytes)
{
    uint64_t before = block->bytes;
    bytes = ep_align_slot(bytes);
    if (before > bytes && split(block, bytes) == EP_OK)
        merge_next(block->next);
    arena->in_use -= before - block->bytes;
}

void ep_arena_release(struct ep_arena *arena, struct ep_block *block)
{
    if (--block->used)
        return;
    arena->segment[block->segment].num_used--;
    arena->in_use -= block->bytes;
    merge_next(block);
    if (block->prev)
        merge_next(block->prev);
}

uint64_t ep_arena_largest_free(const struct ep_arena *arena)
{
    const struct ep_block *block = largest(arena);
    return block ? block->bytes : 0;
}

int ep_arena_find(const struct ep_arena *arena, uint64_t view, uint64_t bytes,
                  uint32_t *segment, uint64_t *offset)
{
    for (uint32_t i = 0; i < EP_MAX_SEGMENTS; i++) {
        const struct ep_segment *s = &arena->segment[i];
        if (!s->first || view < s->view || view - s->view > s->bytes
            || bytes > s->bytes - (view - s->view))
            continue;
        *segment = i;
        *offset = view - s->view;
        return 1;
    }
    return 0;
}

void ep_arena_clear(struct ep_arena *arena)
{
    for (uint32_t i = 0; i < EP_MAX_SEGMENTS; i++)
        free_blocks(&arena->segment[i]);
    *arena = (struct ep_arena){0};
}
