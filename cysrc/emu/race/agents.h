/* SPDX-License-Identifier: MIT
 *
 * Who acts, and what each of them comes after: warps and their lanes, bulk copies, CTAs, grids,
 * host threads and streams. */
#ifndef DEEPEP_PTX_EMU_RACE_AGENTS_H
#define DEEPEP_PTX_EMU_RACE_AGENTS_H

#include "emu/device/memory.h"
#include "emu/device/observe.h"
#include "history.h"
#include "race.h"
#include "shadow.h"

/* -- slots ------------------------------------------------------------------------------------- */

enum race_agent { RACE_WARP, RACE_COPY, RACE_NC_LOADS, RACE_HOST_THREAD, RACE_STREAM };

/* Who has had a slot from a time on. */
struct race_tenant {
    uint32_t since;
    uint8_t agent;           /* enum race_agent                                               */
    uint32_t cta, warp;
    uint64_t cta_serial;     /* differs between CTAs                                          */
    struct race_grid *grid;  /* NULL: the host                                                */
};

struct race_slot {
    uint32_t time;           /* what its agent does now bears it                              */
    uint32_t rank;
    bool host;               /* outside of every GPU                                          */
    uint32_t num, max;
    struct race_tenant *tenants;
};

struct race_slots { uint32_t num, max; uint32_t *of; };      /* that may be given out again     */

/* -- grids and their parts --------------------------------------------------------------------- */

struct race_grid {
    struct race_grid *next;
    const struct emu_kernel *kernel;
    uint32_t rank;
    struct race_clock *launch;           /* what it comes after; NULL once it is done         */
    struct race_clock *end;              /* what comes after it does so after that; likewise  */
    uint32_t end_node;                   /* in the history                                    */
    uint32_t nc_slot;                    /* of its ld.global.nc                               */
    bool has_nc;
};

/* A barrier: what its participants come after, together. */
struct race_meeting {
    struct race_clock *sum;
    uint32_t node;                       /* in the history                                    */
    uint32_t warps;                      /* that have arrived                                 */
    struct race_clock *done;             /* mbarrier: of the last phase that is over          */
    uint32_t done_node;
};

struct race_mbarrier {
    uint64_t va;
    struct race_meeting meeting;
};

struct race_cta {
    struct race_grid *grid;
    uint64_t serial;
    struct race_shadow *shadow;
    struct race_meeting barriers[EMU_NUM_BARRIERS];
    struct race_mbarrier *mbarriers;
    uint32_t num_mbarriers, max_mbarriers;
};

/* A strong store that a relaxed load has seen: a fence makes an acquire of it. */
struct race_seen {
    struct race_token token;
    uint8_t scope;           /* of the load                                                   */
    bool folded;             /* several in one                                                */
};

struct race_lane {
    struct race_clock *clock;            /* with `got`, what it comes after                   */
    struct race_token *got;              /* acquired, and not joined into the clock so far    */
    uint32_t num_got, max_got;
    struct race_token fence;             /* at its last fence; clock NULL: none               */
    struct race_seen *seen;
    uint32_t num_seen, max_seen;
    struct race_poll {
        const struct race_cell *cell;
        uint64_t version;
        uint32_t time, pc;
        uint16_t bytes;
    } poll;                              /* the last strong load, of this cell                */
};

/* Bulk stores of which a wait_group may tell. */
struct race_stores {
    uint32_t group;
    uint8_t lane;
    uint32_t read_slot, read_time, write_slot, write_time;
};

struct race_warp {
    uint32_t slot;
    uint32_t synced;         /* each lane comes after what all lanes did up to then           */
    uint32_t arrived;        /* its time when it came to the CTA barrier                      */
    bool together;           /* the lanes' clocks are one, and none has `got` anything        */
    bool fenced;             /* a lane has executed a proxy fence                             */
    struct race_lane lanes[EMU_LANES];
    /* Per plane but the first: up to when a lane's own accesses, and those of all lanes, lie before
     * a proxy fence of it; and the same of what all lanes know of each other. */
    uint32_t own[RACE_PLANES][EMU_LANES], all[RACE_PLANES][EMU_LANES];
    uint32_t known_own[RACE_PLANES][EMU_LANES], known_all[RACE_PLANES];
    struct race_stores *stores;
    uint32_t num_stores, max_stores;
    struct race_slots copies;            /* slots that its copies have had                    */
};

struct race_copy {
    struct race_clock *clock;            /* what it comes after, but for its own warp         */
    /* Of its own warp, per plane: all lanes up to `whole`, each up to `lanes`. */
    uint32_t whole[RACE_PLANES], lanes[RACE_PLANES][EMU_LANES];
    uint32_t read_slot, read_time, write_slot, write_time;
    uint32_t issuer, issued, synced;     /* slot and times of its warp                        */
    uint8_t lane;
};

/* -- the checker ------------------------------------------------------------------------------- */

