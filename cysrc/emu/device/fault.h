/* SPDX-License-Identifier: MIT
 *
 * A fault as the part that finds it knows it.  It is handed up, to the observer that the world was
 * made with; emu_report() makes words of it. */
#ifndef DEEPEP_PTX_EMU_FAULT_H
#define DEEPEP_PTX_EMU_FAULT_H

#include "exec.h"

enum emu_address_fault {
    EMU_FAULT_MISALIGNED,
    EMU_FAULT_UNREACHABLE,   /* out-of-bounds or use-after-free, as the address shows         */
    EMU_FAULT_READ_ONLY,
    EMU_FAULT_UNWRITTEN
};

/* What a finding is about, and which of its members say more. */
enum emu_subject {
    EMU_ABOUT_LANE,          /* exec, lane, kind, text, other                                 */
    EMU_ABOUT_ADDRESS,       /* exec, lane, address, space, va, bytes                         */
    EMU_ABOUT_COPY,          /* copy, kind, text                                              */
    EMU_ABOUT_MEMORY,        /* the machine has none for a CTA, or what belongs to one        */
    EMU_ABOUT_DEADLOCK,      /* no group of `cta` can go on                                   */
    EMU_ABOUT_LIVELOCK,      /* nothing can                                                   */
    EMU_ABOUT_ENDLESS_GROUP, /* `group` of `warp` goes on for ever                            */
    EMU_ABOUT_ENDLESS_GRID   /* exec: its launch has executed too much                        */
};

struct emu_finding {
    enum emu_subject about;
    struct emu_world *world;
    const char *kind, *text;
    struct emu_exec *exec;   /* the instruction and its lanes                                 */
    unsigned lane;
    int64_t other;           /* a second instruction to show, or -1                           */
    enum emu_address_fault address;
    unsigned space;
    uint64_t va, bytes;
    const struct emu_copy *copy;
    const struct emu_cta *cta;
    const struct emu_warp *warp;
    const struct emu_group *group;
};

/* All that return int return EMU_RUN_FAULT.  The place is the exec's instruction. */
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

void emu_fault_memory(struct emu_world *world);
void emu_fault_deadlock(const struct emu_cta *cta);
void emu_fault_livelock(struct emu_world *world);
void emu_fault_endless_group(const struct emu_warp *warp, const struct emu_group *group);
void emu_fault_endless_grid(struct emu_exec *x);

#endif
