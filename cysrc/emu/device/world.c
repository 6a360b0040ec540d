/* SPDX-License-Identifier: MIT
 *
 * A world's time and counters, and who acts in it. */
#include "world.h"

uint64_t emu_now(const struct emu_world *world)
{
    return world->now;
}

void emu_advance(struct emu_world *world, uint64_t to)
{
    if (to > world->now)
        world->now = to;
    emu_touch(world);
}

void emu_touch(struct emu_world *world)
{
    world->changes++;
}

bool emu_faulted(const struct emu_world *world)
{
    return world->faulted;
}

void emu_rank_counters(const struct emu_world *world, uint32_t rank, struct emu_counters *out)
{
    *out = world->ranks[rank].counters;
}

void emu_add_agent(struct emu_world *world, struct emu_agent *agent)
{
    struct emu_agent **end = &world->agents;

    while (*end)
        end = &(*end)->next;
    *end = agent;
}
