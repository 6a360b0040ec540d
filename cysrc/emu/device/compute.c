/* SPDX-License-Identifier: MIT */
#include "compute.h"
#include "forms.h"

#define CALLED_CASE(name, TD, TA, TB, TC, expr) \
    case EMU_FORM_##name: { \
        EMU_COMPUTE_LANES(TD, TA, TB, TC, expr) \
        break; \
    }

void emu_compute(const struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    uint8_t *regs = x->warp->registers;
    const uint8_t *consts = x->kernel->constants;

    switch (op->form) {
    EMU_CALLED_FORMS(CALLED_CASE)
    default:
        __builtin_unreachable();         /* the interpreter calls this for no other form */
    }
}

void emu_match(const struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    emu_u32 *d = (emu_u32 *)(x->warp->registers + op->dst[0]);
    uint32_t value[EMU_LANES];           /* d may be the same register */

    memcpy(value, emu_operand(x, op->src[0]), sizeof value);
    for (uint32_t left = m; left;) {
        unsigned first = __builtin_ctz(left);
        uint32_t same = 0;

        for (uint32_t others = left; others; others &= others - 1)
            if (value[__builtin_ctz(others)] == value[first])
                same |= others & -others;
        left &= ~same;
        for (uint32_t lanes = same; lanes; lanes &= lanes - 1)
            d[__builtin_ctz(lanes)] = same;
    }
}
