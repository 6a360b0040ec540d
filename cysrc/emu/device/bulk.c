/* SPDX-License-Identifier: MIT */
#include "bulk.h"
#include "access.h"
#include "bits.h"
#include "mbarrier.h"
#include "memory.h"
#include "observe.h"
#include "fault.h"

#include <stdlib.h>
#include <string.h>

#define ALL_UNITS UINT32_MAX
#define MOST_LOG_PACE 6                  /* random scheduler: a step in 1 to 2^6 rounds       */

/* -- issuing ----------------------------------------------------------------------------------- */

static uint32_t value(const struct emu_exec *x, int32_t operand, unsigned lane)
{
    return ((const emu_u32 *)emu_operand(x, operand))[lane];
}

/* Checks the copy of one lane; false after a fault. */
static bool check(struct emu_exec *x, const struct emu_copy *c)
{
    enum emu_address_fault what = EMU_FAULT_UNREACHABLE;
    unsigned space = EMU_SP_SHARED;
    uint64_t va = c->shared;
    struct emu_mbarrier object;
    struct emu_span span;

    if (c->bytes == 0 || c->bytes % EMU_COPY_UNIT) {
        emu_fault_lane(x, "misaligned", c->lane, -1,
                       "bulk copy of %u bytes: the size must be a multiple of %u, and not 0",
                       c->bytes, EMU_COPY_UNIT);
        return false;
    }
    if (va % EMU_COPY_UNIT || c->global % EMU_COPY_UNIT) {
        what = EMU_FAULT_MISALIGNED;
        if (va % EMU_COPY_UNIT == 0)
            space = EMU_SP_GLOBAL;
    } else if (emu_reach(x, EMU_SP_SHARED, va, c->bytes, &span)) {
        space = EMU_SP_GLOBAL;
        if (emu_reach(x, EMU_SP_GLOBAL, c->global, c->bytes, &span)) {
            if (c->load || span.mapping->writable) {
                if (!c->load || emu_mbarrier_read(x->cta, c->barrier, &object))
                    return true;
                emu_fault_lane(x, "mbarrier", c->lane, -1,
                               "no mbarrier is at %#x of shared memory, to which this bulk copy "
                               "would deliver its %u bytes", c->barrier, c->bytes);
                return false;
            }
            what = EMU_FAULT_READ_ONLY;
        }
    }
    emu_fault_range(x, what, c->lane, space, space == EMU_SP_SHARED ? va : c->global, c->bytes);
    return false;
}

static uint64_t *data_valid(const struct emu_copy *c)
{
    return (uint64_t *)(c->data + (c->bytes + 7) / 8 * 8);
}

/* Appends a copy of `c`, with room for its bytes, to the CTA's.  NULL: no memory. */
static struct emu_copy *add(struct emu_cta *cta, const struct emu_copy *c)
{
    uint64_t room = c->load ? 0 : (c->bytes + 7) / 8 * 8 + 8 * emu_bitmap_words(c->bytes);
    struct emu_copy *copy = calloc(1, sizeof *copy + room), **end = &cta->copies;

    if (!copy)
        return NULL;
    *copy = *c;
    copy->data = (uint8_t *)(copy + 1);
    while (*end)
        end = &(*end)->next;
    *end = copy;
    cta->grid->copies_in_flight++;
    cta->grid->world->copies_in_flight++;
    return copy;
}

