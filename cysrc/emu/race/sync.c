/* SPDX-License-Identifier: MIT */
#include "sync.h"

#include <stdlib.h>
#include <string.h>

#define MOST_SEEN 64                     /* strong stores that a lane keeps for its next fence */

static uint32_t now_of(const struct race_checker *c, const struct race_warp *warp)
{
    return c->slots[warp->slot].time;
}

static void add_edge(struct race_checker *c, const struct race_edge *edge)
{
    if (c->options.reports)
        race_ok(c, race_history_add(&c->history, edge));
}

/* -- scopes ------------------------------------------------------------------------------------ */

/* Whether a scope that the one agent names includes the other. */
static bool includes(const struct race_checker *c, uint8_t scope, uint32_t slot, uint32_t time,
                     uint32_t other, uint32_t other_time)
{
    if (scope == EMU_SC_SYS)
        return true;
    if (c->slots[slot].rank != c->slots[other].rank || c->slots[slot].host ||
        c->slots[other].host)
        return false;
    if (scope == EMU_SC_GPU)
        return true;
    return race_tenant_at(c, slot, time)->cta_serial ==
           race_tenant_at(c, other, other_time)->cta_serial;
}

bool race_scopes_meet(const struct race_checker *c, const struct race_mark *a,
                      const struct race_mark *b)
{
    return includes(c, a->scope, a->slot, a->time, b->slot, b->time) &&
           includes(c, b->scope, b->slot, b->time, a->slot, a->time);
}

static uint8_t narrower(uint8_t a, uint8_t b)
{
    return a < b ? a : b;                /* enum emu_scope is in order */
}

/* -- strong accesses --------------------------------------------------------------------------- */

static bool acquires(uint8_t sem)
{
    return sem == EMU_SEM_ACQUIRE || sem == EMU_SEM_ACQ_REL || sem == EMU_SEM_SC;
}

static bool releases(uint8_t sem)
{
    return sem == EMU_SEM_RELEASE || sem == EMU_SEM_ACQ_REL || sem == EMU_SEM_SC;
}

static bool token_reaches(const struct race_checker *c, const struct race_token *token,
                          uint8_t scope, const struct race_warp *warp)
{
    uint32_t now = now_of(c, warp);

    return includes(c, token->scope, token->slot, token->time, warp->slot, now) &&
           includes(c, scope, warp->slot, now, token->slot, token->time);
}

static void keep_seen(struct race_checker *c, struct race_lane *lane,
                      const struct race_token *token, uint8_t scope)
{
    for (uint32_t i = 0; i < lane->num_seen; i++) {
        const struct race_seen *seen = &lane->seen[i];

        if (seen->token.slot == token->slot && seen->token.time == token->time &&
            seen->token.lane == token->lane && seen->scope == scope)
            return;
    }
    if (lane->num_seen == lane->max_seen) {
        uint32_t max = lane->max_seen ? 2 * lane->max_seen : 4;
        struct race_seen *grown = realloc(lane->seen, max * sizeof *grown);

        if (!race_ok(c, grown != NULL))
            return;
        lane->seen = grown;
        lane->max_seen = max;
    }
    if (lane->num_seen == MOST_SEEN) {   /* the oldest one goes: a report too many, at worst  */
        race_clock_drop(lane->seen[0].token.clock);
        memmove(&lane->seen[0], &lane->seen[1], --lane->num_seen * sizeof *lane->seen);
    }
    lane->seen[lane->num_seen++] = (struct race_seen){*token, scope};
    race_clock_hold(token->clock);
}

void race_strong_load(struct race_checker *c, const struct race_touch *t)
{
    struct race_word *word = t->block->words ? t->block->words[t->at / 4] : NULL;
    bool acquire = acquires(t->sem), reaches = false;

    if (!word)
        return;
    for (uint32_t i = 0; i < word->num; i++) {
        const struct race_token *token = &word->tokens[i];

        if (!acquire)
            keep_seen(c, &t->warp->lanes[t->lane], token, t->scope);
        if (!token_reaches(c, token, t->scope, t->warp))
            continue;
        reaches = true;
        if (acquire)
            race_lane_after(c, t->warp, t->lane, token);
    }
    if (word->last.slot != t->warp->slot || word->last.lanes != 1u << t->lane)
        add_edge(c, &(struct race_edge){
            .from = word->last.slot, .from_time = word->last.time, .from_pc = word->last.pc,
            .from_lane = (int8_t)__builtin_ctz(word->last.lanes), .to = t->warp->slot,
            .to_time = now_of(c, t->warp), .to_pc = t->mark.pc, .to_lane = (int8_t)t->lane,
            .kind = RACE_EDGE_WORD,
            .lacks = (word->num ? 0 : RACE_LACKS_RELEASE) |
                     (acquire || t->atomic ? 0 : RACE_LACKS_ACQUIRE) |
                     ((word->num ? reaches : race_scopes_meet(c, &word->last, &t->mark))
                          ? 0 : RACE_LACKS_SCOPE),
        });
}

