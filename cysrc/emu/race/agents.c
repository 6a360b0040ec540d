/* SPDX-License-Identifier: MIT */
#include "agents.h"
#include "array.h"

#include <stdlib.h>
#include <string.h>

#define MOST_LOOKED_AT 32                /* free slots, for one that may be given out         */
#define SLOT_GRAIN 64                    /* clocks have room for a multiple of that           */

/* -- slots ------------------------------------------------------------------------------------- */

/* A slot's next agent is taken for its last one that has gone on: so it has to come after that. */
static bool find_free(const struct race_checker *c, struct race_slots *from,
                      const struct race_clock *after, uint32_t *slot)
{
    uint32_t looked = 0;

    for (uint32_t i = from->num; i-- > 0 && looked++ < MOST_LOOKED_AT;)
        if (race_clock_knows_all(after, RACE_ORDER, from->of[i], c->slots[from->of[i]].time)) {
            *slot = from->of[i];
            from->of[i] = from->of[--from->num];
            return true;
        }
    return false;
}

static bool new_slot(struct race_checker *c, uint32_t rank, uint32_t *slot)
{
    if (!race_room(&c->slots, c->num_slots, &c->max_slots, sizeof *c->slots))
        return false;
    *slot = c->num_slots++;
    c->slots[*slot] = (struct race_slot){.rank = rank};
    c->extent.num_slots = (c->num_slots + SLOT_GRAIN - 1) / SLOT_GRAIN * SLOT_GRAIN;
    return true;
}

static bool is_same(const struct race_tenant *a, const struct race_tenant *b)
{
    return a->agent == b->agent && a->cta == b->cta && a->warp == b->warp &&
           a->cta_serial == b->cta_serial && a->grid == b->grid;
}

static bool add_tenant(struct race_slot *slot, const struct race_tenant *tenant)
{
    /* One copy of a warp after another. */
    if (slot->num && is_same(&slot->tenants[slot->num - 1], tenant))
        return true;
    if (!race_room(&slot->tenants, slot->num, &slot->max, sizeof *slot->tenants))
        return false;
    slot->tenants[slot->num] = *tenant;
    slot->tenants[slot->num++].since = slot->time;
    return true;
}

uint32_t race_slot_take(struct race_checker *c, uint32_t rank, struct race_slots *first,
                        const struct race_clock *after, const struct race_tenant *tenant)
{
    uint32_t slot = 0;

    if (!(first && find_free(c, first, after, &slot)) &&
        !(after && find_free(c, &c->free_slots[rank], after, &slot)) &&
        !race_ok(c, new_slot(c, rank, &slot)))
        return 0;
    c->slots[slot].time++;
    c->slots[slot].host = !tenant->grid;
    race_ok(c, add_tenant(&c->slots[slot], tenant));
    return slot;
}

void race_slot_leave(struct race_checker *c, struct race_slots *to, uint32_t slot)
{
    if (race_ok(c, race_room(&to->of, to->num, &to->max, sizeof *to->of)))
        to->of[to->num++] = slot;
}

const struct race_tenant *race_tenant_at(const struct race_checker *c, uint32_t slot, uint32_t time)
{
    const struct race_slot *s = &c->slots[slot];
    uint32_t low = 0, high = s->num;

    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;

        if (s->tenants[middle].since <= time)
            low = middle;
        else
            high = middle;
    }
    return &s->tenants[low];
}

/* -- clocks of lanes --------------------------------------------------------------------------- */

/* Those of `lanes` that have the clock of the first of them. */
static uint32_t alike(const struct race_warp *warp, uint32_t lanes)
{
    const struct race_clock *clock = warp->lanes[__builtin_ctz(lanes)].clock;
    uint32_t same = 0;

    for (uint32_t left = lanes; left; left &= left - 1)
        if (warp->lanes[__builtin_ctz(left)].clock == clock)
            same |= left & -left;
    return same;
}

/* The clock of `lanes`, which are alike, for them alone.  NULL: no memory. */
static struct race_clock *own(struct race_checker *c, struct race_warp *warp, uint32_t lanes)
{
    struct race_clock *clock = warp->lanes[__builtin_ctz(lanes)].clock;

