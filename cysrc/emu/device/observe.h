/* SPDX-License-Identifier: MIT
 *
 * What an observer hears: every access of memory by lanes, bulk copies and the host, and every event
 * that orders accesses (fences, barriers, the ends of bulk copies, begins and ends of CTAs), in the
 * order in which they happen.  Lanes' accesses are told just before; the last one may turn out to be
 * a fault.  The race checker (emu/race) is such an observer.
 *
 * Nobody pays for what nobody hears: what lanes do is told by a second body of the interpreter's
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
    uint8_t *host;           /* first byte on this machine: the same for all ranks that see it,
                                at whatever address; NULL: of a device's registers            */
    struct emu_segment *segment;         /* global memory: of which, and where in it          */
    uint64_t offset;
    struct emu_cta *shared_of;           /* shared memory: whose; `va` is where               */
    /* Who does it. */
    struct emu_grid *grid;               /* NULL: the host                                    */
    struct emu_copy *copy;               /* NULL: the lanes themselves; else a bulk copy of
                                            theirs, which may act long after them             */
    struct emu_warp *by;                 /* of the lanes themselves                           */
    uint32_t cta, warp;
    uint32_t lanes;          /* all in one instruction                                        */
    uint32_t lane_bytes;     /* of each lane: all of `bytes`, or shares of so much, in order  */
    uint32_t pc;
    uint8_t elem;            /* bytes of one element: what is accessed as one                 */
    bool nc;                 /* ld.global.nc                                                  */
    bool mbarrier;           /* an mbarrier operation, or a bulk copy's bytes that count there */
};

enum emu_event_kind {
    EMU_EVENT_FENCE,         /* by `lanes`; `op` says which                                   */
    EMU_EVENT_WARP_SYNC,     /* bar.warp.sync: `lanes` have met                               */
    EMU_EVENT_BAR_ARRIVE,    /* the warp has come to CTA barrier `va` ...                     */
    EMU_EVENT_BAR_COMPLETE,  /* ... and the last of them has                                  */
    EMU_EVENT_MBAR_ARRIVE,   /* a lane of `lanes`, at mbarrier `va`                           */
    EMU_EVENT_MBAR_PASS,     /* `lanes` have found a phase of mbarrier `va` over               */
    EMU_EVENT_MBAR_DELIVER,  /* `copy` is done: its bytes count at mbarrier `va`              */
    EMU_EVENT_COPY_ISSUE,    /* `copy`, by a lane of `lanes`                                  */
    EMU_EVENT_COPY_END,      /* `copy` has done all it does                                   */
    EMU_EVENT_GROUPS_WAITED, /* `lanes` have passed the wait_group `op`                       */
    EMU_EVENT_CTA_BEGIN,     /* `cta` has been placed                                         */
    EMU_EVENT_CTA_END,       /* it is no more: mostly, since all its threads have exited      */
    EMU_EVENT_FREE           /* the bytes of `segment` are no more                            */
};

struct emu_event {
    uint8_t kind;            /* enum emu_event_kind                                           */
    bool completes;          /* mbarrier: a phase ends by it                                  */
    struct emu_grid *grid;
    struct emu_cta *cta;
    struct emu_warp *warp;
    struct emu_copy *copy;
    struct emu_segment *segment;
    const struct emu_instr *op;
    uint32_t lanes, pc;
    uint64_t va;
};

static inline bool emu_observed(const struct emu_world *world)
{
    return world->observer.access != NULL;
}

static inline void emu_observe(const struct emu_world *world, const struct emu_access *access)
{
    world->observer.access(world->observer.watcher, access);
}

static inline void emu_tell_copied(const struct emu_world *world, uint8_t *bytes)
{
    if (world->observer.copied)
        world->observer.copied(world->observer.watcher, bytes);
}

static inline void emu_tell(const struct emu_world *world, const struct emu_event *event)
{
    if (world->observer.event)
        world->observer.event(world->observer.watcher, event);
}

/* Of the instruction at hand. */
static inline void emu_tell_lanes(const struct emu_exec *x, enum emu_event_kind kind,
                                  const struct emu_instr *op, uint32_t lanes, uint64_t va)
{
    emu_tell(x->world, &(struct emu_event){
        .kind = kind, .grid = x->grid, .cta = x->cta, .warp = x->warp, .op = op, .lanes = lanes,
        .pc = x->pc, .va = va,
    });
}

#endif
