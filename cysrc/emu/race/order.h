/* SPDX-License-Identifier: MIT
 *
 * Host threads and streams, from the inside: see race.h. */
#ifndef DEEPEP_PTX_EMU_RACE_ORDER_H
#define DEEPEP_PTX_EMU_RACE_ORDER_H

#include "agents.h"

struct race_order {
    struct race_clock *clock;
    uint32_t slot;
};

/* It has read the word at byte `at` of the block, acquiring at system scope. */
void race_order_acquire(struct race_checker *c, struct race_order *order,
                        const struct race_block *block, unsigned at);

#endif
