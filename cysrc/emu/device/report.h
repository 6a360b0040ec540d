/* SPDX-License-Identifier: MIT
 *
 * What went wrong, where, in the words of the person who wrote the kernel. */
#ifndef DEEPEP_PTX_EMU_REPORT_H
#define DEEPEP_PTX_EMU_REPORT_H

#include "interp.h"

enum emu_address_fault {
    EMU_FAULT_MISALIGNED,
    EMU_FAULT_UNREACHABLE,   /* out-of-bounds or use-after-free, as the address shows         */
    EMU_FAULT_READ_ONLY,
    EMU_FAULT_UNWRITTEN
};

/* All return EMU_RUN_FAULT.  The place is the exec's instruction. */
int emu_fault_address(struct emu_exec *x, enum emu_address_fault what, unsigned lane, uint64_t va);
int emu_fault_range(struct emu_exec *x, enum emu_address_fault what, unsigned lane, unsigned space,
                    uint64_t va, uint64_t bytes);
/* `lanes` read a register, or their guard, that they never wrote. */
int emu_fault_register(struct emu_exec *x, uint32_t lanes);
int emu_fault_guard(struct emu_exec *x, uint32_t lanes);
/* `other` is a second instruction to show, or -1. */
int emu_fault_lane(struct emu_exec *x, const char *kind, unsigned lane, int64_t other,
                   const char *format, ...) __attribute__((format(printf, 5, 6)));

/* A bulk copy under way; the place is where it was issued. */
void emu_fault_copy(const struct emu_copy *copy, const char *kind, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* No memory for a CTA, or what belongs to one. */
void emu_fault_memory(struct emu_world *world);

/* Faults of waiting: no group of `cta` can go on; nothing can; `warp`'s group goes on for ever; the
 * launch has executed too much. */
void emu_fault_deadlock(struct emu_cta *cta);
void emu_fault_livelock(struct emu_world *world);
void emu_fault_never_ending(struct emu_world *world, struct emu_warp *warp,
                            struct emu_group *group);
void emu_fault_instruction_limit(struct emu_exec *x);

#endif
