/* SPDX-License-Identifier: MIT */
#ifndef DEEPEP_PTX_EMU_RACE_ARRAY_H
#define DEEPEP_PTX_EMU_RACE_ARRAY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

/* Room for element `num` of an array that has room for *max of `size` bytes.  False: no memory. */
static inline bool race_room(void *array, uint32_t num, uint32_t *max, size_t size)
{
    void **place = array, *grown;
    uint32_t more = *max ? 2 * *max : 4;

    if (num < *max)
        return true;
    grown = realloc(*place, more * size);
    if (!grown)
        return false;
    *place = grown;
    *max = more;
    return true;
}

#endif
