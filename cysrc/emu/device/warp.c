/* SPDX-License-Identifier: MIT */
#include "warp.h"
#include "bulk.h"

#include <string.h>

#define MOST_PARTS 8                     /* groups of a warp that comes apart by chance       */
#define MOST_LOG_SLICE 7                 /* random scheduler: slices of 1 to 2^7 instructions */

/* -- groups ------------------------------------------------------------------------------------ */

/* A group without lanes is a free place of the array. */
static struct emu_group *free_group(struct emu_warp *warp)
{
    for (uint32_t i = 0; i < warp->num_groups; i++)
        if (!warp->groups[i].mask)
            return &warp->groups[i];
    return &warp->groups[warp->num_groups++];    /* lanes are in one group each: it fits */
}

void emu_group_split(struct emu_warp *warp, struct emu_group *group, uint32_t lanes, uint32_t pc)
{
    struct emu_group *part = free_group(warp);

    *part = *group;
    part->mask = lanes;
    part->pc = pc;
    part->state = EMU_READY;
    group->mask &= ~lanes;
}

void emu_group_merge(struct emu_group *group, struct emu_group *other)
{
    group->mask |= other->mask;
    if (other->budget < group->budget)
        group->budget = other->budget;
    if (other->quiet_at == group->quiet_at && other->quiet > group->quiet)
        group->quiet = other->quiet;
    group->polled |= other->polled;
    other->mask = 0;
}

uint32_t emu_group_limit(const struct emu_warp *warp, const struct emu_group *group, uint32_t pc)
{
    uint32_t limit = UINT32_MAX;

    if (!emu_lanes_meet(warp->cta->grid->world))
        return limit;
    for (uint32_t i = 0; i < warp->num_groups; i++) {
        const struct emu_group *g = &warp->groups[i];

        if (g != group && g->mask && g->state == EMU_READY && g->pc >= pc && g->pc < limit)
            limit = g->pc;
    }
    return limit;
}

static void merge_at(struct emu_warp *warp, struct emu_group *group)
{
    for (uint32_t i = 0; i < warp->num_groups; i++) {
        struct emu_group *g = &warp->groups[i];

        if (g != group && g->mask && g->state == EMU_READY && g->pc == group->pc)
            emu_group_merge(group, g);
    }
}

static void compact(struct emu_warp *warp)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < warp->num_groups; i++)
        if (warp->groups[i].mask)
            warp->groups[n++] = warp->groups[i];
    warp->num_groups = n;
}

void emu_lanes_exit(struct emu_exec *x, uint32_t lanes)
{
    struct emu_warp *warp = x->warp;

    warp->live &= ~lanes;
    x->world->changed = true;
    for (uint32_t i = 0; i < warp->num_groups; i++) {
        struct emu_group *g = &warp->groups[i];

        if (g->mask && (g->state == EMU_WAIT_WARP || g->state == EMU_WAIT_GATHER))
            g->state = EMU_READY;
    }
}

/* -- turns ------------------------------------------------------------------------------------- */

/* Of the ready groups with budget left, the one that is furthest behind: lanes meet again at the
 * end of a branch without the program being analysed.  Whoever is ahead still gets its slice in the
 * same round, so a lane that spins behind cannot keep it from running.  At random: any. */
static struct emu_group *next_group(struct emu_world *world, struct emu_warp *warp)
{
    struct emu_group *next = NULL;
    uint32_t candidates = 0;

    for (uint32_t i = 0; i < warp->num_groups; i++) {
        struct emu_group *g = &warp->groups[i];

        if (!g->mask || g->state != EMU_READY || !g->budget)
            continue;
        if (world->options.scheduler == EMU_SCHED_RANDOM) {
            if (!next || emu_random(world) % ++candidates == 0)
                next = g;
        } else if (!next || g->pc < next->pc) {
            next = g;
        }
    }
    return next;
}

/* Random scheduler: now and then the lanes of a group come apart, as they may anywhere. */
static void come_apart(struct emu_world *world, struct emu_warp *warp)
{
    uint64_t random = emu_random(world);
    struct emu_group *g = &warp->groups[random % warp->num_groups];
    uint32_t lanes = g->mask & random >> 32;

    if (random >> 16 & 1 || warp->num_groups >= MOST_PARTS || g->state != EMU_READY || !lanes ||
        lanes == g->mask)
        return;
    emu_group_split(warp, g, lanes, g->pc);
}

/* Instructions that a group may execute in this round. */
static uint32_t slice(struct emu_world *world)
{
    if (world->options.scheduler != EMU_SCHED_RANDOM)
        return EMU_SLICE;
    return 1u << emu_random(world) % (MOST_LOG_SLICE + 1);
}

