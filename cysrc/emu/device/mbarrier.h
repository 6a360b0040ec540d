/* SPDX-License-Identifier: MIT
 *
 * mbarrier objects: what lies in their 8 bytes of shared memory, and the instructions on them.
 * A CTA's bitmap `mbarriers` (world.h) says which 8-byte words hold one. */
#ifndef DEEPEP_PTX_EMU_MBARRIER_H
#define DEEPEP_PTX_EMU_MBARRIER_H

#include "exec.h"

#define EMU_MBARRIER_BYTES 8

/* Everything that the object knows.  A phase ends when nothing is pending and tx is 0. */
struct emu_mbarrier {
    uint32_t expected;       /* arrivals of each phase                                        */
    uint32_t pending;        /* arrivals that this phase still waits for                      */
    int32_t  tx;             /* bytes that were announced and have not come; below 0: the     */
                             /* other way around                                              */
    uint32_t parity;         /* of the phase that is under way                                */
};

/* The object at `va`.  False: there is none. */
bool emu_mbarrier_read(const struct emu_cta *cta, uint64_t va, struct emu_mbarrier *out);
void emu_mbarrier_write(struct emu_cta *cta, uint64_t va, const struct emu_mbarrier *object);

/* Announces (tx > 0) or delivers (tx < 0) bytes and counts arrivals; a phase that is complete ends.
 * Returns what is wrong, else NULL. */
const char *emu_mbarrier_count(struct emu_mbarrier *object, int64_t tx, uint32_t arrivals);

/* mbarrier.*: EMU_RUN_ON or EMU_RUN_FAULT. */
int emu_mbarrier_run(struct emu_exec *x, const struct emu_instr *op, uint32_t m);

#endif
