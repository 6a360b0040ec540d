/* SPDX-License-Identifier: MIT
 *
 * Bookkeeping of one rank's arena: which extents of which segment are in use.  Touches no memory
 * but its own, knows no executor, takes no lock. */
#ifndef DEEPEP_PTX_ARENA_H
#define DEEPEP_PTX_ARENA_H

#include <stdint.h>
#include "deepep_ptx/params.h"

/* An extent.  The blocks of a segment form a list by offset, without gaps; no two free blocks
 * are neighbours. */
struct ep_block {
    struct ep_block *prev, *next;
    struct ep_block *link;   /* owner's: retired and quarantined blocks form lists             */
    void *streams[2];        /* owner's: of a retired block                                    */
    uint64_t offset, bytes;  /* multiples of EP_SLOT_ALIGN                                     */
    uint32_t segment;
    uint32_t used;           /* references; 0: free                                            */
};

struct ep_segment {
    ep_dptr_t base;          /* as kernels see it                                              */
    uint64_t  view;          /* as the caller's arrays see it                                  */
    uint64_t  bytes;
    struct ep_block *first;
    uint32_t  num_used;      /* blocks in use                                                  */
    uint32_t  withdrawn;     /* nothing is to be reserved there any more                       */
};

struct ep_arena {
    struct ep_segment segment[EP_MAX_SEGMENTS];
    uint32_t num_segments;
    uint64_t total;          /* bytes of all segments                                          */
    uint64_t in_use;         /* bytes of blocks in use                                         */
};

static inline uint64_t ep_align_slot(uint64_t bytes)
{
    return (bytes + EP_SLOT_ALIGN - 1) / EP_SLOT_ALIGN * EP_SLOT_ALIGN;
}

/* The number that the next segment gets: the lowest without one; EP_MAX_SEGMENTS when all are
 * there. */
uint32_t ep_arena_next(const struct ep_arena *arena);

/* Adds a free segment; bytes is a multiple of EP_SLOT_ALIGN above 0.  EP_ERR_CAPACITY when all
 * EP_MAX_SEGMENTS are there. */
int ep_arena_add(struct ep_arena *arena, ep_dptr_t base, uint64_t view, uint64_t bytes);

/* Takes a segment away of which nothing is in use; returns its base.  Its number is the next that
 * ep_arena_add uses. */
ep_dptr_t ep_arena_drop(struct ep_arena *arena, uint32_t index);

/* The largest free extent, whole; NULL when nothing is free. */
struct ep_block *ep_arena_reserve_largest(struct ep_arena *arena);

/* First fit.  *out is NULL when no free extent has that many bytes. */
int ep_arena_reserve(struct ep_arena *arena, uint64_t bytes, struct ep_block **out);

/* Give back what `block` has past `bytes` > 0.  Without memory for the bookkeeping the block stays
 * as large as it is. */
void ep_arena_trim(struct ep_arena *arena, struct ep_block *block, uint64_t bytes);

/* Drops one reference; the last one frees the block. */
void ep_arena_release(struct ep_arena *arena, struct ep_block *block);

uint64_t ep_arena_largest_free(const struct ep_arena *arena);

/* Whether [view, view + bytes) lies in one segment; which, and where. */
int ep_arena_find(const struct ep_arena *arena, uint64_t view, uint64_t bytes,
                  uint32_t *segment, uint64_t *offset);

/* Frees the bookkeeping; no block may be in use. */
void ep_arena_clear(struct ep_arena *arena);

#endif
