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

/* A NaN becomes the canonical one. */
EMU_INLINE uint32_t emu_whole_f32(uint32_t bits)
{
    return emu_is_nan(bits) ? EMU_F32_NAN : bits;
}

/* Of a number and a NaN, the number; -0 is below +0. */
EMU_INLINE uint32_t emu_min_f32(uint32_t a, uint32_t b)
{
    if (emu_is_nan(a) || emu_is_nan(b))
        return emu_whole_f32(emu_is_nan(a) ? b : a);
    return emu_f32(a) < emu_f32(b) || (emu_f32(a) == emu_f32(b) && a >> 31) ? a : b;
}

EMU_INLINE uint32_t emu_max_f32(uint32_t a, uint32_t b)
{
    if (emu_is_nan(a) || emu_is_nan(b))
        return emu_whole_f32(emu_is_nan(a) ? b : a);
    return emu_f32(a) > emu_f32(b) || (emu_f32(a) == emu_f32(b) && b >> 31) ? a : b;
}

/* ex2.approx and lg2.approx: series in double precision, whose error is far below a float's last
 * bit.  The same on all hosts, which those of libm are not, and other last bits than a GPU's. */
EMU_INLINE float emu_ex2(float x)
{
    double t, sum = 1, scale;
    int64_t whole;
    uint64_t bits;

    if (!(x > -151.0f && x < 129.0f))
        return x < 0 ? 0 : x * __builtin_inff();
    whole = (int64_t)((double)x + 1024.5) - 1024;
    t = ((double)x - (double)whole) * 0.693147180559945309417;
    for (unsigned k = 14; k > 0; k--)
        sum = 1 + sum * t / k;
    bits = (uint64_t)(whole + 1023) << 52;
    memcpy(&scale, &bits, sizeof scale);
    return (float)(sum * scale);
}

EMU_INLINE float emu_lg2(float x)
{
    double m = x, s, sum = 0;
    uint64_t bits;
    int64_t whole;

    if (!(x > 0 && x < __builtin_inff()))
        return x == 0 ? -__builtin_inff() : x > 0 ? x : __builtin_nanf("");
    memcpy(&bits, &m, sizeof bits);
    whole = (int64_t)(bits >> 52) - 1023;
    bits = (bits & (UINT64_MAX >> 12)) | UINT64_C(1023) << 52;
    memcpy(&m, &bits, sizeof m);         /* x = m * 2^whole, m from 1 to 2, then around 1 */
    if (m > 1.41421356) {
        m /= 2;
        whole++;
    }
    s = (m - 1) / (m + 1);
    for (int k = 25; k > 0; k -= 2)
        sum = sum * s * s + 1.0 / k;
    return (float)((double)whole + sum * s * 2.88539008177792681472);   /* 2 / ln 2 */
}

/* Rounded down; the nearest there is where it does not fit, and 0 of a NaN. */
EMU_INLINE int32_t emu_floor_s32(float x)
{
    int32_t whole;

    if (!(x >= -2147483648.0f))
        return x != x ? 0 : INT32_MIN;
    if (x >= 2147483648.0f)
        return INT32_MAX;
    whole = (int32_t)x;
    return whole - ((float)whole > x);
}

/* The byte of an E4M3 (4 bits of exponent with bias 7, 3 of mantissa, no infinity): to nearest, ties
 * to even, and 448 for whatever is above. */
EMU_INLINE uint32_t emu_e4m3_bits(uint32_t f32)
{
    uint32_t sign = f32 >> 24 & 0x80, x = f32 & 0x7fffffff, rounded;

    if (x > 0x7f800000)
        return 0x7f;
    if (x >= 0x43e00000)                 /* 448 */
        return sign | 0x7e;
    if (x < 0x3c800000) {                /* 2^-6: in steps of 2^-9, where 2^14 has its last bit */
        float steps = emu_f32(x) + 16384.0f;

        memcpy(&rounded, &steps, sizeof rounded);
        return sign | (rounded - 0x46800000);
    }
    rounded = x + 0x7ffff + (x >> 20 & 1);
    return sign | (rounded - (120u << 23)) >> 20;
}

/* prmt: each nibble of `selector` chooses a byte of b:a, or that byte's sign eight times. */
EMU_INLINE uint32_t emu_permute(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t result = 0;

    for (unsigned i = 0; i < 4; i++) {
        uint32_t nibble = selector >> 4 * i & 15;
        uint32_t byte = (uint32_t)(bytes >> 8 * (nibble & 7)) & 0xff;

        if (nibble & 8)
            byte = byte & 0x80 ? 0xff : 0;
        result |= byte << 8 * i;
    }
    return result;
}

/* `count` bits of x from `first` on, both at most 255; there are zeros above x. */
EMU_INLINE uint32_t emu_bit_field(uint32_t x, uint32_t first, uint32_t count)
{
    uint32_t above = first < 32 ? x >> first : 0;

    return count < 32 ? above & ((1u << count) - 1) : above;
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
