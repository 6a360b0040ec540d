/* SPDX-License-Identifier: MIT
 *
 * How the arrays of one result lie in its slot.  The dispatch kernel computes the same for every
 * destination; params.h has the alignment. */
#ifndef DEEPEP_PTX_SLOT_H
#define DEEPEP_PTX_SLOT_H

#include <stdint.h>

#include "core/arena.h"
#include "deepep_ptx/deepep_ptx.h"

static inline struct ep_slot ep_slot_of(uint64_t rows, uint32_t hidden_bytes, uint32_t scale_bytes,
                                        uint32_t num_topk, uint32_t topk_idx_bytes)
{
    struct ep_slot slot;
    slot.scales = ep_align_slot(rows * hidden_bytes);
    slot.topk_idx = slot.scales + ep_align_slot(rows * scale_bytes);
    slot.topk_weights = slot.topk_idx + ep_align_slot(rows * num_topk * topk_idx_bytes);
    slot.src_idx = slot.topk_weights + ep_align_slot(rows * num_topk * sizeof(float));
    slot.bytes = slot.src_idx + ep_align_slot(rows * sizeof(int32_t));
    return slot;
}

/* Landing for `rows` rows of row_bytes with EP_MAX_TOPK weights each: lib/exchange.inc. */
static inline uint64_t ep_landing_bytes(uint64_t rows, uint32_t row_bytes)
{
    return ep_align_slot(rows * row_bytes) + ep_align_slot(rows * EP_MAX_TOPK * sizeof(float));
}

#endif
