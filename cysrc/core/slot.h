/* SPDX-License-Identifier: MIT
 *
 * How the arrays of one result lie in its slot.  Kernel notify computes the same for every
 * destination; params.h has the alignment. */
#ifndef DEEPEP_PTX_SLOT_H
#define DEEPEP_PTX_SLOT_H

#include <stdint.h>
#include "core/arena.h"

/* Byte offsets in the slot; x is at 0.  Without top-k its two arrays take no bytes. */
struct ep_slot {
    uint64_t topk_idx;
    uint64_t topk_weights;
    uint64_t src_idx;
    uint64_t bytes;          /* of the whole slot                                              */
};

static inline struct ep_slot ep_slot_of(uint64_t rows, uint32_t hidden_bytes, uint32_t num_topk,
                                        uint32_t topk_idx_bytes)
{
    struct ep_slot slot;
    slot.topk_idx = ep_align_slot(rows * hidden_bytes);
    slot.topk_weights = slot.topk_idx + ep_align_slot(rows * num_topk * topk_idx_bytes);
    slot.src_idx = slot.topk_weights + ep_align_slot(rows * num_topk * sizeof(float));
    slot.bytes = slot.src_idx + ep_align_slot(rows * sizeof(int32_t));
    return slot;
}

#endif
