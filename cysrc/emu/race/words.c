/* SPDX-License-Identifier: MIT */
#include "words.h"
#include "array.h"

#include <stdlib.h>

#define MOST_SEEN 64                     /* strong stores that a lane keeps one by one         */

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

static bool token_reaches(const struct race_checker *c, const struct race_token *token,
                          uint8_t scope, const struct race_warp *warp)
{
    uint32_t now = race_now(c, warp);

    return includes(c, token->scope, token->slot, token->time, warp->slot, now) &&
           includes(c, scope, warp->slot, now, token->slot, token->time);
}

/* Many become few: of those that came from one GPU, with scopes of no less, a fence that one of them
 * reaches is reached by all. */
static void fold_seen(struct race_checker *c, struct race_lane *lane)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < lane->num_seen; i++) {
        struct race_seen *seen = &lane->seen[i], *into = NULL;

        for (uint32_t k = 0; k < kept && !into; k++)
            if (c->slots[lane->seen[k].token.slot].rank == c->slots[seen->token.slot].rank &&
                lane->seen[k].token.scope == seen->token.scope &&
                lane->seen[k].scope == seen->scope && seen->scope >= EMU_SC_GPU &&
                seen->token.scope >= EMU_SC_GPU)
                into = &lane->seen[k];
        if (!into) {
            lane->seen[kept++] = *seen;
            continue;
        }
        race_clock_after(c, &into->token.clock, &seen->token);
        into->folded = true;
        race_clock_drop(seen->token.clock);
    }
    lane->num_seen = kept;
}

static void keep_seen(struct race_checker *c, struct race_lane *lane,
                      const struct race_token *token, uint8_t scope)
{
    for (uint32_t i = 0; i < lane->num_seen; i++) {
        struct race_seen *seen = &lane->seen[i];

        if (seen->folded || seen->token.slot != token->slot || seen->token.lane != token->lane ||
            seen->token.scope != token->scope || seen->scope != scope)
            continue;
        if (seen->token.time < token->time) {    /* it comes after all that the other does    */
            race_clock_drop(seen->token.clock);
            seen->token = *token;
            race_clock_hold(token->clock);
        }
        return;
    }
    if (lane->num_seen >= MOST_SEEN)
        fold_seen(c, lane);
    if (!race_ok(c, race_room(&lane->seen, lane->num_seen, &lane->max_seen, sizeof *lane->seen)))
        return;
    lane->seen[lane->num_seen++] = (struct race_seen){*token, scope, false};
    race_clock_hold(token->clock);
}

void race_strong_load(struct race_checker *c, const struct race_touch *t)
{
    struct race_word *word = t->block->words ? t->block->words[t->at / 4] : NULL;
    bool acquire = race_acquires(t->sem), reaches = false;

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
        race_note_edge(c, &(struct race_edge){
            .from = word->last.slot, .from_time = word->last.time, .from_pc = word->last.pc,
            .from_lane = (int8_t)__builtin_ctz(word->last.lanes), .to = t->warp->slot,
            .to_time = race_now(c, t->warp), .to_pc = t->mark.pc, .to_lane = (int8_t)t->lane,
            .kind = RACE_EDGE_WORD,
            .lacks = (word->num ? 0 : RACE_LACKS_RELEASE) |
                     (acquire || t->atomic ? 0 : RACE_LACKS_ACQUIRE) |
                     ((word->num ? reaches : race_scopes_meet(c, &word->last, &t->mark))
                          ? 0 : RACE_LACKS_SCOPE),
        });
}

/* What was released by others goes, or all but what an atomic passes on. */
static void drop_tokens(struct race_word *word, const struct race_touch *t)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < word->num; i++) {
        struct race_token *token = &word->tokens[i];
        bool mine = token->slot == t->warp->slot && token->lane == t->lane;

        if (mine ? !race_releases(t->sem) : t->atomic) {
            if (mine)                    /* a release, then a strong store in program order   */
                token->scope = narrower(token->scope, t->scope);
            word->tokens[kept++] = *token;
        } else {
            race_clock_drop(token->clock);
        }
    }
    word->num = kept;
}

/* Of releases that the new one comes after, nothing is left that it does not give. */
static void drop_covered(struct race_word *word, const struct race_token *by)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < word->num; i++) {
        const struct race_token *token = &word->tokens[i];
        bool mine = token->slot == by->slot && token->lane == by->lane;

        if (token->scope <= by->scope && (mine || race_token_is_after(by, token)))
            race_clock_drop(token->clock);
        else
            word->tokens[kept++] = *token;
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
    drop_tokens(word, t);
    word->last = t->mark;
    word->last.lanes = 1u << t->lane;
    word->last.spread = 0;
    if (race_releases(t->sem)) {
        token = race_token_of(c, t->warp, t->lane, t->scope, t->mark.pc);
    } else if (lane->fence.clock) {
        token = lane->fence;
        token.scope = narrower(token.scope, t->scope);
        token.pc = t->mark.pc;
        race_clock_hold(token.clock);
    }
    if (token.clock)
        drop_covered(word, &token);
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
        race_note_edge(c, &(struct race_edge){
            .from = token->slot, .from_time = token->time, .from_pc = token->pc,
            .from_lane = (int8_t)token->lane, .to = warp->slot, .to_time = race_now(c, warp),
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

void race_fence(struct race_checker *c, const struct emu_event *e, struct race_warp *warp)
{
    if (e->op->proxy == EMU_PX_ASYNC) {
        if (e->op->space != EMU_SP_SHARED)
            race_lanes_fence_proxy(c, warp, e->lanes, RACE_ASYNC_GLOBAL);
        if (e->op->space != EMU_SP_GLOBAL)
            race_lanes_fence_proxy(c, warp, e->lanes, RACE_ASYNC_SHARED);
    } else {
        /* fence.mbarrier_init: bulk copies may use what mbarrier.init has made. */
        if (e->op->sem == EMU_SEM_RELEASE)
            race_lanes_fence_proxy(c, warp, e->lanes, RACE_ASYNC_SHARED);
        for (uint32_t left = e->lanes; left; left &= left - 1)
            fence_lane(c, warp, __builtin_ctz(left), e->op->scope, e->pc);
    }
    c->slots[warp->slot].time++;
}
