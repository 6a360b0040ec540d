/* SPDX-License-Identifier: MIT */
#include "access.h"
#include "find.h"
#include "old.h"
#include "order.h"
#include "words.h"

#define ALL_BYTES 0xffffu
#define HOST_FLAGS 128                   /* bytes that the host stores at once as flags       */
#define CROWD 16                         /* marks of a cell, before those are looked for that are
                                            over; then at twice what is left                  */

/* The access at hand. */
struct look {
    struct race_checker *c;
    const struct emu_access *a;
    struct race_warp *warp;              /* by lanes                                          */
    struct race_copy *copy;              /* by a bulk copy                                    */
    struct race_shadow *shadow;
    uint64_t offset;                     /* of its first byte                                 */
    struct race_mark mark;
};

/* -- what orders ------------------------------------------------------------------------------- */

static bool is_strong(uint8_t sem)
{
    return sem >= EMU_SEM_RELAXED;
}

/* What a bulk copy may rely on: what the async proxy did, and what lies before a proxy fence. */
static enum race_plane plane_of(const struct look *k, const struct race_mark *mark)
{
    if (mark->flags & RACE_ASYNC)
        return RACE_ORDER;
    return k->a->space == EMU_SP_SHARED ? RACE_ASYNC_SHARED : RACE_ASYNC_GLOBAL;
}

/* Whether a proxy fence lies between what lanes of the copy's own warp did, and the copy. */
static bool lies_behind_fences(const struct race_copy *copy, enum race_plane plane,
                               const struct race_mark *mark, uint32_t lanes)
{
    for (; mark->time > copy->whole[plane] && lanes; lanes &= lanes - 1)
        if (mark->time > copy->lanes[plane][__builtin_ctz(lanes)])
            return false;
    return true;
}

/* Whether what the mark is of comes before the access. */
static bool comes_before(const struct look *k, const struct race_mark *mark, uint32_t mark_lanes,
                         uint32_t lanes)
{
    if (k->warp)
        return race_lanes_know(k->warp, lanes, mark, mark_lanes);
    if (k->copy)
        return race_clock_knows_mark(k->copy->clock, plane_of(k, mark), mark, mark_lanes) ||
               mark->slot == k->mark.slot ||
               (mark->slot == k->copy->issuer && !(mark->flags & RACE_ASYNC) &&
                lies_behind_fences(k->copy, plane_of(k, mark), mark, mark_lanes));
    return mark->slot == k->mark.slot ||
           race_clock_knows_mark(k->c->actor->clock, RACE_ORDER, mark, mark_lanes);
}

/* Whether the two may be in any order: both read, or both are strong and see each other. */
static bool may_meet(const struct look *k, const struct race_mark *mark)
{
    if (!((mark->flags | k->mark.flags) & RACE_WRITES))
        return true;
    if (!(mark->flags & k->mark.flags & RACE_STRONG))
        return false;
    return (mark->elem == k->mark.elem || (mark->flags | k->mark.flags) & RACE_HOST) &&
           race_scopes_meet(k->c, mark, &k->mark);
}

static bool is_nc(const struct look *k)
{
    return k->warp && k->a->nc;
}

/* Whether ld.global.nc reads what was written before its grid began. */
static bool nc_may_read(const struct look *k, const struct race_mark *mark)
{
    const struct race_grid *grid = k->a->grid->watched;

    return !(mark->flags & RACE_WRITES) ||
           race_clock_knows_all(grid->launch, RACE_ORDER, mark->slot, mark->time);
}

/* Whether the copy was issued behind what the mark is of, proxies aside. */
static bool issued_behind(const struct race_copy *copy, const struct race_mark *mark,
                          uint32_t lanes)
{
    if (mark->slot == copy->issuer) {
        if (mark->time <= copy->issued)
            lanes &= ~(1u << copy->lane);
        if (mark->time <= copy->synced)
            return true;
    }
    return race_clock_knows_mark(copy->clock, RACE_ORDER, mark, lanes);
}

/* Whether all of the access's lanes come after all that the mark's slot did. */
static bool slot_is_known(const struct look *k, const struct race_mark *mark)
{
    if (k->warp)
        return k->warp->together &&
               race_clock_knows_all(k->warp->lanes[0].clock, RACE_ORDER, mark->slot, mark->time);
    if (k->copy)
        return race_clock_knows_all(k->copy->clock, plane_of(k, mark), mark->slot, mark->time);
    return race_clock_knows_all(k->c->actor->clock, RACE_ORDER, mark->slot,
                                mark->time);
}

