/* SPDX-License-Identifier: MIT */
#ifndef DEEPEP_PTX_COPY_OUT_H
#define DEEPEP_PTX_COPY_OUT_H

#include "core/buffer.h"

/* The copies of a slot for slot_rows rows, 0: as many as were received; none where `block` is NULL. */
int ep_launch_copies(struct ep_buffer *b, const struct ep_copies *copies,
                     const struct ep_block *block, uint32_t slot_rows);

#endif
