/* SPDX-License-Identifier: MIT */
#include "sync.h"
#include "fault.h"
#include "observe.h"
#include "warp.h"

static uint32_t lane_value(const struct emu_exec *x, int32_t operand, unsigned lane)
{
    return ((const uint32_t *)emu_operand(x, operand))[lane];
}

static int wait_here(struct emu_exec *x, enum emu_state state)
{
    x->group->state = state;
    return EMU_RUN_BLOCKED;
}

/* -- .sync warp operations --------------------------------------------------------------------- */

/* Whether a waiting group and this one meet: the same instruction and mask; bar.warp.sync meets
 * any bar.warp.sync of the same mask. */
static bool meets(const struct emu_exec *x, const struct emu_instr *op, const struct emu_group *g,
                  uint32_t member)
{
    return g->state == EMU_WAIT_WARP && g->member == member &&
           (g->pc == x->pc || (op->op == EMU_OP_BAR_WARP &&
                               x->kernel->ops[g->pc].op == EMU_OP_BAR_WARP));
}

int emu_sync_members(struct emu_exec *x, const struct emu_instr *op)
{
    struct emu_warp *warp = x->warp;
    struct emu_group *self = x->group;
    uint32_t member = lane_value(x, op->src[3], __builtin_ctz(x->mask));
    uint32_t same = 0, needed = member & warp->live, off = self->mask & ~x->mask, present;

    for (uint32_t left = x->mask; left; left &= left - 1) {
        unsigned lane = __builtin_ctz(left);
        uint32_t named = lane_value(x, op->src[3], lane);

        if (!(named >> lane & 1))
            return emu_fault_lane(x, "mask-mismatch", lane, -1,
                                  "lane %u is not in the mask %#x that it names", lane, named);
        if (named == member)
            same |= 1u << lane;
        else if (member >> lane & 1)
            return emu_fault_lane(x, "mask-mismatch", lane, -1,
                                  "lane %u names mask %#x, other lanes of that mask name %#x",
                                  lane, named, member);
    }
    if (off & needed)
        return emu_fault_lane(x, "mask-mismatch", __builtin_ctz(off & needed), -1,
                              "mask %#x has lanes %#x whose guard predicate is false", member,
                              off & needed);
    if (same != x->mask) {
        emu_group_split(warp, self, x->mask & ~same, x->pc);
        x->mask = same;
    }
    present = same;
    for (uint32_t i = 0; i < warp->num_groups && (present & needed) != needed; i++) {
        const struct emu_group *g = &warp->groups[i];

        if (g == self || !g->mask || g->state != EMU_WAIT_WARP)
            continue;
        if (meets(x, op, g, member))
            present |= g->mask;
        else if ((g->mask & needed) && (g->member & x->mask))
            return emu_fault_lane(x, "mask-mismatch", __builtin_ctz(x->mask), g->pc,
                                  "lanes %#x name mask %#x here and wait for lanes %#x, which "
                                  "name mask %#x elsewhere", x->mask, member, g->mask, g->member);
    }
    if ((present & needed) != needed) {
        if (off)
            emu_group_split(warp, self, off, x->pc + 1);
        self->member = member;
        return wait_here(x, EMU_WAIT_WARP);
    }
    for (uint32_t i = 0; i < warp->num_groups && x->mask != needed; i++) {
        struct emu_group *g = &warp->groups[i];

        if (g == self || !g->mask || !meets(x, op, g, member))
            continue;
        if (g->pc == x->pc) {
            x->mask |= g->mask;
            emu_group_merge(self, g);
        } else {
            needed &= ~g->mask;
            g->state = EMU_READY;
            g->pc++;
        }
    }
    return EMU_RUN_ON;
}

/* -- CTA barriers ------------------------------------------------------------------------------ */

