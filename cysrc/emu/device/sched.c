/* SPDX-License-Identifier: MIT
 *
 * Worlds, and their rounds: a step of every agent, then virtual time. */
#include "bulk.h"
#include "fault.h"
#include "interp.h"
#include "kernel.h"
#include "memory.h"
#include "place.h"
#include "turns.h"

#include <stdlib.h>

/* -- worlds ------------------------------------------------------------------------------------ */

struct emu_world *emu_world_create(const struct emu_options *options,
                                   const struct emu_observer *observer)
{
    struct emu_world *world = calloc(1, sizeof *world);

    if (!world || options->num_ranks == 0 || options->sms_per_rank == 0 ||
        options->scheduler >= EMU_SCHED_COUNT)
        goto fail;
    world->options = *options;
    world->observer = *observer;
    world->random = options->seed;
    world->ranks = calloc(options->num_ranks, sizeof *world->ranks);
    if (!world->ranks)
        goto fail;
    for (uint32_t r = 0; r < options->num_ranks; r++) {
        struct emu_rank *rank = &world->ranks[r];

        rank->index = r;
        rank->sms = calloc(options->sms_per_rank, sizeof *rank->sms);
        if (!rank->sms)
            goto fail;
    }
    if (emu_memory_init(world))
        goto fail;
    emu_choose_run_group(world);
    emu_warps_join(world);
    emu_copies_join(world);
    return world;
fail:
    emu_world_destroy(world);
    return NULL;
}

void emu_world_destroy(struct emu_world *world)
{
    if (!world)
        return;
    for (uint32_t r = 0; world->ranks && r < world->options.num_ranks; r++) {
        emu_free_grids(&world->ranks[r]);
        free(world->ranks[r].sms);
    }
    if (world->ranks)
        emu_memory_free(world);
    while (world->kernels) {
        struct emu_kernel *kernel = world->kernels;

        world->kernels = kernel->next;
        emu_kernel_free(kernel);
    }
    free(world->ranks);
    free(world->turns);
    free(world);
}

/* -- rounds ------------------------------------------------------------------------------------ */

static bool any_live(const struct emu_world *world)
{
    for (const struct emu_agent *a = world->agents; a; a = a->next)
        if (a->live(a->self))
            return true;
    return false;
}

/* The first agent that has put something off; NULL: none. */
static const struct emu_agent *find_held(const struct emu_world *world)
{
    for (const struct emu_agent *a = world->agents; a; a = a->next)
        if (a->force && a->live(a->self))
            return a;
    return NULL;
}

/* *wake becomes the time at which the first one goes on by itself. */
static bool all_idle(const struct emu_world *world, enum emu_patience patience, uint64_t *wake)
{
    *wake = UINT64_MAX;
    for (const struct emu_agent *a = world->agents; a; a = a->next)
        if (!a->idle(a->self, patience, wake))
            return false;
    return true;
}

/* What a round without a change means: somebody is still on the way, or everybody waits.  If all
 * but sleepers wait, the first sleeper wakes now; if all wait, what was put off happens. */
static enum emu_progress judge_quiet_round(struct emu_world *world)
{
    const struct emu_agent *held = find_held(world);
    uint64_t wake;

    if (!all_idle(world, held ? EMU_FOR_AGENTS : EMU_FOR_TIME, &wake))
        return EMU_RUNNING;
    /* Deadlines take longer to look for than a group that runs. */
    if (!held && emu_next_deadline(world) == UINT64_MAX && !all_idle(world, EMU_FOR_EVER, &wake))
        return EMU_RUNNING;
    if (wake != UINT64_MAX) {
        if (wake > world->now)
            world->now = wake;
        return EMU_RUNNING;
    }
    if (!held)
        return EMU_STALLED;
    return held->force(held->self) ? EMU_RUNNING : EMU_FAULTED;
}

enum emu_progress emu_step(struct emu_world *world)
{
    enum emu_progress found = EMU_RUNNING;

    if (world->faulted)
        return EMU_FAULTED;
    if (!any_live(world))
        return EMU_IDLE;
    world->round_length = 1;
    for (const struct emu_agent *a = world->agents; a; a = a->next)
        if (!a->step(a->self))
            return EMU_FAULTED;
    world->now += world->round_length;
    if (!world->changed)
        found = judge_quiet_round(world);
    if (world->changed) {
        world->changed = false;
        world->changes++;
    }
    return found;
}

void emu_stall(struct emu_world *world)
{
    if (!world->faulted)
        emu_fault_livelock(world);
}
