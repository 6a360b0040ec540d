/* SPDX-License-Identifier: MIT
 *
 * Validity bitmaps: one bit per byte of memory, set once somebody wrote the byte. */
#ifndef DEEPEP_PTX_EMU_BITS_H
#define DEEPEP_PTX_EMU_BITS_H

#include <stdbool.h>
#include <stdint.h>

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

static inline bool emu_bits_any(const uint64_t *map, uint64_t first, uint64_t count)
{
    const uint64_t *word = map + first / 64;
    unsigned bit = first % 64;
    uint64_t found = 0;

    if (bit + count <= 64)
        return (*word & emu_bits_mask(bit, count)) != 0;
    found |= *word++ & (UINT64_MAX << bit);
    for (count -= 64 - bit; count >= 64; count -= 64)
        found |= *word++;
    if (count)
        found |= *word & emu_bits_mask(0, count);
    return found != 0;
}

/* `count` bits that lie in one word. */
static inline void emu_bits_clear(uint64_t *map, uint64_t first, uint64_t count)
{
    map[first / 64] &= ~emu_bits_mask(first % 64, count);
}

/* Copies bits in groups of 16, of which all three numbers are multiples; no source: ones. */
static inline void emu_bits_copy(uint64_t *dst, uint64_t to, const uint64_t *src, uint64_t from,
                                 uint64_t count)
{
    if (!src || emu_bits_all(src, from, count)) {
        emu_bits_set(dst, to, count);
        return;
    }
    for (uint64_t i = 0; i < count; i += 16) {
        uint64_t bits = src[(from + i) / 64] >> ((from + i) % 64) & 0xffff;

        emu_bits_clear(dst, to + i, 16);
        dst[(to + i) / 64] |= bits << ((to + i) % 64);
    }
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