static void release(struct emu_cta *cta, uint32_t id)
{
    for (uint32_t w = 0; w < cta->num_warps; w++)
        for (uint32_t i = 0; i < cta->warps[w].num_groups; i++) {
            struct emu_group *g = &cta->warps[w].groups[i];

            if (g->mask && g->state == EMU_WAIT_BARRIER && g->barrier == id) {
                g->state = EMU_READY;
                g->pc++;
            }
        }
    cta->barriers[id].arrived = 0;
    cta->barriers[id].expected = 0;
}

/* A warp arrives as one: its lanes come together first. */
static int gather_warp(struct emu_exec *x)
{
    struct emu_warp *warp = x->warp;
    struct emu_group *self = x->group;
    uint32_t off = self->mask & ~x->mask;

    if (off)
        return emu_fault_lane(x, "barrier", __builtin_ctz(off), -1,
                              "lanes %#x of the warp skip bar.sync because their guard is false, "
                              "lanes %#x execute it", off, x->mask);
    for (uint32_t i = 0; i < warp->num_groups; i++) {
        const struct emu_group *g = &warp->groups[i];

        if (g != self && g->mask && g->state == EMU_WAIT_GATHER && g->pc != x->pc)
            return emu_fault_lane(x, "barrier", __builtin_ctz(x->mask), g->pc,
                                  "lanes %#x and %#x of one warp are at different bar.sync",
                                  x->mask, g->mask);
    }
    for (uint32_t i = 0; i < warp->num_groups; i++) {
        struct emu_group *g = &warp->groups[i];

        if (g != self && g->mask && g->state == EMU_WAIT_GATHER) {
            x->mask |= g->mask;
            emu_group_merge(self, g);
        }
    }
    return x->mask == warp->live ? EMU_RUN_ON : wait_here(x, EMU_WAIT_GATHER);
}

int emu_sync_barrier(struct emu_exec *x, const struct emu_instr *op)
{
    struct emu_cta *cta = x->cta;
    uint32_t id, count;
    unsigned first;
    int end = gather_warp(x);

    if (end != EMU_RUN_ON)
        return end;
    first = __builtin_ctz(x->mask);
    id = lane_value(x, op->src[0], first);
    count = op->has_count ? lane_value(x, op->src[1], first) : cta->num_warps * EMU_LANES;
    for (uint32_t left = x->mask; left; left &= left - 1) {
        unsigned lane = __builtin_ctz(left);

        if (lane_value(x, op->src[0], lane) != id ||
            (op->has_count && lane_value(x, op->src[1], lane) != count))
            return emu_fault_lane(x, "barrier", lane, -1,
                                  "lanes %u and %u name different barriers or thread counts",
                                  first, lane);
    }
    if (id >= EMU_NUM_BARRIERS)
        return emu_fault_lane(x, "barrier", first, -1, "barrier %u: there are %u", id,
                              EMU_NUM_BARRIERS);
    if (count == 0 || count % EMU_LANES || count > cta->num_warps * EMU_LANES)
        return emu_fault_lane(x, "barrier", first, -1,
                              "thread count %u of barrier %u is not a multiple of %u in [%u, %u]",
                              count, id, EMU_LANES, EMU_LANES, cta->num_warps * EMU_LANES);

    struct emu_barrier *barrier = &cta->barriers[id];

    if (barrier->expected && barrier->expected != count)
        return emu_fault_lane(x, "barrier", first, barrier->pc,
                              "barrier %u is entered with thread count %u here, %u elsewhere", id,
                              count, barrier->expected);
    barrier->expected = count;
    barrier->pc = x->pc;
    barrier->arrived += EMU_LANES;
    emu_tell_lanes(x, EMU_EVENT_BAR_ARRIVE, op, x->mask, id);
    if (barrier->arrived == count) {
        release(cta, id);
        emu_tell_lanes(x, EMU_EVENT_BAR_COMPLETE, op, x->mask, id);
        return EMU_RUN_ON;
    }
    x->group->barrier = id;
    return wait_here(x, EMU_WAIT_BARRIER);
}