struct race_checker {
    struct race_options options;
    const struct emu_world *world;
    bool failed;                         /* no memory: what it says is not all                */
    struct race_extent extent;
    struct race_pool pool;
    struct race_slot *slots;
    uint32_t num_slots, max_slots;
    struct race_slots *free_slots;       /* [num_ranks]                                       */
    struct race_grid *grids;
    uint64_t num_ctas;
    struct race_shadow *shadows;
    struct race_history history;
    struct race_order *actor;            /* for whom the host accesses memory                 */
    struct race_found *found, **last_found;
    uint32_t num_found;
    uint64_t versions;                   /* of cells: the last one given out                  */
    struct race_stale *stale;            /* weak visibility: what the load at hand may see    */
};

/* False, from then on: no memory. */
static inline bool race_ok(struct race_checker *c, bool there)
{
    if (!there)
        c->failed = true;
    return there;
}

static inline uint32_t race_now(const struct race_checker *c, const struct race_warp *warp)
{
    return c->slots[warp->slot].time;
}

/* For the history of synchronisation, which only reports need. */
static inline void race_note_edge(struct race_checker *c, const struct race_edge *edge)
{
    if (c->options.reports)
        race_ok(c, race_history_add(&c->history, edge));
}

/* Into a node, a barrier say, and out of it. */
static inline void race_edge_to_node(struct race_checker *c, const struct race_warp *warp,
                                     uint32_t node, enum race_edge_kind kind, uint32_t pc,
                                     int lane)
{
    race_note_edge(c, &(struct race_edge){
        .from = warp->slot, .from_time = race_now(c, warp), .from_pc = pc,
        .from_lane = (int8_t)lane,
        .to = node, .to_pc = pc, .to_lane = -1, .kind = kind,
    });
}

static inline void race_edge_from_node(struct race_checker *c, uint32_t node,
                                       const struct race_warp *warp, enum race_edge_kind kind,
                                       uint32_t pc, int lane)
{
    race_note_edge(c, &(struct race_edge){
        .from = node, .from_pc = pc, .from_lane = -1, .to = warp->slot,
        .to_time = race_now(c, warp), .to_pc = pc, .to_lane = (int8_t)lane, .kind = kind,
    });
}

static inline bool race_acquires(uint8_t sem)
{
    return sem == EMU_SEM_ACQUIRE || sem == EMU_SEM_ACQ_REL || sem == EMU_SEM_SC;
}

static inline bool race_releases(uint8_t sem)
{
    return sem == EMU_SEM_RELEASE || sem == EMU_SEM_ACQ_REL || sem == EMU_SEM_SC;
}

uint32_t race_slot_take(struct race_checker *c, uint32_t rank, struct race_slots *first,
                        const struct race_clock *after, const struct race_tenant *tenant);
void race_slot_leave(struct race_checker *c, struct race_slots *to, uint32_t slot);
const struct race_tenant *race_tenant_at(const struct race_checker *c, uint32_t slot,
                                         uint32_t time);

/* What a lane has done and come after so far, for others: the clock is held. */
struct race_token race_token_of(struct race_checker *c, struct race_warp *warp, unsigned lane,
                                uint8_t scope, uint32_t pc);
/* Up to when the warp's own accesses lie behind proxy fences, for who comes after `lane` (-1: all
 * lanes): all of them, and those of each lane. */
uint32_t race_warp_fenced(const struct race_warp *warp, enum race_plane plane, int lane,
                          uint32_t lanes[EMU_LANES]);
/* The lane's clock as it is, with all that the lane has got: not a reference. */
struct race_clock *race_lane_clock(struct race_checker *c, struct race_warp *warp, unsigned lane);
/* Whether who comes after `token` comes after all that the other gives. */
bool race_token_is_after(const struct race_token *token, const struct race_token *other);
/* A lane comes after the token, lanes after a clock, too. */
void race_lane_after(struct race_checker *c, struct race_warp *warp, unsigned lane,
                     const struct race_token *token);
void race_lanes_join(struct race_checker *c, struct race_warp *warp, uint32_t lanes,
                     const struct race_clock *clock);
/* A clock whose holder has the only reference comes after a token. */
void race_clock_after(struct race_checker *c, struct race_clock **clock,
                      const struct race_token *token);
/* A proxy fence by the lanes. */
void race_lanes_fence_proxy(struct race_checker *c, struct race_warp *warp, uint32_t lanes,
                            enum race_plane plane);
/* *sum, made if it is NULL and its holder's alone, comes after all that the warp's lanes have. */
void race_warp_gives(struct race_checker *c, struct race_warp *warp, struct race_clock **sum);
/* Some lanes have met. */
void race_lanes_meet(struct race_checker *c, struct race_warp *warp, uint32_t lanes, uint32_t pc);
/* All live lanes have met. */
void race_warp_meet(struct race_checker *c, struct race_warp *warp, uint32_t live);
/* They all have `clock`, which has the warp's time `arrived` in it. */
void race_warp_set(struct race_warp *warp, struct race_clock *clock);

/* Whether all of the lanes come after what a mark's lanes did. */
bool race_lanes_know(const struct race_warp *warp, uint32_t lanes, const struct race_mark *mark,
                     uint32_t mark_lanes);

#endif