/* Of the bytes, the first ones that one lane of each has accessed, where lanes lie side by side. */
static uint16_t same_lanes_part(const struct race_mark *a, const struct race_mark *b,
                                uint16_t bytes)
{
    unsigned spread = RACE_SPREAD, first = (unsigned)__builtin_ctz(bytes);

    if (a->spread)
        spread = a->spread;
    if (b->spread && b->spread < spread)
        spread = b->spread;
    first &= ~((1u << spread >> 1) - 1);
    return bytes & (uint16_t)(((1u << (1u << spread >> 1)) - 1) << first);
}

/* The access against one mark of the bytes `common` of a cell.  Returns whether the mark says
 * nothing any more that the access's own would not: it comes before, or a race was found. */
static bool compare(const struct look *k, const struct race_mark *mark, uint16_t common,
                    const struct race_mark *mine, uint64_t at)
{
    uint16_t part = same_lanes_part(mark, mine, common);

    if (part != common && !slot_is_known(k, mark)) {
        bool over = compare(k, mark, part, mine, at);

        return compare(k, mark, common & ~part, mine, at) && over;
    }
    if (comes_before(k, mark, race_mark_lanes(mark, common), race_mark_lanes(mine, common))) {
        if (!is_nc(k) || nc_may_read(k, mark))
            return true;
    } else if (may_meet(k, mark)) {
        return false;
    }
    race_find(k->c, &(struct race_pair){
        .access = k->a, .first = mark, .second = mine, .common = common,
        .cell = at, .nc = is_nc(k),
        .ordered_without_proxies = k->copy && issued_behind(k->copy, mark,
                                                            race_mark_lanes(mark, common)),
    });
    return true;
}

/* Whether whatever conflicts with the mark conflicts with `mine` too, which comes after it: else
 * the mark is still of use.  What is strong, or more strongly so, may meet more. */
static bool stands_for(const struct race_mark *mine, const struct race_mark *mark)
{
    if (!(mine->flags & RACE_STRONG) || !mark->flags || (mine->flags | mark->flags) & RACE_HOST)
        return true;
    return mark->flags & RACE_STRONG && mark->scope >= mine->scope && mark->elem == mine->elem;
}

/* -- cells ------------------------------------------------------------------------------------- */

/* Lanes of one warp go on in program order: of what they did before, nothing is left where the
 * access replaces it.  Returns whether anything of the mark is left. */
static bool drop_own_lanes(struct race_mark *mark, const struct race_mark *mine)
{
    bool same = mark->slot == mine->slot && !(mark->flags & (RACE_NC | RACE_ASYNC));

    if (!same || mark->spread || mine->spread || (mark->bytes & ~mine->bytes))
        return true;
    if (mark->flags & RACE_HOST)
        return false;
    mark->lanes &= ~mine->lanes;
    return mark->lanes != 0;
}

/* Whether the mark becomes one of the access too. */
static bool merge(struct race_mark *mark, const struct race_mark *mine)
{
    if (mark->slot != mine->slot || mark->time != mine->time || mark->pc != mine->pc ||
        mark->flags != mine->flags || mark->bytes != mine->bytes || mark->spread || mine->spread)
        return false;
    mark->lanes |= mine->lanes;
    return true;
}

/* Whether a lane polls what nobody has written since it did last: nothing is to be found. */
static bool polls_again(const struct look *k, struct race_cell *cell, const struct race_mark *mine)
{
    struct race_poll now = {cell, cell->version, mine->time, mine->pc, mine->bytes}, *last;

    if (mine->flags & RACE_WRITES || !cell->version)
        cell->version = ++k->c->versions;
    if (!k->warp || (mine->flags & (RACE_STRONG | RACE_WRITES)) != RACE_STRONG || mine->spread ||
        mine->lanes & (mine->lanes - 1))
        return false;
    last = &k->warp->lanes[__builtin_ctz(mine->lanes)].poll;
    if (last->cell == cell && last->version == cell->version && last->time == now.time &&
        last->pc == now.pc && last->bytes == now.bytes)
        return true;
    now.version = cell->version;
    *last = now;
    return false;
}