int emu_bulk_issue(struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    for (uint32_t left = m; left; left &= left - 1) {
        unsigned lane = __builtin_ctz(left);
        struct emu_copy c = {
            .grid = x->grid, .cta = x->cta, .load = op->op == EMU_OP_BULK_LOAD, .pc = x->pc,
            .cta_index = x->cta->index, .warp = x->warp->index, .lane = lane,
            .global = emu_lane_address(x, op, lane), .shared = value(x, op->src[1], lane),
            .bytes = value(x, op->src[2], lane), .group = x->warp->bulk_groups[lane],
        };
        struct emu_copy *copy;

        if (c.load)
            c.barrier = value(x, op->src[3], lane);
        if (!check(x, &c))
            return EMU_RUN_FAULT;
        if (x->world->options.scheduler == EMU_SCHED_RANDOM) {
            c.first = emu_random(x->world) % (c.bytes / EMU_COPY_UNIT);
            c.pace = 1u << emu_random(x->world) % (MOST_LOG_PACE + 1);
        }
        copy = add(x->cta, &c);
        if (!copy) {
            emu_fault_memory(x->world);
            return EMU_RUN_FAULT;
        }
        emu_tell(x->world, &(struct emu_event){
            .kind = EMU_EVENT_COPY_ISSUE, .grid = x->grid, .cta = x->cta, .warp = x->warp,
            .copy = copy, .op = op, .lanes = 1u << lane, .pc = x->pc,
        });
    }
    emu_note_write(x, true);
    return EMU_RUN_ON;
}

/* -- bulk groups ------------------------------------------------------------------------------- */

void emu_bulk_commit(struct emu_exec *x, uint32_t m)
{
    for (uint32_t left = m; left; left &= left - 1)
        x->warp->bulk_groups[__builtin_ctz(left)]++;
}

/* Whether a wait_group of the copy's lane, at `op`, waits for it. */
static bool awaited(const struct emu_warp *warp, const struct emu_instr *op,
                    const struct emu_copy *c)
{
    return !c->load && c->warp == warp->index &&
           c->group + (uint64_t)op->imm < warp->bulk_groups[c->lane] &&
           !(op->sub == EMU_BULK_READ && c->read);
}

static uint32_t count_awaited(const struct emu_warp *warp, const struct emu_instr *op,
                              uint32_t lanes)
{
    uint32_t n = 0;

    for (const struct emu_copy *c = warp->cta->copies; c; c = c->next)
        n += (lanes >> c->lane & 1) && awaited(warp, op, c);
    return n;
}

int emu_bulk_wait(struct emu_exec *x, const struct emu_instr *op, uint32_t m)
{
    if (!count_awaited(x->warp, op, m))
        return EMU_RUN_ON;
    x->group->state = EMU_WAIT_COPIES;
    x->group->member = m;
    return EMU_RUN_BLOCKED;
}

uint32_t emu_bulk_in_flight(const struct emu_warp *warp, const struct emu_group *group)
{
    return count_awaited(warp, &warp->cta->grid->kernel->ops[group->pc], group->member);
}

bool emu_bulk_waits(const struct emu_warp *warp, const struct emu_group *group)
{
    return emu_bulk_in_flight(warp, group) != 0;
}

/* -- moving ------------------------------------------------------------------------------------ */

enum outcome { GOES_ON, DONE, FAULTED };

static void observe(struct emu_copy *c, struct emu_access a)
{
    const struct emu_world *world = c->grid->world;

    if (!emu_observed(world))
        return;
    a.proxy = EMU_PX_ASYNC;
    a.rank = c->grid->rank->index;
    a.grid = c->grid;
    a.copy = c;
    a.cta = c->cta_index;
    a.warp = c->warp;
    a.lanes = 1u << c->lane;
    a.lane_bytes = a.bytes;
    a.elem = a.mbarrier ? EMU_MBARRIER_BYTES : EMU_COPY_UNIT;
    a.pc = c->pc;
    emu_observe(world, &a);
}

static void observe_shared(struct emu_copy *c, enum emu_access_kind kind, uint32_t at,
                           uint32_t bytes)
{
    observe(c, (struct emu_access){
        .kind = kind, .space = EMU_SP_SHARED, .sem = EMU_SEM_WEAK, .va = c->shared + at,
        .bytes = bytes, .host = c->cta->shared + c->shared + at, .shared_of = c->cta,
    });
}

static void observe_global(struct emu_copy *c, enum emu_access_kind kind, uint32_t at,
                           uint32_t bytes, const struct emu_mapping *m)
{
    uint64_t there = c->global - m->va + at;

    observe(c, (struct emu_access){
        .kind = kind, .space = EMU_SP_GLOBAL, .sem = EMU_SEM_WEAK, .va = c->global + at,
        .bytes = bytes, .host = m->host + there, .segment = m->segment, .offset = there,
    });
}

