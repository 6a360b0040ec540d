/* SPDX-License-Identifier: MIT
 *
 * core/arena.c for tests/test_arena.py, which loads both as one library: what ctypes would have to
 * know of the structures is asked here. */
#include <stdlib.h>

#include "core/arena.h"
#include "deepep_ptx/executor.h"

/* An extent, as the test names it. */
struct place { uint64_t segment, offset, bytes; };

static int tell(const struct ep_block *block, struct place *out)
{
    if (block)
        *out = (struct place){block->segment, block->offset, block->bytes};
    return block != NULL;
}

struct ep_arena *arena_create(void) { return calloc(1, sizeof(struct ep_arena)); }

void arena_destroy(struct ep_arena *arena)
{
    ep_arena_clear(arena);
    free(arena);
}

/* Whether there was a place for it. */
int arena_add(struct ep_arena *arena, uint64_t view, uint64_t bytes)
{
    int rc = ep_arena_add(arena, view, view, bytes);
    if (rc != EP_OK && rc != EP_ERR_CAPACITY)
        abort();
    return rc == EP_OK;
}

struct ep_block *arena_reserve(struct ep_arena *arena, uint64_t bytes, struct place *out)
{
    struct ep_block *block = NULL;
    if (ep_arena_reserve(arena, bytes, &block) != EP_OK)
        abort();
    tell(block, out);
    return block;
}

struct ep_block *arena_reserve_largest(struct ep_arena *arena, struct place *out)
{
    struct ep_block *block = ep_arena_reserve_largest(arena);
    tell(block, out);
    return block;
}

uint64_t arena_trim(struct ep_arena *arena, struct ep_block *block, uint64_t bytes)
{
    ep_arena_trim(arena, block, bytes);
    return block->bytes;
}

void arena_withdraw(struct ep_arena *arena, uint32_t segment)
{
    arena->segment[segment].withdrawn = 1;
}

/* Totals: of all segments, in use, the largest free extent. */
void arena_totals(const struct ep_arena *arena, uint64_t out[3])
{
    out[0] = arena->total;
    out[1] = arena->in_use;
    out[2] = ep_arena_largest_free(arena);
}

/* The free extent number `index`, by address; whether there is one. */
int arena_free_extent(const struct ep_arena *arena, uint32_t index, struct place *out)
{
    for (uint32_t i = 0; i < EP_MAX_SEGMENTS; i++)
        for (const struct ep_block *block = arena->segment[i].first; block; block = block->next)
            if (!block->used && index-- == 0)
                return tell(block, out);
    return 0;
}