/* `mine` of one cell of the block. */
static void look_at_cell(const struct look *k, struct race_cell *cell,
                         const struct race_mark *mine, uint64_t at)
{
    bool writes = mine->flags & RACE_WRITES, crowded = cell->num >= cell->crowd, merged = false;

    if (polls_again(k, cell, mine))
        return;
    for (uint32_t i = cell->num; i-- > 0;) {
        struct race_mark *mark = race_cell_at(cell, i);
        uint16_t common = mark->bytes & mine->bytes;
        bool replaces = (writes || !(mark->flags & RACE_WRITES)) && stands_for(mine, mark);

        if (!common)
            continue;
        if (replaces && !is_nc(k) && !drop_own_lanes(mark, mine)) {
            race_cell_remove(cell, i);
            continue;
        }
        /* Mostly nothing has to be looked up, since they may come in any order. */
        if (may_meet(k, mark) && !(crowded && replaces)) {
            merged = merged || merge(mark, mine);
            continue;
        }
        if (!compare(k, mark, common, mine, at) || !replaces)
            continue;
        if (!(mark->bytes & ~mine->bytes))
            race_cell_remove(cell, i);
        else if (!mark->spread)          /* with it, the place of a byte says whose it is      */
            mark->bytes &= ~mine->bytes;
    }
    if (crowded)
        cell->crowd = 2 * cell->num > CROWD ? 2 * cell->num : CROWD;
    if (!merged)
        race_ok(k->c, race_cell_add(cell, mine));
}

/* Lanes and bytes of the access in the cell at `cell`, from its start on. */
static struct race_mark mark_in(const struct look *k, uint64_t cell, uint64_t from, uint64_t to)
{
    struct race_mark mark = k->mark;
    uint64_t low = from > cell ? from - cell : 0;
    uint64_t high = to < cell + RACE_CELL ? to - cell : RACE_CELL;

    mark.bytes = (uint16_t)(((1u << high) - 1) & ~((1u << low) - 1));
    if (mark.spread) {
        unsigned first = (unsigned)((cell + low - k->offset) >> (mark.spread - 1));
        unsigned last = (unsigned)((cell + high - 1 - k->offset) >> (mark.spread - 1));

        mark.lanes = (uint32_t)((UINT64_C(2) << last) - (UINT64_C(1) << first));
        if (first == last)
            mark.spread = 0;
    }
    return mark;
}

/* -- blocks ------------------------------------------------------------------------------------ */

/* Whether the lanes of both are one to a cell, the same: what each did, it did itself. */
static bool same_lanes(const struct race_mark *a, const struct race_mark *b)
{
    return a->slot == b->slot && a->spread == RACE_SPREAD && b->spread == RACE_SPREAD &&
           !((a->flags | b->flags) & (RACE_ASYNC | RACE_HOST | RACE_NC));
}

/* As compare(), of a mark of a whole block, for an access of it. */
static bool compare_whole(const struct look *k, const struct race_mark *mark, uint64_t at)
{
    bool over = true;

    if (!mark->flags)
        return true;
    if (!k->a->nc && (same_lanes(mark, &k->mark) || slot_is_known(k, mark)))
        return true;
    if (!mark->spread && !k->mark.spread)
        return compare(k, mark, ALL_BYTES, &k->mark, at);
    for (unsigned i = 0; i < RACE_CELLS; i++) {
        struct race_mark theirs = race_mark_part(mark, i), mine = race_mark_part(&k->mark, i);

        over &= compare(k, &theirs, ALL_BYTES, &mine, at + i * RACE_CELL);
    }
    return over;
}

/* The access is of the whole block, which is in one piece.  False: it cannot stay so, since there
 * are marks that it does not replace. */
static bool look_at_whole(const struct look *k, struct race_block *block, uint64_t at)
{
    bool writes = k->mark.flags & RACE_WRITES;
    bool write_over, read_over;

    if (!stands_for(&k->mark, &block->read) || (writes && !stands_for(&k->mark, &block->write)))
        return false;
    write_over = compare_whole(k, &block->write, at);
    read_over = compare_whole(k, &block->read, at);

    if (!read_over || (writes && !write_over))
        return false;
    if (writes) {
        block->write = k->mark;
        block->read.flags = 0;
    } else {
        block->read = k->mark;
    }
    return true;
}

