/* SPDX-License-Identifier: MIT
 *
 * Validity bitmaps: one bit per byte of memory, set once somebody wrote the byte. */
#ifndef DEEPEP_PTX_EMU_BITS_H
#define DEEPEP_PTX_EMU_BITS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

static inline uint64_t emu_bitmap_words(uint64_t bits)
{
    return (bits + 63) / 64;
}

/* `count` (1 to 64) ones from bit `first` (0 to 63) on; what passes bit 63 is cut off. */
static inline uint64_t emu_bits_mask(unsigned first, uint64_t count)
{
    return (count >= 64 ? UINT64_MAX : (1ull << count) - 1) << first;
}

static inline bool emu_bits_all(const uint64_t *map, uint64_t first, uint64_t count)
{
    const uint64_t *word = map + first / 64;
    unsigned bit = first % 64;
    uint64_t missing = 0;

    if (bit + count <= 64)
        return (~*word & emu_bits_mask(bit, count)) == 0;
    missing |= ~*word++ & (UINT64_MAX << bit);
    for (count -= 64 - bit; count >= 64; count -= 64)
        missing |= ~*word++;
    if (count)
        missing |= ~*word & emu_bits_mask(0, count);
    return missing == 0;
}

static inline void emu_bits_set(uint64_t *map, uint64_t first, uint64_t count)
{
    uint64_t *word = map + first / 64;
    unsigned bit = first % 64;

    if (count == 0)
        return;
    if (bit + count <= 64) {
        *word |= emu_bits_mask(bit, count);
        return;
    }
    *word++ |= UINT64_MAX << bit;
    for (count -= 64 - bit; count >= 64; count -= 64)
        *word++ = UINT64_MAX;
    if (count)
        *word |= emu_bits_mask(0, count);
}

/* Number of set bits from `first` on, at most `count`, before the first clear one. */
static inline uint64_t emu_bits_run(const uint64_t *map, uint64_t first, uint64_t count)
{
    uint64_t n = 0;

    while (n < count && map[(first + n) / 64] >> ((first + n) % 64) & 1)
        n++;
    return n;
}

#endif