/* What was released by others goes, or all but what an atomic passes on. */
static void drop_tokens(struct race_word *word, const struct race_touch *t, bool all_of_others)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < word->num; i++) {
        struct race_token *token = &word->tokens[i];
        bool mine = token->slot == t->warp->slot && token->lane == t->lane;

        if (mine ? !releases(t->sem) : !all_of_others) {
            if (mine)                    /* a release, then a strong store in program order   */
                token->scope = narrower(token->scope, t->scope);
            word->tokens[kept++] = *token;
        } else {
            race_clock_drop(token->clock);
        }
    }
    word->num = kept;
}

void race_strong_store(struct race_checker *c, const struct race_touch *t)
{
    struct race_lane *lane = &t->warp->lanes[t->lane];
    struct race_word *word = race_word_make(t->block, t->at);
    struct race_token token = {0};

    if (!race_ok(c, word != NULL))
        return;
    drop_tokens(word, t, !t->atomic);
    word->last = t->mark;
    word->last.lanes = 1u << t->lane;
    word->last.spread = 0;
    word->sem = t->sem;
    if (releases(t->sem)) {
        token = race_token_of(c, t->warp, t->lane, t->scope, t->mark.pc);
    } else if (lane->fence.clock) {
        token = lane->fence;
        token.scope = narrower(token.scope, t->scope);
        token.pc = t->mark.pc;
        race_clock_hold(token.clock);
    }
    if (token.clock && !race_ok(c, race_word_add(word, &token)))
        race_clock_drop(token.clock);
}

/* -- fences ------------------------------------------------------------------------------------ */

static void fence_lane(struct race_checker *c, struct race_warp *warp, unsigned l, uint8_t scope,
                       uint32_t pc)
{
    struct race_lane *lane = &warp->lanes[l];
    uint32_t kept = 0;

    for (uint32_t i = 0; i < lane->num_seen; i++) {
        const struct race_token *token = &lane->seen[i].token;
        bool reaches = token_reaches(c, token, narrower(lane->seen[i].scope, scope), warp);

        if (reaches)
            race_lane_after(c, warp, l, token);
        add_edge(c, &(struct race_edge){
            .from = token->slot, .from_time = token->time, .from_pc = token->pc,
            .from_lane = (int8_t)token->lane, .to = warp->slot, .to_time = now_of(c, warp),
            .to_pc = pc, .to_lane = (int8_t)l, .kind = RACE_EDGE_WORD,
            .lacks = reaches ? 0 : RACE_LACKS_SCOPE,
        });
        if (reaches)
            race_clock_drop(token->clock);
        else                             /* for a wider fence */
            lane->seen[kept++] = lane->seen[i];
    }
    lane->num_seen = kept;
    race_clock_drop(lane->fence.clock);
    lane->fence = race_token_of(c, warp, l, scope, pc);
}

static void hear_fence(struct race_checker *c, const struct emu_event *e, struct race_warp *warp)
{
    if (e->op->proxy == EMU_PX_ASYNC) {
        if (e->op->space != EMU_SP_SHARED)
            race_lanes_fence_proxy(c, warp, e->lanes, RACE_ASYNC_GLOBAL);
        if (e->op->space != EMU_SP_GLOBAL)
            race_lanes_fence_proxy(c, warp, e->lanes, RACE_ASYNC_SHARED);
    } else {
        for (uint32_t left = e->lanes; left; left &= left - 1)
            fence_lane(c, warp, __builtin_ctz(left), e->op->scope, e->pc);
    }
    c->slots[warp->slot].time++;
}

