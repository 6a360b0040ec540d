/* SPDX-License-Identifier: MIT
 *
 * What calls of a shape take of low-latency memory. */
#ifndef DEEPEP_PTX_LOW_LATENCY_H
#define DEEPEP_PTX_LOW_LATENCY_H

#include "core/buffer.h"

/* Of a half, for all calls of that shape. */
struct ep_ll_areas ep_ll_areas_of(const struct ep_ll_shape *shape, uint32_t num_ranks);
/* Each area as large as in either. */
struct ep_ll_areas ep_ll_areas_both(const struct ep_ll_areas *a, const struct ep_ll_areas *b);
/* Of both halves. */
uint64_t ep_ll_areas_bytes(const struct ep_ll_areas *areas);

#endif