static void read_source(struct emu_copy *c)
{
    observe_shared(c, EMU_ACCESS_BULK_READ, 0, c->bytes);
    memcpy(c->data, c->cta->shared + c->shared, c->bytes);
    emu_tell_copied(c->grid->world, c->data);
    emu_bits_copy(data_valid(c), 0, c->cta->shared_valid, c->shared, c->bytes);
    c->read = true;
}

/* Bytes [at, at + bytes) of the copy, whose global side is at m. */
static void transfer(struct emu_copy *c, const struct emu_mapping *m, uint32_t at, uint32_t bytes)
{
    uint64_t there = c->global - m->va + at;

    if (c->load) {
        observe_global(c, EMU_ACCESS_BULK_READ, at, bytes, m);
        observe_shared(c, EMU_ACCESS_BULK_WRITE, at, bytes);
        memcpy(c->cta->shared + c->shared + at, m->host + there, bytes);
        emu_tell_copied(c->grid->world, c->cta->shared + c->shared + at);
        emu_bits_copy(c->cta->shared_valid, c->shared + at, m->valid, there, bytes);
    } else {
        observe_global(c, EMU_ACCESS_BULK_WRITE, at, bytes, m);
        memcpy(m->host + there, c->data + at, bytes);
        if (m->valid)
            emu_bits_copy(m->valid, there, data_valid(c), at, bytes);
    }
}

static bool deliver(struct emu_copy *c)
{
    struct emu_mbarrier object, before;
    const char *what;

    if (!emu_mbarrier_read(c->cta, c->barrier, &object)) {
        emu_fault_copy(c, "mbarrier", "its mbarrier at %#x of shared memory is no more",
                       c->barrier);
        return false;
    }
    observe(c, (struct emu_access){
        .kind = EMU_ACCESS_ATOMIC, .space = EMU_SP_SHARED, .sem = EMU_SEM_RELAXED,
        .scope = EMU_SC_CLUSTER, .va = c->barrier, .bytes = EMU_MBARRIER_BYTES,
        .host = c->cta->shared + c->barrier, .shared_of = c->cta, .mbarrier = true,
    });
    before = object;
    what = emu_mbarrier_count(&object, -(int64_t)c->bytes, 0);
    if (what) {
        emu_fault_copy(c, "mbarrier",
                       "%s: the mbarrier at %#x was at phase parity %u, %u of %u arrivals pending, "
                       "tx-count %d bytes", what, c->barrier, before.parity, before.pending,
                       before.expected, before.tx);
        return false;
    }
    emu_mbarrier_write(c->cta, c->barrier, &object);
    emu_tell(c->grid->world, &(struct emu_event){
        .kind = EMU_EVENT_MBAR_DELIVER, .completes = object.parity != before.parity,
        .grid = c->grid, .cta = c->cta, .copy = c, .pc = c->pc, .va = c->barrier,
    });
    return true;
}

static void count_bytes(const struct emu_copy *c, const struct emu_mapping *m)
{
    struct emu_counters *n = &c->grid->rank->counters;

    if (c->load) {
        n->global_load_bytes += c->bytes;
        n->global_load_transactions += emu_sectors(m, c->global, c->bytes);
    } else {
        n->global_store_bytes += c->bytes;
        n->global_store_transactions += emu_sectors(m, c->global, c->bytes);
    }
    if (m->peer && c->load)
        n->peer_load_bytes += c->bytes;
    else if (m->peer)
        n->peer_store_bytes += c->bytes;
}

/* One step of a copy: a store reads its source, then any copy moves at most `units`. */
static enum outcome step(struct emu_copy *c, uint32_t units)
{
    const struct emu_mapping *m;
    uint32_t all = c->bytes / EMU_COPY_UNIT;

