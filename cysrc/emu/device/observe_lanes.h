/* SPDX-License-Identifier: MIT */
#ifndef DEEPEP_PTX_EMU_OBSERVE_LANES_H
#define DEEPEP_PTX_EMU_OBSERVE_LANES_H

#include "exec.h"

/* Tells the observer that the exec's lanes m are about to execute a load, a store, an atomic or an
 * mbarrier operation. */
void emu_observe_lanes(const struct emu_exec *x, const struct emu_instr *op, uint32_t m);

#endif
