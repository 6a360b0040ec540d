/* SPDX-License-Identifier: MIT
 *
 * Addresses in the symmetric heap, whose regions are those of struct ep_heap. */
#ifndef DEEPEP_PTX_HEAP_H
#define DEEPEP_PTX_HEAP_H

#include "core/buffer.h"

/* Where that rank's flags are in any heap. */
static inline uint64_t flags_at(const struct ep_buffer *b, uint32_t rank)
{
    return b->comm.regions.flags + rank * sizeof(struct ep_flags);
}

#endif