int emu_warp_turn(struct emu_exec *x)
{
    struct emu_warp *warp = x->warp;
    struct emu_world *world = x->world;
    struct emu_group *g;

    if (world->options.scheduler == EMU_SCHED_RANDOM)
        come_apart(world, warp);
    for (uint32_t i = 0; i < warp->num_groups; i++) {
        g = &warp->groups[i];
        g->budget = slice(world);
        g->polled = false;
        if (g->state == EMU_SLEEPING && g->wake <= world->now)
            g->state = EMU_READY;
        if (g->state == EMU_WAIT_COPIES && !emu_bulk_waits(warp, g))
            g->state = EMU_READY;
        if (g->quiet_at != world->changes) {
            g->quiet_at = world->changes;
            g->quiet = 0;
        }
    }
    while ((g = next_group(world, warp))) {
        int end;

        x->group = g;
        end = world->run_group(x, g, emu_group_limit(warp, g, g->pc));
        if (end == EMU_RUN_FAULT)
            return end;
        if (end == EMU_RUN_POLLED)
            g->budget = 0;
        else if (end == EMU_RUN_LIMIT)
            merge_at(warp, g);
    }
    compact(warp);
    return EMU_RUN_ON;
}

/* -- polls ------------------------------------------------------------------------------------- */

/* Loads in one turn of the longest poll loop that is recognised as one. */
#define LONGEST_CYCLE 1024

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9e3779b97f4a7c15;
    return h ^ h >> 32;
}

/* A lane does the same again and again when it comes back to a load (or clock) seen before; which
 * one is seen again first is found by moving a mark at growing distances. */
static bool seen_before(struct emu_exec *x, struct emu_poll *poll, uint64_t what)
{
    if (poll->mark != what) {
        if (++poll->count >= poll->power) {
            poll->mark = what;
            poll->power = poll->power < LONGEST_CYCLE ? 2 * poll->power + 1 : 1;
            poll->count = 0;
        }
        return false;
    }
    if (poll->repeats_at != x->world->changes) {
        poll->repeats_at = x->world->changes;
        poll->repeats = 0;
        poll->power = 1;
        poll->count = 0;
    }
    poll->repeats++;
    poll->pc = x->pc;
    poll->mask = x->mask;
    x->group->polled = true;
    return true;
}

void emu_note_poll(struct emu_exec *x, const struct emu_instr *op)
{
    struct emu_warp *warp = x->warp;
    uint64_t what = mix(x->pc, x->mask);

    if (x->mask == EMU_ALL_LANES)
        what = mix(mix(what, emu_lane_address(x, op, 0)), emu_lane_address(x, op, EMU_LANES - 1));
    else
        for (uint32_t left = x->mask; left; left &= left - 1)
            what = mix(what, emu_lane_address(x, op, __builtin_ctz(left)));
    if (!seen_before(x, &warp->polls[__builtin_ctz(x->mask)], what))
        return;
    for (uint32_t left = x->mask; left; left &= left - 1) {
        unsigned lane = __builtin_ctz(left);

        warp->poll_address[lane] = emu_lane_address(x, op, lane);
    }
}

void emu_note_clock(struct emu_exec *x, const uint64_t *clock, const uint64_t *limit, bool after)
{
    struct emu_poll *poll = &x->warp->polls[__builtin_ctz(x->mask)];
    uint64_t deadline = UINT64_MAX;

    for (uint32_t left = x->mask; left; left &= left - 1) {
        unsigned lane = __builtin_ctz(left);

        if (limit[lane] + after > clock[lane] && limit[lane] < deadline - after)
            deadline = limit[lane] + after;
    }
    poll->deadline = deadline;
    if (deadline != UINT64_MAX)
        seen_before(x, poll, mix(mix(x->pc, x->mask), deadline));
}

int emu_polling_lane(const struct emu_warp *warp, const struct emu_group *group)
{
    uint32_t most = 0;
    int lane = -1;

    for (uint32_t left = group->mask; left; left &= left - 1) {
        unsigned l = __builtin_ctz(left);

        if (warp->polls[l].repeats > most) {
            most = warp->polls[l].repeats;
            lane = l;
        }
    }
    return lane;
}

uint32_t emu_leader(const struct emu_world *world, uint32_t lanes)
{
    uint32_t skip;

    if (world->options.scheduler == EMU_SCHED_RR)
        return __builtin_ctz(lanes);
    for (skip = mix(world->options.seed, lanes) % __builtin_popcount(lanes); skip; skip--)
        lanes &= lanes - 1;
    return __builtin_ctz(lanes);
}

bool emu_group_spins(const struct emu_warp *warp, const struct emu_group *group, uint32_t repeats)
{
    uint64_t changes = warp->cta->grid->world->changes;

    for (uint32_t left = group->mask; left; left &= left - 1) {
        const struct emu_poll *poll = &warp->polls[__builtin_ctz(left)];

        if (poll->repeats >= repeats && poll->repeats_at == changes)
            return true;
    }
    return false;
}