    if (!race_ok(c, race_clock_own(&clock, __builtin_popcount(lanes), c->extent)))
        return NULL;
    for (uint32_t left = lanes; left; left &= left - 1)
        warp->lanes[__builtin_ctz(left)].clock = clock;
    return clock;
}

static void note_whether_together(struct race_warp *warp)
{
    warp->together = warp->lanes[0].num_got == 0;
    for (unsigned l = 1; l < EMU_LANES; l++)
        warp->together &= warp->lanes[l].clock == warp->lanes[0].clock &&
                          warp->lanes[l].num_got == 0;
}

/* Whether the clock is after the token.  Who comes after a release comes after all that it does; in
 * the other planes, only by a way on which the same proxy fences lie. */
static bool is_after(const struct race_clock *clock, const struct race_token *token)
{
    return race_clock_knows_all(clock, RACE_ORDER, token->slot, token->synced) &&
           race_clock_knows(clock, RACE_ORDER, token->slot, token->lane, token->time) &&
           (token->clock->num_planes == 1 || race_clock_covers(clock, token->clock));
}

bool race_token_is_after(const struct race_token *token, const struct race_token *other)
{
    return token->clock && is_after(token->clock, other);
}

static bool go_after(struct race_clock *clock, const struct race_token *token)
{
    if (!race_clock_covers(clock, token->clock) && !race_clock_join(clock, token->clock))
        return false;
    race_clock_note(clock, RACE_ORDER, token->slot, token->synced);
    return race_clock_note_lane(clock, RACE_ORDER, token->slot, token->lane, token->time);
}

static void forget_got(struct race_lane *lane)
{
    for (uint32_t i = 0; i < lane->num_got; i++)
        race_clock_drop(lane->got[i].clock);
    lane->num_got = 0;
}

/* What the lanes have got goes into their clocks. */
static void settle(struct race_checker *c, struct race_warp *warp, uint32_t lanes)
{
    bool any = false;

    if (warp->together)
        return;
    for (uint32_t left = lanes; left; left &= left - 1) {
        struct race_lane *lane = &warp->lanes[__builtin_ctz(left)];

        for (uint32_t i = 0; i < lane->num_got; i++) {
            struct race_clock *mine;

            if (is_after(lane->clock, &lane->got[i]))
                continue;
            mine = own(c, warp, left & -left);
            if (!mine || !race_ok(c, go_after(mine, &lane->got[i])))
                return;
        }
        any |= lane->num_got != 0;
        forget_got(lane);
    }
    if (any)
        note_whether_together(warp);
}

/* All that the lanes come after, joined into *sum, which its holder owns.  False: no memory. */
static bool gather(struct race_checker *c, const struct race_warp *warp, uint32_t lanes,
                   struct race_clock **sum)
{
    for (uint32_t left = lanes; left;) {
        uint32_t same = alike(warp, left);
        const struct race_clock *mine = warp->lanes[__builtin_ctz(same)].clock;

        left &= ~same;
        if (!race_clock_covers(*sum, mine) &&
            (!race_clock_own(sum, 1, c->extent) || !race_clock_join(*sum, mine)))
            return false;
    }
    for (; lanes && !warp->together; lanes &= lanes - 1) {
        const struct race_lane *lane = &warp->lanes[__builtin_ctz(lanes)];

        for (uint32_t i = 0; i < lane->num_got; i++)
            if (!is_after(*sum, &lane->got[i]) &&
                (!race_clock_own(sum, 1, c->extent) || !go_after(*sum, &lane->got[i])))
                return false;
    }
    return true;
}

void race_lanes_join(struct race_checker *c, struct race_warp *warp, uint32_t lanes,
                     const struct race_clock *clock)
{
    settle(c, warp, lanes);
    while (lanes) {
        uint32_t same = alike(warp, lanes);
        struct race_clock *mine = warp->lanes[__builtin_ctz(same)].clock;

        lanes &= ~same;
        if (race_clock_covers(mine, clock))
            continue;
        mine = own(c, warp, same);
        if (!mine || !race_ok(c, race_clock_join(mine, clock)))
            return;
    }
    note_whether_together(warp);
}

#define MOST_GOT 16                      /* tokens that a lane has beside its clock           */

