/* SPDX-License-Identifier: MIT
 *
 * Extents of the arena for a call's rows, and what its record says of them. */
#ifndef DEEPEP_PTX_ROOM_H
#define DEEPEP_PTX_ROOM_H

#include "core/buffer.h"

/* Where an extent begins, as the caller sees memory. */
uint64_t ep_room_view(const struct ep_buffer *b, const struct ep_block *block);
/* `block`: of this call; landing: likewise where the call counts on it. */
struct ep_call_record ep_room_record(const struct ep_buffer *b, const struct ep_block *block,
                                     const struct ep_block *landing);
/* Room of `bytes` under a capture, which no verdict can refuse later. */
int ep_room_require(struct ep_buffer *b, const struct ep_block *block, uint64_t bytes);
/* What a combine of at most num_tokens rows to max_ranks ranks needs whatever its routing is. */
uint64_t ep_room_most_landing(uint32_t num_tokens, uint32_t max_ranks, uint32_t row_bytes);
/* An extent for a result of `bytes`, UINT64_MAX = as many as can be.  What is free, else landing,
 * else whatever there is: with it this rank still takes part in the exchange, and the device gives
 * all ranks the same capacity error.  lands: landing may be taken. */
int ep_room_reserve(struct ep_buffer *b, uint64_t bytes, int lands, struct ep_block **out);

#endif
