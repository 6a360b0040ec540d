/* SPDX-License-Identifier: MIT
 *
 * Segments of memory and where each rank sees them. */
#ifndef DEEPEP_PTX_EMU_MEMORY_H
#define DEEPEP_PTX_EMU_MEMORY_H

#include "world.h"

#define EMU_PAGE_BITS 21                 /* 2 MiB                                             */

/* What a page of an address space holds, where it is not the number of a mapping + 1.  0: nothing,
 * ever. */
#define EMU_PAGE_TAKEN UINT32_MAX        /* it stays unmapped, behind a mapping               */
#define EMU_PAGE_FREED (UINT32_MAX - 1)  /* what was there is forgotten; it may be used again */

/* Bytes of one allocation or of mapped host memory.  It stays, without the bytes, while a mapping
 * of it does: a stale address is reported with the name of what was there. */
struct emu_segment {
    uint8_t  *host;                      /* NULL once freed                                   */
    uint64_t *valid;                     /* NULL: every byte counts as written                */
    uint64_t *stored;                    /* host memory: bytes that kernels stored to         */
    uint64_t bytes;
    uint32_t owner;
    bool     owned;                      /* `host` is ours to free                            */
    struct emu_mmio mmio;                /* of registers, which have no host memory           */
    char     *name;
    struct emu_mapping *mappings;
    void     *watched;                   /* the observer's own                                */
};

/* A segment at an address of one rank.  The last ones that the rank unmapped are kept for reports;
 * then number and addresses are used again, the addresses as late as they can be. */
struct emu_mapping {
    struct emu_mapping *next;            /* of those the rank has unmapped, or may use again  */
    uint32_t number;                     /* place in the rank's `mappings`                    */
    uint64_t va;                         /* `skew` bytes behind the start of a page           */
    uint64_t skew;                       /* so that it is aligned as the host address is      */
    uint64_t bytes;                      /* no access passes where it is 0: once unmapped or
                                            freed, and where registers are                    */
    uint8_t  *host;
    uint64_t *valid;
    struct emu_segment *segment;
    struct emu_mapping *sibling;         /* next mapping of the segment                       */
    const struct emu_mmio *mmio;         /* NULL: no registers are here                       */
    bool     writable, peer;
    bool     unmapped;                   /* by its rank, and not only freed by the owner      */
};

static inline uint32_t emu_page_at(const struct emu_rank *rank, uint64_t va)
{
    uint64_t page = (va - rank->va_base) >> EMU_PAGE_BITS;

    return page < rank->num_pages ? rank->pages[page] : 0;
}

/* The mapping whose pages hold `va`, also a dead one; NULL when there is none to be known. */
static inline struct emu_mapping *emu_mapping_at(const struct emu_rank *rank, uint64_t va)
{
    uint32_t index = emu_page_at(rank, va) - 1;

    return index < rank->num_mappings ? rank->mappings[index] : NULL;
}

static inline bool emu_mapping_holds(const struct emu_mapping *m, uint64_t va, uint64_t bytes)
{
    uint64_t offset = va - m->va;

    return offset < m->bytes && bytes <= m->bytes - offset;
}

/* Whether all these bytes are registers. */
static inline bool emu_mapping_has_registers(const struct emu_mapping *m, uint64_t va,
                                             uint64_t bytes)
{
    uint64_t offset = va - m->va;

    return m->mmio && offset < m->segment->bytes && bytes <= m->segment->bytes - offset;
}

/* The closest mapping whose pages end at or below `va`: what an access past the end missed. */
struct emu_mapping *emu_mapping_below(const struct emu_rank *rank, uint64_t va);

int emu_memory_init(struct emu_world *world);
void emu_memory_free(struct emu_world *world);
void emu_fill_pattern(const struct emu_world *world, void *dst, uint64_t bytes);

#endif