/* -- barriers ---------------------------------------------------------------------------------- */

static void edge_to_node(struct race_checker *c, const struct race_warp *warp, uint32_t node,
                         enum race_edge_kind kind, uint32_t pc, int lane)
{
    add_edge(c, &(struct race_edge){
        .from = warp->slot, .from_time = now_of(c, warp), .from_pc = pc, .from_lane = (int8_t)lane,
        .to = node, .to_pc = pc, .to_lane = -1, .kind = kind,
    });
}

static void edge_from_node(struct race_checker *c, uint32_t node, const struct race_warp *warp,
                           enum race_edge_kind kind, uint32_t pc, int lane)
{
    add_edge(c, &(struct race_edge){
        .from = node, .from_pc = pc, .from_lane = -1, .to = warp->slot,
        .to_time = now_of(c, warp), .to_pc = pc, .to_lane = (int8_t)lane, .kind = kind,
    });
}

static void open_meeting(struct race_checker *c, struct race_meeting *m)
{
    if (!m->sum)
        m->node = race_history_node(&c->history);
}

static void arrive_at_bar(struct race_checker *c, const struct emu_event *e, struct race_cta *cta,
                          struct race_warp *warp)
{
    struct race_meeting *m = &cta->barriers[e->va];

    open_meeting(c, m);
    race_warp_gives(c, warp, &m->sum);
    edge_to_node(c, warp, m->node, RACE_EDGE_BAR, e->pc, -1);
    warp->arrived = c->slots[warp->slot].time++;
    m->warps |= 1u << e->warp->index;
}