    c->grid->world->changed = true;
    if (!c->load && !c->read) {
        read_source(c);
        return GOES_ON;
    }
    m = emu_mapping_at(c->grid->rank, c->global);
    if (!m || !emu_mapping_holds(m, c->global, c->bytes)) {
        emu_fault_copy(c, "use-after-free", "its global memory was freed or unmapped meanwhile");
        return FAULTED;
    }
    while (units && c->moved < all) {
        uint32_t at = (c->first + c->moved) % all, run = all - at;

        run = run < all - c->moved ? run : all - c->moved;
        run = run < units ? run : units;
        transfer(c, m, at * EMU_COPY_UNIT, run * EMU_COPY_UNIT);
        c->moved += run;
        units -= run;
    }
    if (c->moved < all)
        return GOES_ON;
    count_bytes(c, m);
    return c->load && !deliver(c) ? FAULTED : DONE;
}

/* -- who goes on ------------------------------------------------------------------------------- */

enum pace { STAYS, STEPS, FINISHES };

struct round {
    struct emu_world *world;
    enum pace (*pace)(struct round *, const struct emu_copy *);
    uint32_t units;          /* of a step                                                     */
    uint32_t seen, pick;     /* copies looked at, and the one that goes on in any case        */
    uint32_t first_rank;     /* whose copies are looked at first                              */
};

static void forget(struct emu_world *world, struct emu_copy *c)
{
    emu_tell(world, &(struct emu_event){
        .kind = EMU_EVENT_COPY_END, .grid = c->grid, .cta = c->cta, .copy = c, .pc = c->pc,
    });
    c->grid->copies_in_flight--;
    world->copies_in_flight--;
    free(c);
}

static bool go_on(struct round *r, struct emu_copy **list)
{
    while (*list) {
        struct emu_copy *c = *list;
        enum outcome end = GOES_ON;
        enum pace pace;

        r->units = ALL_UNITS;
        pace = r->pace(r, c);
        if (pace == STEPS)
            end = step(c, r->units);
        while (pace == FINISHES && end == GOES_ON)
            end = step(c, ALL_UNITS);
        if (end == FAULTED)
            return false;
        if (end == DONE) {
            *list = c->next;
            forget(r->world, c);
        } else {
            list = &c->next;
        }
    }
    return true;
}

static bool all_go_on(struct round *r)
{
    for (uint32_t i = 0; i < r->world->options.num_ranks; i++) {
        struct emu_rank *rank =
            &r->world->ranks[(r->first_rank + i) % r->world->options.num_ranks];

        for (struct emu_cta *cta = rank->ctas; cta; cta = cta->next)
            if (!go_on(r, &cta->copies))
                return false;
        for (struct emu_grid *grid = rank->grids; grid; grid = grid->next)
            if (!go_on(r, &grid->copies))
                return false;
    }
    return true;
}

static enum pace finish(struct round *r, const struct emu_copy *c)
{
    (void)r, (void)c;
    return FINISHES;
}

static enum pace at_random(struct round *r, const struct emu_copy *c)
{
    uint64_t random = emu_random(r->world);

    r->units = 1 + (random >> 32) % (c->bytes / EMU_COPY_UNIT);
    return random % c->pace ? STAYS : STEPS;
}

/* Whether a lane of the CTA polls the mbarrier at `va`. */
static bool is_polled(const struct emu_cta *cta, uint64_t va)
{
    for (uint32_t w = 0; w < cta->num_warps; w++)
        for (unsigned l = 0; l < EMU_LANES; l++) {
            const struct emu_warp *warp = &cta->warps[w];
            const struct emu_poll *poll = &warp->polls[l];

            if (poll->repeats && poll->repeats_at == cta->grid->world->changes &&
                cta->grid->kernel->ops[poll->pc].op == EMU_OP_MBAR_WAIT)
                for (uint32_t left = poll->mask; left; left &= left - 1)
                    if (warp->poll_address[__builtin_ctz(left)] == va)
                        return true;
        }
    return false;
}

