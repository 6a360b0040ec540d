/* SPDX-License-Identifier: MIT */
#include "order.h"
#include "grids.h"

#include <stdlib.h>

struct race_order *race_order_new(struct race_checker *c, uint32_t rank, bool is_stream)
{
    struct race_order *order;

    if (!c || !race_ok(c, (order = calloc(1, sizeof *order)) != NULL))
        return NULL;
    order->slot = race_slot_take(c, rank, NULL, NULL, &(struct race_tenant){
        .agent = is_stream ? RACE_STREAM : RACE_HOST_THREAD});
    order->clock = race_clock_new(c->extent);
    if (!race_ok(c, order->clock != NULL)) {
        free(order);
        return NULL;
    }
    return order;
}

void race_order_free(struct race_order *order)
{
    if (!order)
        return;
    race_clock_drop(order->clock);
    free(order);
}

struct race_clock *race_order_now(struct race_checker *c, struct race_order *order)
{
    if (!c || c->failed || !order ||
        !race_ok(c, race_clock_own(&order->clock, 1, c->extent)))
        return NULL;
    race_clock_note(order->clock, RACE_ORDER, order->slot, c->slots[order->slot].time++);
    return race_clock_hold(order->clock);
}

/* A place in the history that is behind both; 0: neither is a place. */
static uint32_t join_nodes(struct race_checker *c, uint32_t a, uint32_t b)
{
    uint32_t node, ends[2] = {a, b};

    if (!a || !b || a == b)
        return a ? a : b;
    node = race_history_node(&c->history);
    for (unsigned i = 0; i < 2; i++)
        race_note_edge(c, &(struct race_edge){
            .from = ends[i], .from_lane = -1, .to = node, .to_lane = -1,
            .kind = RACE_EDGE_STREAM,
        });
    return node;
}

static void join_into(struct race_checker *c, struct race_clock **clock,
                      const struct race_clock *other)
{
    if (!c || c->failed || !other)
        return;
    if (!*clock && !race_ok(c, (*clock = race_clock_new(c->extent)) != NULL))
        return;
    if (race_clock_covers(*clock, other) || !race_ok(c, race_clock_own(clock, 1, c->extent)))
        return;
    race_ok(c, race_clock_join(*clock, other));
    (*clock)->node = join_nodes(c, (*clock)->node, other->node);
}

void race_order_after(struct race_checker *c, struct race_order *order,
                      const struct race_clock *clock)
{
    if (order)
        join_into(c, &order->clock, clock);
}

void race_order_give(struct race_checker *c, struct race_order *other, struct race_clock **clock)
{
    struct race_clock *now = race_order_now(c, other);

    join_into(c, clock, now);
    race_clock_drop(now);
}

void race_order_follow(struct race_checker *c, struct race_order *order, struct race_order *other)
{
    if (order)
        race_order_give(c, other, &order->clock);
}

void race_clock_release(struct race_clock *clock)
{
    race_clock_drop(clock);
}

void race_order_acquire(struct race_checker *c, struct race_order *order,
                        const struct race_block *block, unsigned at)
{
    const struct race_word *word = block->words ? block->words[at / 4] : NULL;
    bool reaches = false;

    if (!word)
        return;
    for (uint32_t i = 0; i < word->num; i++)
        if (word->tokens[i].scope == EMU_SC_SYS) {
            race_clock_after(c, &order->clock, &word->tokens[i]);
            reaches = true;
        }
    race_note_edge(c, &(struct race_edge){
        .from = word->last.slot, .from_time = word->last.time, .from_pc = word->last.pc,
        .from_lane = (int8_t)__builtin_ctz(word->last.lanes), .to = order->slot,
        .to_time = c->slots[order->slot].time, .to_lane = -1, .kind = RACE_EDGE_WORD,
        .lacks = reaches ? 0 : word->num ? RACE_LACKS_SCOPE : RACE_LACKS_RELEASE,
    });
}

void race_act_for(struct race_checker *c, struct race_order *order)
{
    if (c)
        c->actor = order;
}

void race_launch(struct race_checker *c, struct emu_grid *grid, struct race_order *order)
{
    struct race_clock *now = race_order_now(c, order);

    if (now)
        race_grid_of(c, grid, now);
    race_clock_drop(now);
}

void race_finish(struct race_checker *c, struct emu_grid *grid, struct race_order *order)
{
    struct race_grid *g = grid->watched;

    if (!c || c->failed || !g)
        return;
    if (g->has_nc && g->end && race_ok(c, race_clock_own(&g->end, 1, c->extent))) {
        race_clock_note(g->end, RACE_ORDER, g->nc_slot, c->slots[g->nc_slot].time);
        race_slot_leave(c, &c->free_slots[g->rank], g->nc_slot);
    }
    if (g->end)
        g->end->node = g->end_node;
    race_order_after(c, order, g->end);
    race_clock_drop(g->end);
    race_clock_drop(g->launch);
    g->end = g->launch = NULL;
}
