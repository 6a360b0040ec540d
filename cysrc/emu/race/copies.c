/* SPDX-License-Identifier: MIT */
#include "copies.h"
#include "array.h"

#include <stdlib.h>

void race_copy_note(struct race_clock *clock, uint32_t slot, uint32_t time)
{
    for (uint32_t p = 0; p < RACE_PLANES; p++)
        race_clock_note(clock, p, slot, time);
}

/* A copy's end is a proxy fence, too: its accesses come before in every plane. */
void race_copy_end_for(struct race_checker *c, struct race_clock **clock,
                       const struct race_copy *copy)
{
    if (!*clock && !race_ok(c, (*clock = race_clock_new(c->extent)) != NULL))
        return;
    if (!race_ok(c, race_clock_own(clock, 1, c->extent)))
        return;
    race_copy_note(*clock, copy->read_slot, copy->read_time);
    race_copy_note(*clock, copy->write_slot, copy->write_time);
}

void race_copy_edge(struct race_checker *c, uint32_t slot, uint32_t time, uint32_t to,
                    uint32_t to_time, uint32_t pc)
{
    race_note_edge(c, &(struct race_edge){
        .from = slot, .from_time = time, .from_pc = pc, .from_lane = -1, .to = to,
        .to_time = to_time, .to_pc = pc, .to_lane = -1, .kind = RACE_EDGE_COPY,
    });
}

static void add_store(struct race_checker *c, struct race_warp *warp, const struct emu_copy *copy,
                      const struct race_copy *own)
{
    if (!race_ok(c, race_room(&warp->stores, warp->num_stores, &warp->max_stores,
                              sizeof *warp->stores)))
        return;
    warp->stores[warp->num_stores++] = (struct race_stores){
        .group = copy->group, .lane = copy->lane, .read_slot = own->read_slot,
        .read_time = own->read_time, .write_slot = own->write_slot, .write_time = own->write_time,
    };
}

void race_copy_issue(struct race_checker *c, const struct emu_event *e, struct race_cta *cta,
                     struct race_warp *warp)
{
    struct race_copy *copy = calloc(1, sizeof *copy);
    struct race_tenant tenant = {
        .agent = RACE_COPY, .cta = e->cta->index, .warp = e->warp->index,
        .cta_serial = cta->serial, .grid = cta->grid,
    };

    if (!race_ok(c, copy != NULL))
        return;
    copy->lane = (uint8_t)__builtin_ctz(e->lanes);
    copy->clock = race_clock_hold(race_lane_clock(c, warp, copy->lane));
    copy->issuer = warp->slot;
    copy->issued = race_now(c, warp);
    copy->synced = warp->synced;
    for (uint32_t p = RACE_ORDER + 1; p < RACE_PLANES; p++)
        copy->whole[p] = race_warp_fenced(warp, p, copy->lane, copy->lanes[p]);
    copy->read_slot = race_slot_take(c, cta->grid->rank, &warp->copies, copy->clock, &tenant);
    copy->read_time = c->slots[copy->read_slot].time;
    copy->write_slot = copy->read_slot;  /* a load's accesses are over at the same time       */
    if (!e->copy->load)
        copy->write_slot = race_slot_take(c, cta->grid->rank, &warp->copies, copy->clock,
                                          &tenant);
    copy->write_time = c->slots[copy->write_slot].time;
    e->copy->watched = copy;
    if (!e->copy->load)
        add_store(c, warp, e->copy, copy);
    c->slots[warp->slot].time++;         /* what the lane does next is not before it          */
}

void race_copy_free(struct emu_copy *emu_copy)
{
    struct race_copy *copy = emu_copy->watched;

    if (copy)
        race_clock_drop(copy->clock);
    free(copy);
    emu_copy->watched = NULL;
}

void race_copy_end(struct race_checker *c, const struct emu_event *e)
{
    struct race_copy *copy = e->copy->watched;
    struct race_grid *grid = e->grid->watched;
    struct race_warp *warp = e->cta ? e->cta->warps[e->copy->warp].watched : NULL;
    struct race_slots *to = warp ? &warp->copies : &c->free_slots[grid->rank];

    if (!copy)
        return;
    race_copy_end_for(c, &grid->end, copy);
    race_copy_edge(c, copy->read_slot, copy->read_time, grid->end_node, 0, e->pc);
    race_copy_edge(c, copy->write_slot, copy->write_time, grid->end_node, 0, e->pc);
    race_slot_leave(c, to, copy->read_slot);
    if (copy->write_slot != copy->read_slot)
        race_slot_leave(c, to, copy->write_slot);
    race_copy_free(e->copy);
}

void race_groups_waited(struct race_checker *c, const struct emu_event *e,
                        struct race_warp *warp)
{
    struct race_clock *clock = NULL;
    bool read_only = e->op->sub == EMU_BULK_READ;
    uint32_t kept = 0, lanes = 0;

    for (uint32_t i = 0; i < warp->num_stores; i++) {
        struct race_stores *s = &warp->stores[i];
        bool over = (e->lanes >> s->lane & 1) &&
                    s->group + (uint64_t)e->op->imm < e->warp->bulk_groups[s->lane];

        if (!over || read_only)
            warp->stores[kept++] = *s;
        if (!over)
            continue;
        if (!clock && !race_ok(c, (clock = race_clock_new(c->extent)) != NULL))
            return;
        lanes |= 1u << s->lane;
        race_copy_note(clock, s->read_slot, s->read_time);
        race_copy_edge(c, s->read_slot, s->read_time, warp->slot, race_now(c, warp), e->pc);
        if (!read_only) {
            race_copy_note(clock, s->write_slot, s->write_time);
            race_copy_edge(c, s->write_slot, s->write_time, warp->slot, race_now(c, warp), e->pc);
        }
    }
    warp->num_stores = kept;
    if (!clock)
        return;
    /* Lanes wait each for their own copies; where several did, each gets the others' too. */
    race_lanes_join(c, warp, lanes, clock);
    race_clock_drop(clock);
}
