/* SPDX-License-Identifier: MIT */
#include "meetings.h"
#include "array.h"
#include "copies.h"

#include <stdlib.h>

/* -- barriers ---------------------------------------------------------------------------------- */

static void open_meeting(struct race_checker *c, struct race_meeting *m)
{
    if (!m->sum)
        m->node = race_history_node(&c->history);
}

void race_bar_arrive(struct race_checker *c, const struct emu_event *e, struct race_cta *cta,
                     struct race_warp *warp)
{
    struct race_meeting *m = &cta->barriers[e->va];

    open_meeting(c, m);
    race_warp_gives(c, warp, &m->sum);
    race_edge_to_node(c, warp, m->node, RACE_EDGE_BAR, e->pc, -1);
    warp->arrived = c->slots[warp->slot].time++;
    m->warps |= 1u << e->warp->index;
}

void race_bar_complete(struct race_checker *c, const struct emu_event *e, struct race_cta *cta)
{
    struct race_meeting *m = &cta->barriers[e->va];

    for (uint32_t left = m->sum ? m->warps : 0; left; left &= left - 1) {
        struct race_warp *warp = e->cta->warps[__builtin_ctz(left)].watched;

        race_warp_set(warp, m->sum);
        race_edge_from_node(c, m->node, warp, RACE_EDGE_BAR, e->pc, -1);
    }
    race_clock_drop(m->sum);
    m->sum = NULL;
    m->warps = 0;
}

/* -- mbarriers --------------------------------------------------------------------------------- */

static struct race_meeting *mbarrier_at(struct race_checker *c, struct race_cta *cta, uint64_t va)
{
    for (uint32_t i = 0; i < cta->num_mbarriers; i++)
        if (cta->mbarriers[i].va == va)
            return &cta->mbarriers[i].meeting;
    if (!race_ok(c, race_room(&cta->mbarriers, cta->num_mbarriers, &cta->max_mbarriers,
                              sizeof *cta->mbarriers)))
        return NULL;
    cta->mbarriers[cta->num_mbarriers] = (struct race_mbarrier){.va = va};
    return &cta->mbarriers[cta->num_mbarriers++].meeting;
}

static void complete_phase(struct race_meeting *m)
{
    race_clock_drop(m->done);
    m->done = m->sum;
    m->done_node = m->node;
    m->sum = NULL;
}

void race_mbarrier_arrive(struct race_checker *c, const struct emu_event *e,
                          struct race_cta *cta, struct race_warp *warp)
{
    struct race_meeting *m = mbarrier_at(c, cta, e->va);
    int lane = __builtin_ctz(e->lanes);
    struct race_token token;

    if (!m)
        return;
    open_meeting(c, m);
    if (race_releases(e->op->sem)) {
        token = race_token_of(c, warp, (unsigned)lane, EMU_SC_CTA, e->pc);
        race_clock_after(c, &m->sum, &token);
        race_clock_drop(token.clock);
        race_edge_to_node(c, warp, m->node, RACE_EDGE_MBAR, e->pc, lane);
        c->slots[warp->slot].time++;
    }
    if (e->completes)
        complete_phase(m);
}

void race_mbarrier_pass(struct race_checker *c, const struct emu_event *e, struct race_cta *cta,
                        struct race_warp *warp)
{
    struct race_meeting *m = mbarrier_at(c, cta, e->va);

    if (!m || !m->done)
        return;
    race_edge_from_node(c, m->done_node, warp, RACE_EDGE_MBAR, e->pc, -1);
    if (race_acquires(e->op->sem))
        race_lanes_join(c, warp, e->lanes, m->done);
}

void race_mbarrier_deliver(struct race_checker *c, const struct emu_event *e, struct race_cta *cta)
{
    struct race_copy *copy = e->copy->watched;
    struct race_meeting *m = mbarrier_at(c, cta, e->va);

    if (!copy || !m)
        return;
    open_meeting(c, m);
    race_copy_end_for(c, &m->sum, copy);
    race_copy_edge(c, copy->read_slot, copy->read_time, m->node, 0, e->pc);
    race_copy_edge(c, copy->write_slot, copy->write_time, m->node, 0, e->pc);
    if (e->completes)
        complete_phase(m);
}