static void see_old(const struct look *k, const struct race_block *block, unsigned cell,
                    uint64_t at, const struct race_mark *mark, const struct race_mark *mine)
{
    uint16_t common = mark->bytes & mine->bytes;

    if (!common || !(mark->flags & RACE_WRITES) ||
        comes_before(k, mark, race_mark_lanes(mark, common), race_mark_lanes(mine, common)))
        return;
    race_old_see(k->c, k->a, k->mark.slot, block, cell,
                 at + (unsigned)__builtin_ctz(common) - k->offset, mark, common);
}

/* Weak visibility: what a store overwrites, what a load need not see. */
static void keep_or_see_old(const struct look *k, struct race_block *block, uint64_t start,
                            uint64_t from, uint64_t to)
{
    if (k->mark.flags & RACE_WRITES) {
        race_old_keep(k->c, block, start, from, to, k->a->host + (from - k->offset));
        return;
    }
    if (!block->old || k->mark.flags & RACE_HOST || k->a->mbarrier ||
        (!block->split && (!block->write.flags || slot_is_known(k, &block->write))))
        return;
    for (uint64_t at = from / RACE_CELL * RACE_CELL; at < to; at += RACE_CELL) {
        struct race_mark mine = mark_in(k, at, from, to);
        unsigned cell = (unsigned)((at - start) / RACE_CELL);

        if (!block->split) {
            struct race_mark mark = race_mark_part(&block->write, cell);

            see_old(k, block, cell, at, &mark, &mine);
            continue;
        }
        for (uint32_t i = 0; i < block->cells[cell].num; i++)
            see_old(k, block, cell, at, race_cell_at(&block->cells[cell], i), &mine);
    }
}

static void look_at_block(const struct look *k, struct race_block *block, uint64_t start,
                          uint64_t from, uint64_t to)
{
    bool whole = from == start && to == start + RACE_BLOCK &&
                 (!k->mark.spread || (k->mark.spread == RACE_SPREAD && k->offset == start));

    if (k->c->stale)
        keep_or_see_old(k, block, start, from, to);
    if (whole && !block->split && look_at_whole(k, block, start))
        return;
    if (!race_ok(k->c, race_block_split(block)))
        return;
    for (uint64_t cell = from / RACE_CELL * RACE_CELL; cell < to; cell += RACE_CELL) {
        struct race_mark mine = mark_in(k, cell, from, to);

        look_at_cell(k, &block->cells[(cell - start) / RACE_CELL], &mine, cell);
    }
    /* Once a whole block is written by one, it is in one piece again. */
    if (whole && (k->mark.flags & RACE_WRITES)) {
        for (unsigned i = 0; i < RACE_CELLS; i++)
            if (block->cells[i].num > 1)
                return;
        race_block_clear(block);
        block->write = k->mark;
    }
}

/* -- strong accesses --------------------------------------------------------------------------- */

static void touch_words(const struct look *k, struct race_block *block, uint64_t start,
                        uint64_t from, uint64_t to)
{
    const struct emu_access *a = k->a;
    struct race_touch t = {
        .warp = k->warp, .block = block, .sem = a->sem, .scope = a->scope, .mark = k->mark,
        .atomic = a->kind == EMU_ACCESS_ATOMIC,
    };
    bool reads = a->kind == EMU_ACCESS_LOAD || a->kind == EMU_ACCESS_ATOMIC;
    bool writes = a->kind == EMU_ACCESS_STORE || a->kind == EMU_ACCESS_ATOMIC;

    if (!writes && !block->words)
        return;
    for (uint64_t at = from; at < to; at += a->elem) {
        uint32_t lanes = a->lanes;

        if (a->lane_bytes < a->bytes)
            lanes = 1u << ((at - k->offset) / a->lane_bytes);
        t.at = (unsigned)(at - start);
        for (; lanes; lanes &= lanes - 1) {
            t.lane = __builtin_ctz(lanes);
            if (reads)
                race_strong_load(k->c, &t);
            if (writes)
                race_strong_store(k->c, &t);
        }
    }
}

/* Weak stores: nothing is released at these words any more. */
static void overwrite_words(struct race_block *block, uint64_t start, uint64_t from, uint64_t to)
{
    for (uint64_t at = from; at < to; at += 4) {
        struct race_word **word = &block->words[(at - start) / 4];

        if (*word) {
            race_word_free(*word);
            *word = NULL;
        }
    }
}