void race_lane_after(struct race_checker *c, struct race_warp *warp, unsigned l,
                     const struct race_token *token)
{
    struct race_lane *lane = &warp->lanes[l];

    if (is_after(lane->clock, token))
        return;
    for (uint32_t i = 0; i < lane->num_got; i++)
        if (lane->got[i].slot == token->slot && lane->got[i].lane == token->lane &&
            lane->got[i].time == token->time && lane->got[i].clock == token->clock)
            return;
    if (lane->num_got == MOST_GOT)
        settle(c, warp, 1u << l);
    if (!race_ok(c, race_room(&lane->got, lane->num_got, &lane->max_got, sizeof *lane->got)))
        return;
    lane->got[lane->num_got++] = *token;
    race_clock_hold(token->clock);
    warp->together = false;
}

void race_clock_after(struct race_checker *c, struct race_clock **clock,
                      const struct race_token *token)
{
    if (!*clock && !race_ok(c, (*clock = race_clock_new(c->extent)) != NULL))
        return;
    if (race_ok(c, race_clock_own(clock, 1, c->extent)))
        race_ok(c, go_after(*clock, token));
}

/* -- proxy fences ------------------------------------------------------------------------------ */

void race_lanes_fence_proxy(struct race_checker *c, struct race_warp *warp, uint32_t lanes,
                            enum race_plane plane)
{
    uint32_t time = c->slots[warp->slot].time;

    settle(c, warp, lanes);
    warp->fenced = true;
    for (uint32_t left = lanes; left; left &= left - 1) {
        warp->own[plane][__builtin_ctz(left)] = time;
        warp->all[plane][__builtin_ctz(left)] = warp->synced;
    }
    while (lanes) {
        uint32_t same = alike(warp, lanes);
        struct race_clock *mine = warp->lanes[__builtin_ctz(same)].clock;

        lanes &= ~same;
        if (race_clock_is_fenced(mine, plane))
            continue;
        mine = own(c, warp, same);
        if (!mine || !race_ok(c, race_clock_fence(mine, plane)))
            return;
    }
    note_whether_together(warp);
}

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

uint32_t race_warp_fenced(const struct race_warp *warp, enum race_plane plane, int lane,
                          uint32_t lanes[EMU_LANES])
{
    uint32_t whole = warp->known_all[plane];

    for (unsigned l = 0; l < EMU_LANES; l++) {
        bool own = lane < 0 || (unsigned)lane == l;

        if (own)
            whole = larger(whole, warp->all[plane][l]);
        lanes[l] = own ? warp->own[plane][l] : warp->known_own[plane][l];
    }
    return whole;
}

static bool note_fenced(const struct race_warp *warp, struct race_clock *clock, int lane)
{
    for (uint32_t p = RACE_ORDER + 1; p < RACE_PLANES; p++) {
        uint32_t lanes[EMU_LANES], whole = race_warp_fenced(warp, p, lane, lanes);

        race_clock_note(clock, p, warp->slot, whole);
        for (unsigned l = 0; l < EMU_LANES; l++)
            if (lanes[l] > whole && !race_clock_note_lane(clock, p, warp->slot, l, lanes[l]))
                return false;
    }
    return true;
}

static void learn_fences(struct race_warp *warp)
{
    for (uint32_t p = RACE_ORDER + 1; p < RACE_PLANES; p++) {
        memcpy(warp->known_own[p], warp->own[p], sizeof warp->own[p]);
        for (unsigned l = 0; l < EMU_LANES; l++)
            warp->known_all[p] = larger(warp->known_all[p], warp->all[p][l]);
    }
}

/* -- what others get --------------------------------------------------------------------------- */

struct race_clock *race_lane_clock(struct race_checker *c, struct race_warp *warp, unsigned lane)
{
    settle(c, warp, 1u << lane);
    return warp->lanes[lane].clock;
}

struct race_token race_token_of(struct race_checker *c, struct race_warp *warp, unsigned lane,
                                uint8_t scope, uint32_t pc)
{
    struct race_clock *clock = race_clock_hold(race_lane_clock(c, warp, lane));

    if (warp->fenced && race_ok(c, race_clock_own(&clock, 1, c->extent)))
        race_ok(c, note_fenced(warp, clock, (int)lane));
    return (struct race_token){
        .clock = clock, .slot = warp->slot, .time = c->slots[warp->slot].time,
        .synced = warp->synced, .lane = (uint8_t)lane, .scope = scope, .pc = pc,
    };
}

