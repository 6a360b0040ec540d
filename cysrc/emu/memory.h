/* SPDX-License-Identifier: MIT
 *
 * Segments of memory and where each rank sees them. */
#ifndef DEEPEP_PTX_EMU_MEMORY_H
#define DEEPEP_PTX_EMU_MEMORY_H

#include "world.h"

#define EMU_PAGE_BITS 21                 /* 2 MiB                                             */

/* Bytes of one allocation or of mapped host memory.  Never freed before the world: a stale
 * address is reported with the name of what was there. */
struct emu_segment {
    struct emu_segment *next;
    uint8_t  *host;                      /* NULL once freed                                   */
    uint64_t *valid;                     /* NULL: every byte counts as written                */
    uint64_t *stored;                    /* host memory: bytes that kernels stored to         */
    uint64_t bytes;
    uint32_t owner;
    bool     owned;                      /* `host` is ours to free                            */
    char     *name;
    struct emu_mapping *mappings;
};

/* A segment at an address of one rank. */
struct emu_mapping {
    uint64_t va;                         /* `skew` bytes behind the start of a page           */
    uint64_t skew;                       /* so that it is aligned as the host address is      */
    uint64_t bytes;                      /* 0 once unmapped or freed: no access passes        */
    uint8_t  *host;
    uint64_t *valid;
    struct emu_segment *segment;
    struct emu_mapping *sibling;         /* next mapping of the segment                       */
    bool     writable, peer;
    bool     unmapped;
};

/* The mapping whose pages hold `va`, also a dead one; NULL when there never was one. */
static inline struct emu_mapping *emu_mapping_at(const struct emu_rank *rank, uint64_t va)
{
    uint64_t page = (va - rank->va_base) >> EMU_PAGE_BITS;
    uint32_t number = page < rank->num_pages ? rank->pages[page] : 0;

    return number ? rank->mappings[number - 1] : NULL;
}

static inline bool emu_mapping_holds(const struct emu_mapping *m, uint64_t va, uint64_t bytes)
{
    uint64_t offset = va - m->va;

    return offset < m->bytes && bytes <= m->bytes - offset;
}

/* The closest mapping whose pages end at or below `va`: what an access past the end missed. */
struct emu_mapping *emu_mapping_below(const struct emu_rank *rank, uint64_t va);

int emu_memory_init(struct emu_world *world);
void emu_memory_free(struct emu_world *world);
void emu_fill_pattern(const struct emu_world *world, void *dst, uint64_t bytes);

#endif
