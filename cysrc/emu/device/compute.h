/* SPDX-License-Identifier: MIT
 *
 * A form's expression over the 32 lanes of a warp: the loop of the interpreter's own forms, and a
 * call for those that it does not inline. */
#ifndef DEEPEP_PTX_EMU_COMPUTE_H
#define DEEPEP_PTX_EMU_COMPUTE_H

#include "exec.h"
#include "lanes.h"

/* An operand is the result's register or none of it. */
#define EMU_IVDEP _Pragma("GCC ivdep")

#define EMU_BIT(l) (1u << (l))
#define EMU_4_BITS(l) EMU_BIT(l), EMU_BIT(l + 1), EMU_BIT(l + 2), EMU_BIT(l + 3)

static const uint32_t emu_lane_bit[EMU_LANES] = {
    EMU_4_BITS(0),  EMU_4_BITS(4),  EMU_4_BITS(8),  EMU_4_BITS(12),
    EMU_4_BITS(16), EMU_4_BITS(20), EMU_4_BITS(24), EMU_4_BITS(28),
};

EMU_INLINE const void *emu_pick(const uint8_t *regs, const uint8_t *consts, int32_t at)
{
    return at < 0 ? consts + ~at : regs + at;
}

/* Takes `op`, the lanes `m`, `regs` and `consts`; see forms.h for the others. */
#define EMU_COMPUTE_LANES(TD, TA, TB, TC, expr) \
        TD *to = (TD *)(regs + op->dst[0]); \
        const TA *at_a = emu_pick(regs, consts, op->src[0]); \
        const TB *at_b = emu_pick(regs, consts, op->src[1]); \
        const TC *at_c = emu_pick(regs, consts, op->src[2]); \
        const uint32_t src_mask = op->src_mask, src_sign = op->src_sign; \
        const uint32_t dst_mask = op->dst_mask, dst_sign = op->dst_sign; \
        (void)src_mask, (void)src_sign, (void)dst_mask, (void)dst_sign; \
        if (m == EMU_ALL_LANES) { \
            EMU_IVDEP for (unsigned l = 0; l < EMU_LANES; l++) { \
                const TA a = at_a[l]; const TB b = at_b[l]; const TC c = at_c[l]; \
                (void)a, (void)b, (void)c; \
                to[l] = (TD)(expr); \
            } \
        } else { \
            EMU_IVDEP for (unsigned l = 0; l < EMU_LANES; l++) { \
                const TA a = at_a[l]; const TB b = at_b[l]; const TC c = at_c[l]; \
                (void)a, (void)b, (void)c; \
                TD r = (TD)(expr); \
                to[l] = m & emu_lane_bit[l] ? r : to[l]; \
            } \
        }

/* One of EMU_CALLED_FORMS, by lanes m. */
void emu_compute(const struct emu_exec *x, const struct emu_instr *op, uint32_t m);
/* match.any: for each lane of m, those whose value is its own. */
void emu_match(const struct emu_exec *x, const struct emu_instr *op, uint32_t m);

#endif
