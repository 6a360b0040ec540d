/* SPDX-License-Identifier: MIT */
#include "turns.h"
#include "bulk.h"
#include "fault.h"
#include "place.h"
#include "warp.h"

#include <stdlib.h>

#define LONGEST_PAUSE 200                /* rounds; random scheduler                          */

/* -- a round ----------------------------------------------------------------------------------- */

static bool cta_awake(const struct emu_cta *cta)
{
    for (uint32_t w = 0; w < cta->num_warps; w++)
        for (uint32_t i = 0; i < cta->warps[w].num_groups; i++)
            if (!emu_blocked(&cta->warps[w].groups[i]))
                return true;
    return false;
}

/* Whether the group ran on and on, without polling anything, while nothing changed. */
static bool runs_for_ever(const struct emu_world *world, const struct emu_warp *warp,
                          const struct emu_group *group)
{
    return group->quiet > world->options.stall_limit && group->quiet_at == world->changes &&
           !world->changed && !emu_group_spins(warp, group, EMU_SPIN_REPEATS);
}

/* Random scheduler: whether a warp or CTA is passed over in this round.  Mostly that is for a round
 * or two, now and then for many: enough for others to run far ahead. */
static bool passed_over(struct emu_world *world, uint32_t *pause)
{
    uint64_t random = emu_random(world);

    if (*pause == 0 && random % 4 == 0)
        *pause = 1 + (random >> 8) % (random % 64 ? 2 : LONGEST_PAUSE);
    if (*pause == 0)
        return false;
    --*pause;
    return true;
}

/* One turn of each warp; at random, from any warp on, and some are passed over.  False: a fault. */
static bool run_cta(struct emu_world *world, struct emu_cta *cta)
{
    bool random = world->options.scheduler == EMU_SCHED_RANDOM;
    uint32_t first = random ? emu_random(world) % cta->num_warps : 0;
    struct emu_exec x = {
        .world = world, .rank = cta->grid->rank, .grid = cta->grid, .kernel = cta->grid->kernel,
        .cta = cta, .check_uninit = world->options.checks & EMU_CHECK_UNINIT,
    };

    for (uint32_t w = 0; w < cta->num_warps; w++) {
        struct emu_warp *warp = &cta->warps[(first + w) % cta->num_warps];

        if (!warp->live || (random && passed_over(world, &warp->pause)))
            continue;
        x.warp = warp;
        x.executed = 0;
        if (emu_warp_turn(&x) == EMU_RUN_FAULT)
            return false;
        if (x.executed > world->round_length)
            world->round_length = x.executed;
        if (!warp->live)
            cta->live_warps--;
        cta->grid->executed += x.executed;
        if (cta->grid->executed > world->options.instruction_limit) {
            emu_fault_endless_grid(&x);
            return false;
        }
        for (uint32_t i = 0; i < warp->num_groups; i++)
            if (runs_for_ever(world, warp, &warp->groups[i])) {
                emu_fault_endless_group(warp, &warp->groups[i]);
                return false;
            }
    }
    if (cta->live_warps && !cta_awake(cta)) {
        emu_fault_deadlock(cta);
        return false;
    }
    return true;
}

static bool run_in_order(struct emu_world *world)
{
    for (uint32_t r = 0; r < world->options.num_ranks; r++)
        for (struct emu_cta *cta = world->ranks[r].ctas; cta; cta = cta->next)
            if (!run_cta(world, cta))
                return false;
    return true;
}

static bool run_shuffled(struct emu_world *world)
{
    uint32_t n = 0;

    for (uint32_t r = 0; r < world->options.num_ranks; r++)
        for (struct emu_cta *cta = world->ranks[r].ctas; cta; cta = cta->next) {
            uint32_t j = emu_random(world) % (n + 1);

            if (n == world->max_turns) {
                uint32_t max = n ? 2 * n : 64;
                struct emu_cta **grown = realloc(world->turns, max * sizeof *grown);

                if (!grown) {
                    emu_fault_memory(world);
                    return false;
                }
                world->turns = grown;
                world->max_turns = max;
            }
            world->turns[n] = world->turns[j];
            world->turns[j] = cta;
            n++;
        }
    for (uint32_t i = 0; i < n; i++)
        if (!passed_over(world, &world->turns[i]->pause) && !run_cta(world, world->turns[i]))
            return false;
    return true;
}

static bool step(void *self)
{
    struct emu_world *world = self;

    return emu_place_ctas(world) &&
           (world->options.scheduler == EMU_SCHED_RANDOM ? run_shuffled(world)
                                                         : run_in_order(world)) &&
           emu_retire_ctas(world);
}

/* -- waiting ----------------------------------------------------------------------------------- */

/* A place in the list of all groups; starts as zeros. */
struct cursor {
    uint32_t rank, warp, group;
    struct emu_cta *cta;
};

static struct emu_group *next_live(const struct emu_world *world, struct cursor *at,
                                   struct emu_warp **warp)
{
    for (; at->rank < world->options.num_ranks; at->rank++, at->cta = NULL) {
        if (!at->cta)
            at->cta = world->ranks[at->rank].ctas;
        for (; at->cta; at->cta = at->cta->next, at->warp = 0)
            for (; at->warp < at->cta->num_warps; at->warp++, at->group = 0)
                if (at->group < at->cta->warps[at->warp].num_groups) {
                    *warp = &at->cta->warps[at->warp];
                    return &(*warp)->groups[at->group++];
                }
    }
    return NULL;
}

uint64_t emu_next_deadline(const struct emu_world *world)
{
    uint64_t next = UINT64_MAX;
    struct cursor at = {0};
    struct emu_warp *warp;
    struct emu_group *g;

    while ((g = next_live(world, &at, &warp)))
        for (uint32_t left = emu_blocked(g) ? 0 : g->mask; left; left &= left - 1) {
            uint64_t deadline = warp->polls[__builtin_ctz(left)].deadline;

            if (deadline > world->now && deadline < next)
                next = deadline;
        }
    return next;
}

/* Whether nothing but time, a copy or another's store can get the group further.  A poll loop may
 * count its turns and give up by itself, so without a clock in sight it is watched for longer; a
 * loop that waits for the time by way of other warps polls nothing itself. */
static bool waits(const struct emu_world *world, const struct emu_warp *warp,
                  const struct emu_group *group, enum emu_patience patience)
{
    uint64_t limit = world->options.stall_limit;

    if (emu_blocked(group))
        return true;
    if (group->state == EMU_WAIT_COPIES)
        return emu_bulk_waits(warp, group);
    if (patience == EMU_FOR_AGENTS)
        return emu_group_spins(warp, group, EMU_POLL_REPEATS);
    if (emu_group_spins(warp, group, EMU_SPIN_REPEATS))
        return patience == EMU_FOR_TIME || group->quiet >= limit / 64;
    return patience == EMU_FOR_TIME && group->quiet >= limit / 4;
}

static bool idle(const void *self, enum emu_patience patience, uint64_t *wake)
{
    const struct emu_world *world = self;
    struct cursor at = {0};
    struct emu_warp *warp;
    struct emu_group *g;

    if (world->deferred)
        return false;
    while ((g = next_live(world, &at, &warp))) {
        if (waits(world, warp, g, patience))
            continue;
        if (g->state != EMU_SLEEPING)
            return false;
        if (g->wake < *wake)
            *wake = g->wake;
    }
    return true;
}

static bool live(const void *self)
{
    return emu_any_cta(self);
}

void emu_warps_join(struct emu_world *world)
{
    world->warps = (struct emu_agent){.self = world, .live = live, .step = step, .idle = idle};
    emu_add_agent(world, &world->warps);
}