void race_warp_gives(struct race_checker *c, struct race_warp *warp, struct race_clock **sum)
{
    if (!*sum && !race_ok(c, (*sum = race_clock_new(c->extent)) != NULL))
        return;
    if (!race_ok(c, gather(c, warp, EMU_ALL_LANES, sum)) ||
        !race_ok(c, race_clock_own(sum, 1, c->extent)))
        return;
    race_clock_note(*sum, RACE_ORDER, warp->slot, c->slots[warp->slot].time);
    if (warp->fenced)
        race_ok(c, note_fenced(warp, *sum, -1));
}

void race_warp_set(struct race_warp *warp, struct race_clock *clock)
{
    for (unsigned l = 0; l < EMU_LANES; l++) {
        struct race_lane *lane = &warp->lanes[l];

        race_clock_hold(clock);
        race_clock_drop(lane->clock);
        lane->clock = clock;
        forget_got(lane);
    }
    warp->together = true;
    warp->synced = warp->arrived;
    learn_fences(warp);
}

void race_warp_meet(struct race_checker *c, struct race_warp *warp, uint32_t live)
{
    struct race_clock *clock;

    warp->arrived = c->slots[warp->slot].time++;
    if (warp->together) {
        warp->synced = warp->arrived;
        learn_fences(warp);
        return;
    }
    clock = race_clock_hold(warp->lanes[__builtin_ctz(live)].clock);
    if (race_ok(c, gather(c, warp, live, &clock)))
        race_warp_set(warp, clock);
    race_clock_drop(clock);
}

void race_lanes_meet(struct race_checker *c, struct race_warp *warp, uint32_t lanes, uint32_t pc)
{
    struct race_token tokens[EMU_LANES];
    unsigned n = 0;

    for (uint32_t left = lanes; left; left &= left - 1)
        tokens[n++] = race_token_of(c, warp, __builtin_ctz(left), EMU_SC_CTA, pc);
    for (unsigned i = 0; i < n; i++) {
        for (uint32_t left = lanes; left; left &= left - 1)
            race_lane_after(c, warp, __builtin_ctz(left), &tokens[i]);
        race_clock_drop(tokens[i].clock);
    }
    c->slots[warp->slot].time++;
}

/* -- what is known ----------------------------------------------------------------------------- */

/* Whether the token's clock, or the token itself, is after what the lanes did. */
static bool token_knows_lanes(const struct race_token *token, const struct race_mark *mark,
                              uint32_t lanes)
{
    if (token->slot == mark->slot &&
        (mark->time <= token->synced || (mark->time <= token->time && lanes == 1u << token->lane)))
        return true;
    return race_clock_knows_mark(token->clock, RACE_ORDER, mark, lanes);
}

/* Each of the lanes may be known by another way. */
static bool knows_lanes(const struct race_lane *lane, const struct race_mark *mark, uint32_t lanes)
{
    if (race_clock_knows_mark(lane->clock, RACE_ORDER, mark, lanes))
        return true;
    if (!lane->num_got)
        return false;
    do {
        uint32_t one = mark->flags & (RACE_ASYNC | RACE_HOST | RACE_NC) ? lanes : lanes & -lanes;
        bool known = race_clock_knows_mark(lane->clock, RACE_ORDER, mark, one);

        for (uint32_t i = 0; i < lane->num_got && !known; i++)
            known = token_knows_lanes(&lane->got[i], mark, one);
        if (!known)
            return false;
        lanes &= ~one;
    } while (lanes);
    return true;
}

bool race_lanes_know(const struct race_warp *warp, uint32_t lanes, const struct race_mark *mark,
                     uint32_t mark_lanes)
{
    if (mark->slot == warp->slot) {
        if (mark->time <= warp->synced)
            return true;
        for (uint32_t left = lanes; left; left &= left - 1) {
            uint32_t others = mark_lanes & ~(left & -left);

            if (others && !knows_lanes(&warp->lanes[__builtin_ctz(left)], mark, others))
                return false;
        }
        return true;
    }
    if (warp->together)
        return race_clock_knows_mark(warp->lanes[0].clock, RACE_ORDER, mark, mark_lanes);
    for (uint32_t left = lanes; left; left &= left - 1)
        if (!knows_lanes(&warp->lanes[__builtin_ctz(left)], mark, mark_lanes))
            return false;
    return true;
}
