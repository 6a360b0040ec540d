/* SPDX-License-Identifier: MIT */
#include "old.h"

#include <stdlib.h>

bool race_old_init(struct race_checker *c)
{
    (void)c;
    return true;
}

void race_old_destroy(struct race_checker *c)
{
    (void)c;
}

void race_old_access(struct race_checker *c, const struct emu_access *a, struct race_block *block,
                     uint64_t start, uint64_t from, uint64_t to)
{
    (void)c, (void)a, (void)block, (void)start, (void)from, (void)to;
}

void race_old_load(struct race_checker *c, struct emu_exec *x, const struct emu_instr *op,
                   uint32_t lanes)
{
    (void)c, (void)x, (void)op, (void)lanes;
}

void race_old_copy(struct race_checker *c, struct emu_copy *copy, uint8_t *bytes)
{
    (void)c, (void)copy, (void)bytes;
}
