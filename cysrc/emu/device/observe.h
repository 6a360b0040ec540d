/* SPDX-License-Identifier: MIT
 *
 * What an observer hears of memory: every access by lanes, bulk copies and the host, told in one
 * way, in the order in which they happen.  Lanes' are told just before; the last one may turn out
 * to be a fault.  A checker of races is to be such an observer.
 *
 * Nobody pays for what nobody hears: lanes' accesses are told by a second body of the interpreter's
 * loop, which runs where there is such an observer. */
#ifndef DEEPEP_PTX_EMU_OBSERVE_H
#define DEEPEP_PTX_EMU_OBSERVE_H

#include "exec.h"

enum emu_access_kind {
    EMU_ACCESS_LOAD,
    EMU_ACCESS_STORE,
    EMU_ACCESS_ATOMIC,       /* reads and writes; an mbarrier's arrivals and bytes too        */
    EMU_ACCESS_BULK_READ,
    EMU_ACCESS_BULK_WRITE
};

struct emu_access {
    uint8_t kind;            /* enum emu_access_kind                                          */
    uint8_t space, sem, scope, proxy;    /* enums of gen/isa.h                                */
    uint32_t rank;           /* whose address it is                                           */
    uint64_t va, bytes;
    const uint8_t *host;     /* first byte on this machine: the same for all ranks that see it,
                                at whatever address; NULL: of a device's registers            */
    /* Who does it. */
    const struct emu_grid *grid;         /* NULL: the host                                    */
    const struct emu_copy *copy;         /* NULL: the lanes themselves; else a bulk copy of
                                            theirs, which may act long after them             */
    uint32_t cta, warp;
    uint32_t lanes;          /* all in one instruction                                        */
    uint32_t lane_bytes;     /* of each lane: all of `bytes`, or shares of so much, in order  */
    uint32_t pc;
};

static inline bool emu_observed(const struct emu_world *world)
{
    return world->observer.access != NULL;
}

static inline void emu_observe(const struct emu_world *world, const struct emu_access *access)
{
    world->observer.access(world->observer.self, access);
}

#endif
