/* SPDX-License-Identifier: MIT */
#ifndef DEEPEP_PTX_LL_MEMORY_H
#define DEEPEP_PTX_LL_MEMORY_H

#include "core/buffer.h"

/* Memory that is to take the place of what there is; zeroed before any rank maps it. */
int  ep_ll_memory_make(struct ep_buffer *b, uint64_t bytes, const struct ep_ll_areas *areas,
                       void *handle);
int  ep_ll_memory_open(struct ep_buffer *b, uint32_t rank, const void *handle);
/* It takes that place; what was there is next_ll then.  ep_buffer_publish follows. */
void ep_ll_memory_swap(struct ep_buffer *b);
/* What there is, undivided so far, has these areas from now on.  ep_buffer_publish follows. */
void ep_ll_memory_divide(struct ep_buffer *b, const struct ep_ll_areas *areas);
/* In two steps with a barrier between them: no rank maps memory any more when its owner frees it. */
void ep_ll_memory_unmap(struct ep_buffer *b, struct ep_ll_memory *memory);
void ep_ll_memory_free(struct ep_buffer *b, struct ep_ll_memory *memory);

#endif