static void complete_bar(struct race_checker *c, const struct emu_event *e, struct race_cta *cta)
{
    struct race_meeting *m = &cta->barriers[e->va];

    for (uint32_t left = m->sum ? m->warps : 0; left; left &= left - 1) {
        struct race_warp *warp = e->cta->warps[__builtin_ctz(left)].watched;

        race_warp_set(warp, m->sum);
        edge_from_node(c, m->node, warp, RACE_EDGE_BAR, e->pc, -1);
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
    if (cta->num_mbarriers == cta->max_mbarriers) {
        uint32_t max = cta->max_mbarriers ? 2 * cta->max_mbarriers : 16;
        struct race_mbarrier *grown = realloc(cta->mbarriers, max * sizeof *grown);

        if (!race_ok(c, grown != NULL))
            return NULL;
        cta->mbarriers = grown;
        cta->max_mbarriers = max;
    }
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

static void arrive_at_mbarrier(struct race_checker *c, const struct emu_event *e,
                               struct race_cta *cta, struct race_warp *warp)
{
    struct race_meeting *m = mbarrier_at(c, cta, e->va);
    int lane = __builtin_ctz(e->lanes);
    struct race_token token;

    if (!m)
        return;
    open_meeting(c, m);
    if (releases(e->op->sem)) {
        token = race_token_of(c, warp, (unsigned)lane, EMU_SC_CTA, e->pc);
        race_clock_after(c, &m->sum, &token);
        race_clock_drop(token.clock);
        edge_to_node(c, warp, m->node, RACE_EDGE_MBAR, e->pc, lane);
        c->slots[warp->slot].time++;
    }
    if (e->completes)
        complete_phase(m);
}

static void pass_mbarrier(struct race_checker *c, const struct emu_event *e, struct race_cta *cta,
                          struct race_warp *warp)
{
    struct race_meeting *m = mbarrier_at(c, cta, e->va);

    if (!m || !m->done)
        return;
    edge_from_node(c, m->done_node, warp, RACE_EDGE_MBAR, e->pc, __builtin_ctz(e->lanes));
    if (acquires(e->op->sem))
        race_lanes_join(c, warp, e->lanes, m->done);
}

/* -- bulk copies ------------------------------------------------------------------------------- */

static void note_copy(struct race_clock *clock, uint32_t slot, uint32_t time)
{
    for (uint32_t p = 0; p < RACE_PLANES; p++)
        race_clock_note(clock, p, slot, time);
}

/* A copy's end is a proxy fence, too: its accesses come before in every plane. */
static void end_copy_for(struct race_checker *c, struct race_clock **clock,
                         const struct race_copy *copy)
{
    if (!*clock && !race_ok(c, (*clock = race_clock_new(c->extent)) != NULL))
        return;
    if (!race_ok(c, race_clock_own(clock, 1, c->extent)))
        return;
    note_copy(*clock, copy->read_slot, copy->read_time);
    note_copy(*clock, copy->write_slot, copy->write_time);
}

static void edge_of_copy(struct race_checker *c, uint32_t slot, uint32_t time, uint32_t to,
                         uint32_t to_time, uint32_t pc)
{
    add_edge(c, &(struct race_edge){
        .from = slot, .from_time = time, .from_pc = pc, .from_lane = -1, .to = to,
        .to_time = to_time, .to_pc = pc, .to_lane = -1, .kind = RACE_EDGE_COPY,
    });
}

static void deliver(struct race_checker *c, const struct emu_event *e, struct race_cta *cta)
{
    struct race_copy *copy = e->copy->watched;
    struct race_meeting *m = mbarrier_at(c, cta, e->va);

    if (!copy || !m)
        return;
    open_meeting(c, m);
    end_copy_for(c, &m->sum, copy);
    edge_of_copy(c, copy->read_slot, copy->read_time, m->node, 0, e->pc);
    edge_of_copy(c, copy->write_slot, copy->write_time, m->node, 0, e->pc);
    if (e->completes)
        complete_phase(m);
}

static void add_store(struct race_checker *c, struct race_warp *warp, const struct emu_copy *copy,
                      const struct race_copy *own)
{
    if (warp->num_stores == warp->max_stores) {
        uint32_t max = warp->max_stores ? 2 * warp->max_stores : 8;
        struct race_stores *grown = realloc(warp->stores, max * sizeof *grown);

        if (!race_ok(c, grown != NULL))
            return;
        warp->stores = grown;
        warp->max_stores = max;
    }
    warp->stores[warp->num_stores++] = (struct race_stores){
        .group = copy->group, .lane = copy->lane, .read_slot = own->read_slot,
        .read_time = own->read_time, .write_slot = own->write_slot, .write_time = own->write_time,
    };
}

static void issue_copy(struct race_checker *c, const struct emu_event *e, struct race_cta *cta,
                       struct race_warp *warp)
{
    struct race_copy *copy = calloc(1, sizeof *copy);
    struct race_tenant tenant = {
        .agent = RACE_COPY, .cta = e->cta->index, .warp = e->warp->index,
        .cta_serial = cta->serial, .grid = cta->grid,
    };
    struct race_token token;

    if (!race_ok(c, copy != NULL))
        return;
    token = race_token_of(c, warp, __builtin_ctz(e->lanes), EMU_SC_CTA, e->pc);
    copy->clock = token.clock;
    copy->issuer = warp->slot;
    copy->issued = token.time;
    copy->synced = token.synced;
    copy->lane = token.lane;
    copy->read_slot = race_slot_take(c, cta->grid->rank, &warp->copies, copy->clock, &tenant);
    copy->read_time = c->slots[copy->read_slot].time;
    copy->write_slot = race_slot_take(c, cta->grid->rank, &warp->copies, copy->clock, &tenant);
    copy->write_time = c->slots[copy->write_slot].time;
    e->copy->watched = copy;
    if (!e->copy->load)
        add_store(c, warp, e->copy, copy);
}

void race_copy_free(struct emu_copy *emu_copy)
{
    struct race_copy *copy = emu_copy->watched;

    if (copy)
        race_clock_drop(copy->clock);
    free(copy);
    emu_copy->watched = NULL;
}

static void end_copy(struct race_checker *c, const struct emu_event *e)
{
    struct race_copy *copy = e->copy->watched;
    struct race_grid *grid = e->grid->watched;
    struct race_warp *warp = e->cta ? e->cta->warps[e->copy->warp].watched : NULL;
    struct race_slots *to = warp ? &warp->copies : &c->free_slots[grid->rank];

    if (!copy)
        return;
    end_copy_for(c, &grid->end, copy);
    edge_of_copy(c, copy->read_slot, copy->read_time, grid->end_node, 0, e->pc);
    edge_of_copy(c, copy->write_slot, copy->write_time, grid->end_node, 0, e->pc);
    race_slot_leave(c, to, copy->read_slot);
    race_slot_leave(c, to, copy->write_slot);
    race_copy_free(e->copy);
}

static void wait_for_groups(struct race_checker *c, const struct emu_event *e,
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
        note_copy(clock, s->read_slot, s->read_time);
        edge_of_copy(c, s->read_slot, s->read_time, warp->slot, now_of(c, warp), e->pc);
        if (!read_only) {
            note_copy(clock, s->write_slot, s->write_time);
            edge_of_copy(c, s->write_slot, s->write_time, warp->slot, now_of(c, warp), e->pc);
        }
    }
    warp->num_stores = kept;
    if (!clock)
        return;
    /* Lanes wait each for their own copies; where several did, each gets the others' too. */
    race_lanes_join(c, warp, lanes, clock);
    race_clock_drop(clock);
}

/* -- grids and CTAs ---------------------------------------------------------------------------- */

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
    warp->synced = now_of(c, warp) - 1;
    if (cta->grid->launch->node)
        edge_from_node(c, cta->grid->launch->node, warp, RACE_EDGE_STREAM, 0, -1);
    warp->together = true;
    for (unsigned l = 0; l < EMU_LANES; l++)
        warp->lanes[l].clock = race_clock_hold(cta->grid->launch);
    of->watched = warp;
}

