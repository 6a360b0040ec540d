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
