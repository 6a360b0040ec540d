/* SPDX-License-Identifier: MIT
 *
 * What one lane computes: the functions behind the interpreter's forms.  32-bit floats travel as
 * their bits; a NaN result is the canonical one, as the GPU's. */
#ifndef DEEPEP_PTX_EMU_LANES_H
#define DEEPEP_PTX_EMU_LANES_H

#include <stdint.h>
#include <string.h>

/* Registers are raw bytes that instructions of several types read. */
typedef uint32_t emu_u32 __attribute__((may_alias));
typedef int32_t  emu_s32 __attribute__((may_alias));
typedef uint64_t emu_u64 __attribute__((may_alias));
typedef int64_t  emu_s64 __attribute__((may_alias));

#define EMU_INLINE static inline __attribute__((always_inline))

#define EMU_F32_NAN 0x7fffffffu
#define EMU_BF16_NAN 0x7fffu

EMU_INLINE float emu_f32(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

EMU_INLINE uint32_t emu_f32_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7fffffff) > 0x7f800000 ? EMU_F32_NAN : bits;
}

EMU_INLINE uint32_t emu_is_nan(uint32_t bits)
{
    return (bits & 0x7fffffff) > 0x7f800000;
}

/* Round to nearest, ties to even. */
EMU_INLINE uint32_t emu_bf16_bits(uint32_t f32)
{
    uint32_t rounded = (f32 + 0x7fff + (f32 >> 16 & 1)) >> 16;

    return emu_is_nan(f32) ? EMU_BF16_NAN : rounded;
}

EMU_INLINE uint32_t emu_clz32(uint32_t x)
{
    return x ? (uint32_t)__builtin_clz(x) : 32;
}

EMU_INLINE uint32_t emu_clz64(uint64_t x)
{
    return x ? (uint32_t)__builtin_clzll(x) : 64;
}

EMU_INLINE uint32_t emu_brev32(uint32_t x)
{
    x = (x >> 1 & 0x55555555) | (x & 0x55555555) << 1;
    x = (x >> 2 & 0x33333333) | (x & 0x33333333) << 2;
    x = (x >> 4 & 0x0f0f0f0f) | (x & 0x0f0f0f0f) << 4;
    return __builtin_bswap32(x);
}

EMU_INLINE uint64_t emu_brev64(uint64_t x)
{
    return (uint64_t)emu_brev32((uint32_t)x) << 32 | emu_brev32((uint32_t)(x >> 32));
}

/* The quotient of the most negative number by -1 wraps around to itself. */
EMU_INLINE int32_t emu_div_s32(int32_t a, int32_t b)
{
    return b == -1 ? (int32_t)(0u - (uint32_t)a) : b ? a / b : 0;
}

EMU_INLINE int32_t emu_rem_s32(int32_t a, int32_t b)
{
    return b == -1 || b == 0 ? 0 : a % b;
}

EMU_INLINE int64_t emu_div_s64(int64_t a, int64_t b)
{
    return b == -1 ? (int64_t)(0u - (uint64_t)a) : b ? a / b : 0;
}

EMU_INLINE int64_t emu_rem_s64(int64_t a, int64_t b)
{
    return b == -1 || b == 0 ? 0 : a % b;
}

/* What createpolicy gives: a value of its own for each policy.  Nothing else is modelled. */
EMU_INLINE uint64_t emu_cache_policy(unsigned sub)
{
    return (uint64_t)(sub + 1) << 56;
}

/* Brings a register to the range of a narrow type: see struct emu_instr. */
EMU_INLINE uint32_t emu_narrow(uint32_t x, uint32_t mask, uint32_t sign)
{
    return ((x & mask) ^ sign) - sign;
}

#endif
