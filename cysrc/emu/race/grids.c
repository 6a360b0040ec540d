/* SPDX-License-Identifier: MIT */
#include "grids.h"

#include <stdlib.h>

static bool has(const struct emu_kernel *kernel, bool (*is)(const struct emu_instr *op))
{
    for (uint32_t i = 0; i < kernel->num_ops; i++)
        if (is(&kernel->ops[i]))
            return true;
    return false;
}

static bool is_bulk(const struct emu_instr *op)
{
    return op->op == EMU_OP_BULK_LOAD || op->op == EMU_OP_BULK_STORE;
}

static bool is_nc(const struct emu_instr *op)
{
    return op->op == EMU_OP_LD && (op->flags & EMU_F_NC);
}

struct race_grid *race_grid_of(struct race_checker *c, struct emu_grid *grid,
                               struct race_clock *launch)
{
    struct race_grid *g = grid->watched;

    if (g)
        return g;
    g = calloc(1, sizeof *g);
    if (!race_ok(c, g != NULL))
        return NULL;
    g->kernel = grid->kernel;
    g->rank = grid->rank->index;
    g->end_node = race_history_node(&c->history);
    g->next = c->grids;
    c->grids = g;
    if (has(grid->kernel, is_bulk))
        c->extent.num_planes = RACE_PLANES;
    g->launch = launch ? race_clock_hold(launch) : race_clock_new(c->extent);
    if (!race_ok(c, g->launch && race_clock_own(&g->launch, 1, c->extent)))
        return NULL;
    if (!c->options.strict)
        for (uint32_t p = RACE_ORDER + 1; p < RACE_PLANES; p++)
            if (!race_ok(c, race_clock_fence(g->launch, p)))
                return NULL;
    g->has_nc = has(grid->kernel, is_nc);
    if (g->has_nc)
        g->nc_slot = race_slot_take(c, g->rank, NULL, g->launch, &(struct race_tenant){
            .agent = RACE_NC_LOADS, .grid = g});
    grid->watched = g;
    return g;
}

static void begin_warp(struct race_checker *c, const struct emu_event *e, struct race_cta *cta,
                       struct emu_warp *of)
{
    struct race_warp *warp = calloc(1, sizeof *warp);
    struct race_tenant tenant = {
        .agent = RACE_WARP, .cta = e->cta->index, .warp = of->index, .cta_serial = cta->serial,
        .grid = cta->grid,
    };

    if (!race_ok(c, warp != NULL))
        return;
    warp->slot = race_slot_take(c, cta->grid->rank, NULL, cta->grid->launch, &tenant);
    warp->synced = race_now(c, warp) - 1;
    if (cta->grid->launch->node)
        race_edge_from_node(c, cta->grid->launch->node, warp, RACE_EDGE_STREAM, 0, -1);
    warp->together = true;
    for (unsigned l = 0; l < EMU_LANES; l++)
        warp->lanes[l].clock = race_clock_hold(cta->grid->launch);
    of->watched = warp;
}

void race_cta_begin(struct race_checker *c, const struct emu_event *e)
{
    struct race_cta *cta = calloc(1, sizeof *cta);

    if (!race_ok(c, cta != NULL))
        return;
    cta->grid = race_grid_of(c, e->grid, NULL);
    cta->serial = ++c->num_ctas;
    cta->shadow = race_shadow_new(&c->shadows, e->cta->shared_bytes);
    e->cta->watched = cta;
    if (!race_ok(c, cta->grid && cta->shadow))
        return;
    for (uint32_t w = 0; w < e->cta->num_warps; w++)
        begin_warp(c, e, cta, &e->cta->warps[w]);
}

static void free_warp(struct race_warp *warp)
{
    for (unsigned l = 0; l < EMU_LANES; l++) {
        struct race_lane *lane = &warp->lanes[l];

        race_clock_drop(lane->clock);
        race_clock_drop(lane->fence.clock);
        for (uint32_t i = 0; i < lane->num_got; i++)
            race_clock_drop(lane->got[i].clock);
        free(lane->got);
        for (uint32_t i = 0; i < lane->num_seen; i++)
            race_clock_drop(lane->seen[i].token.clock);
        free(lane->seen);
    }
    free(warp->stores);
    free(warp->copies.of);
    free(warp);
}

void race_cta_free(struct emu_cta *emu_cta)
{
    struct race_cta *cta = emu_cta->watched;

    if (!cta)
        return;
    for (uint32_t w = 0; w < emu_cta->num_warps; w++)
        if (emu_cta->warps[w].watched)
            free_warp(emu_cta->warps[w].watched);
    for (uint32_t i = 0; i < EMU_NUM_BARRIERS; i++)
        race_clock_drop(cta->barriers[i].sum);
    for (uint32_t i = 0; i < cta->num_mbarriers; i++) {
        race_clock_drop(cta->mbarriers[i].meeting.sum);
        race_clock_drop(cta->mbarriers[i].meeting.done);
    }
    free(cta->mbarriers);
    race_shadow_free(cta->shadow);
    free(cta);
    emu_cta->watched = NULL;
}

void race_cta_end(struct race_checker *c, const struct emu_event *e, struct race_cta *cta)
{
    struct race_slots *to = &c->free_slots[cta->grid->rank];

    for (uint32_t w = 0; w < e->cta->num_warps; w++) {
        struct race_warp *warp = e->cta->warps[w].watched;

        race_warp_gives(c, warp, &cta->grid->end);
        race_edge_to_node(c, warp, cta->grid->end_node, RACE_EDGE_STREAM, 0, -1);
        race_slot_leave(c, to, warp->slot);
        for (uint32_t i = 0; i < warp->copies.num; i++)
            race_slot_leave(c, to, warp->copies.of[i]);
    }
    race_cta_free(e->cta);
}