/* What somebody waits for: a copy's end, or only that it has read its source. */
static enum pace needed(const struct emu_copy *c)
{
    enum pace pace = STAYS;

    if (!c->cta)
        return STAYS;
    if (c->load)
        return is_polled(c->cta, c->barrier) ? FINISHES : STAYS;

    const struct emu_warp *warp = &c->cta->warps[c->warp];

    for (uint32_t i = 0; i < warp->num_groups; i++) {
        const struct emu_group *g = &warp->groups[i];
        const struct emu_instr *op = &c->grid->kernel->ops[g->pc];

        if (g->mask && g->state == EMU_WAIT_COPIES && (g->member >> c->lane & 1) &&
            awaited(warp, op, c))
            pace = op->sub == EMU_BULK_READ ? STEPS : FINISHES;
    }
    return pace;
}

static enum pace count_needed(struct round *r, const struct emu_copy *c)
{
    r->seen += needed(c) != STAYS;
    return STAYS;
}

/* Of the needed copies the picked one, and others by chance. */
static enum pace some_needed(struct round *r, const struct emu_copy *c)
{
    enum pace pace = needed(c);

    if (pace == STAYS || (r->seen++ != r->pick && emu_random(r->world) & 1))
        return STAYS;
    return pace;
}

static enum pace the_picked(struct round *r, const struct emu_copy *c)
{
    (void)c;
    return r->seen++ == r->pick ? STEPS : STAYS;
}

static bool live(const void *self)
{
    return ((const struct emu_world *)self)->copies_in_flight != 0;
}

/* What copies do at the end of a round. */
static bool step_all(void *self)
{
    struct round r = {.world = self};

    if (!live(self))
        return true;
    switch (r.world->options.scheduler) {
    case EMU_SCHED_RR:
        r.pace = finish;
        return all_go_on(&r);
    case EMU_SCHED_RANDOM:
        r.pace = at_random;
        return all_go_on(&r);
    default:
        return true;                     /* as late as can be: force() */
    }
}

/* At random, a copy is late by chance and not for long. */
static bool idle(const void *self, enum emu_patience patience, uint64_t *wake)
{
    (void)patience, (void)wake;
    return !live(self) ||
           ((const struct emu_world *)self)->options.scheduler != EMU_SCHED_RANDOM;
}

/* At least one copy goes on. */
static bool force(void *self)
{
    struct emu_world *world = self;
    struct round count = {.world = world, .pace = count_needed};
    struct round r = {.world = world, .pace = some_needed};

    all_go_on(&count);
    if (count.seen) {
        r.pick = emu_random(world) % count.seen;
    } else {
        /* Nobody waits for them.  Mostly one rank's all come before another's: then that rank may
         * go on while the other's are still missing. */
        r.pace = the_picked;
        r.first_rank = world->options.seed % world->options.num_ranks;
        if (emu_random(world) % 8 == 0)
            r.pick = emu_random(world) % world->copies_in_flight;
    }
    return all_go_on(&r);
}

void emu_copies_join(struct emu_world *world)
{
    world->copies = (struct emu_agent){
        .self = world, .live = live, .step = step_all, .idle = idle, .force = force,
    };
    emu_add_agent(world, &world->copies);
}

/* -- ends -------------------------------------------------------------------------------------- */

bool emu_bulk_leave(struct emu_cta *cta)
{
    struct emu_copy **end = &cta->grid->copies;

    for (struct emu_copy *c = cta->copies; c; c = c->next) {
        if (c->load || !c->read) {
            emu_fault_copy(c, "in-flight", "all threads of its CTA exited before it had %s their "
                           "shared memory", c->load ? "written to" : "read its source in");
            return false;
        }
        c->cta = NULL;
    }
    while (*end)
        end = &(*end)->next;
    *end = cta->copies;
    cta->copies = NULL;
    return true;
}

void emu_bulk_free(struct emu_world *world, struct emu_copy *copies)
{
    while (copies) {
        struct emu_copy *c = copies;

        copies = c->next;
        forget(world, c);
    }
}