/* -- accesses ---------------------------------------------------------------------------------- */

static uint8_t flags_of(const struct emu_access *a)
{
    /* What it does to the object is the object's own affair; init and inval are stores. */
    if (a->mbarrier && a->kind == EMU_ACCESS_ATOMIC)
        return RACE_READS;
    switch (a->kind) {
    case EMU_ACCESS_LOAD:       return RACE_READS;
    case EMU_ACCESS_STORE:      return RACE_WRITES;
    case EMU_ACCESS_BULK_READ:  return RACE_READS | RACE_ASYNC;
    case EMU_ACCESS_BULK_WRITE: return RACE_WRITES | RACE_ASYNC;
    default:                    return RACE_READS | RACE_WRITES;
    }
}

/* Who it is by.  False: by nobody of whom anything is known. */
static bool find_agent(struct look *k)
{
    struct race_checker *c = k->c;
    const struct emu_access *a = k->a;
    bool reads = a->kind == EMU_ACCESS_BULK_READ || a->kind == EMU_ACCESS_LOAD;

    k->mark = (struct race_mark){
        .pc = a->pc, .lanes = a->lanes, .bytes = ALL_BYTES, .flags = flags_of(a),
        .scope = a->scope, .elem = a->elem,
    };
    if (a->lane_bytes && a->lane_bytes < a->bytes)
        k->mark.spread = 1 + (uint8_t)__builtin_ctz(a->lane_bytes);
    if (!a->grid) {
        if (!c->actor)
            return false;
        k->mark.slot = c->actor->slot;
        k->mark.flags |= RACE_HOST;
        /* Flags that kernels poll, a line of them at most, and looks at flags. */
        if (reads || a->bytes <= HOST_FLAGS)
            k->mark.flags |= RACE_STRONG;
    } else if (a->copy) {
        k->copy = a->copy->watched;
        k->mark.slot = reads ? k->copy->read_slot : k->copy->write_slot;
        k->mark.flags |= RACE_ASYNC;
        if (a->mbarrier)
            k->mark.flags |= RACE_STRONG;
    } else {
        struct race_grid *grid = a->grid->watched;

        k->warp = a->by->watched;
        k->mark.slot = a->nc && grid->has_nc ? grid->nc_slot : k->warp->slot;
        if (a->nc)
            k->mark.flags |= RACE_NC;
        if (is_strong(a->sem))
            k->mark.flags |= RACE_STRONG;
    }
    k->mark.time = c->slots[k->mark.slot].time;
    return true;
}

static struct race_shadow *shadow_of(struct race_checker *c, const struct emu_access *a)
{
    if (a->shared_of)
        return ((struct race_cta *)a->shared_of->watched)->shadow;
    if (!a->segment->watched) {
        a->segment->watched = race_shadow_new(&c->shadows, a->segment->bytes);
        race_ok(c, a->segment->watched != NULL);
    }
    return a->segment->watched;
}

void race_look_at(struct race_checker *c, const struct emu_access *a)
{
    struct look k = {.c = c, .a = a, .offset = a->shared_of ? a->va : a->offset};
    uint64_t end = k.offset + a->bytes;

    if (!a->host || !find_agent(&k) || !(k.shadow = shadow_of(c, a)))
        return;
    for (uint64_t from = k.offset, to; from < end && !c->failed; from = to) {
        uint64_t start = from / RACE_BLOCK * RACE_BLOCK;
        struct race_block *block = race_block_at(k.shadow, start / RACE_BLOCK);

        to = end < start + RACE_BLOCK ? end : start + RACE_BLOCK;
        if (!race_ok(c, block != NULL))
            return;
        look_at_block(&k, block, start, from, to);
        if (k.warp && (k.mark.flags & RACE_STRONG) && !a->mbarrier)
            touch_words(&k, block, start, from, to);
        else if (!k.warp && !k.copy && is_strong(a->sem))
            race_order_acquire(c, c->actor, block, (unsigned)(from - start));
        else if (block->words && (k.mark.flags & RACE_WRITES))
            overwrite_words(block, start, from, to);
    }
    /* What a lane does behind a release is not released by it. */
    if (k.warp && (k.mark.flags & RACE_WRITES) && race_releases(a->sem))
        c->slots[k.warp->slot].time++;
}