static void begin_cta(struct race_checker *c, const struct emu_event *e)
{
    struct race_cta *cta = calloc(1, sizeof *cta);

    if (!race_ok(c, cta != NULL))
        return;
    cta->grid = race_grid_of(c, e->grid, NULL);
    cta->serial = ++c->num_ctas;
    cta->shadow = race_shadow_new(&c->shadows, e->cta->shared_bytes, e->cta);
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

void race_cta_free(struct race_checker *c, struct emu_cta *emu_cta)
{
    struct race_cta *cta = emu_cta->watched;

    (void)c;
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

static void end_cta(struct race_checker *c, const struct emu_event *e, struct race_cta *cta)
{
    struct race_slots *to = &c->free_slots[cta->grid->rank];

    for (uint32_t w = 0; w < e->cta->num_warps; w++) {
        struct race_warp *warp = e->cta->warps[w].watched;

        race_warp_gives(c, warp, &cta->grid->end);
        edge_to_node(c, warp, cta->grid->end_node, RACE_EDGE_STREAM, 0, -1);
        race_slot_leave(c, to, warp->slot);
        for (uint32_t i = 0; i < warp->copies.num; i++)
            race_slot_leave(c, to, warp->copies.of[i]);
    }
    race_cta_free(c, e->cta);
}

/* -- events ------------------------------------------------------------------------------------ */

void race_hear(struct race_checker *c, const struct emu_event *e)
{
    struct race_cta *cta = e->cta ? e->cta->watched : NULL;
    struct race_warp *warp = e->warp ? e->warp->watched : NULL;

    switch (e->kind) {
    case EMU_EVENT_FENCE:
        hear_fence(c, e, warp);
        break;
    case EMU_EVENT_WARP_SYNC:
        if (e->lanes == e->warp->live)
            race_warp_meet(c, warp, e->lanes);
        else
            race_lanes_meet(c, warp, e->lanes, e->pc);
        break;
    case EMU_EVENT_BAR_ARRIVE:
        arrive_at_bar(c, e, cta, warp);
        break;
    case EMU_EVENT_BAR_COMPLETE:
        complete_bar(c, e, cta);
        break;
    case EMU_EVENT_MBAR_ARRIVE:
        arrive_at_mbarrier(c, e, cta, warp);
        break;
    case EMU_EVENT_MBAR_PASS:
        pass_mbarrier(c, e, cta, warp);
        break;
    case EMU_EVENT_MBAR_DELIVER:
        deliver(c, e, cta);
        break;
    case EMU_EVENT_COPY_ISSUE:
        issue_copy(c, e, cta, warp);
        break;
    case EMU_EVENT_COPY_END:
        end_copy(c, e);
        break;
    case EMU_EVENT_GROUPS_WAITED:
        wait_for_groups(c, e, warp);
        break;
    case EMU_EVENT_CTA_BEGIN:
        begin_cta(c, e);
        break;
    case EMU_EVENT_CTA_END:
        end_cta(c, e, cta);
        break;
    default:                             /* EMU_EVENT_FREE */
        race_shadow_free(e->segment->watched);
        e->segment->watched = NULL;
        break;
    }
}
