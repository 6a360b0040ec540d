/* SPDX-License-Identifier: MIT */
#include "old.h"
#include "array.h"
#include "emu/device/exec.h"
#include "emu/device/lanes.h"

#include <stdlib.h>
#include <string.h>

#define MOST_LOG_DELAY 14                /* stores are seen after 0 or 2^0 to 2^14 ns          */

struct race_old {
    uint64_t when[RACE_CELLS];           /* time of the last store                            */
    uint8_t bytes[RACE_BLOCK];           /* before it                                         */
};

/* An element that is not seen as it is. */
struct piece {
    uint64_t at;             /* bytes from the access's first                                 */
    uint32_t lanes;
    uint8_t size, index;     /* index: of a vector's elements; a .b128 is one of 16 bytes     */
    uint8_t bytes[RACE_CELL];
};

struct race_stale {
    struct emu_agent agent;
    struct emu_world *world;
    uint64_t soonest;                    /* when one of the things not seen will be           */
    uint32_t num, max;
    struct piece *pieces;
};

/* -- the agent --------------------------------------------------------------------------------- */

static bool live(const void *self)
{
    (void)self;
    return false;
}

static bool step(void *self)
{
    struct race_stale *s = self;

    if (s->soonest <= s->world->now) {
        s->soonest = UINT64_MAX;
        s->world->changed = true;       /* for those that wait for it, or for what comes later */
    }
    return true;
}

static bool idle(const void *self, enum emu_patience patience, uint64_t *wake)
{
    const struct race_stale *s = self;

    (void)patience;
    if (s->soonest < *wake)
        *wake = s->soonest;
    return true;
}

bool race_old_init(struct race_checker *c, struct emu_world *world)
{
    struct race_stale *s = calloc(1, sizeof *s);

    if (!s)
        return false;
    s->world = world;
    s->soonest = UINT64_MAX;
    s->agent = (struct emu_agent){.self = s, .live = live, .step = step, .idle = idle};
    emu_add_agent(world, &s->agent);
    c->stale = s;
    return true;
}

void race_old_destroy(struct race_checker *c)
{
    if (c->stale)
        free(c->stale->pieces);
    free(c->stale);
}

/* -- stores ------------------------------------------------------------------------------------ */

void race_old_keep(struct race_checker *c, struct race_block *block, uint64_t start, uint64_t from,
                   uint64_t to, const uint8_t *bytes)
{
    if (!block->old && !race_ok(c, (block->old = calloc(1, sizeof *block->old)) != NULL))
        return;
    memcpy(block->old->bytes + (from - start), bytes, to - from);
    for (uint64_t at = from / RACE_CELL * RACE_CELL; at < to; at += RACE_CELL)
        block->old->when[(at - start) / RACE_CELL] = c->world->now;
}

/* -- loads ------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9e3779b97f4a7c15;
    return h ^ h >> 29;
}

static uint64_t delay(const struct race_checker *c, const struct race_mark *mark, uint32_t reader,
                      uint64_t element)
{
    uint64_t h = mix(mix(mix(c->options.seed, (uint64_t)mark->slot << 32 | mark->time),
                         (uint64_t)mark->pc << 32 | reader), element);

    h = mix(h, h >> 32);
    return h & 1 ? (h >> 8) % (UINT64_C(1) << (h >> 1) % (MOST_LOG_DELAY + 1)) : 0;
}

/* The element of the access that begins `at` bytes behind its first, as memory has it if nothing of
 * it has been noted so far.  NULL: no memory. */
static struct piece *piece_at(struct race_checker *c, const struct emu_access *a, uint64_t at,
                              unsigned size)
{
    struct race_stale *s = c->stale;
    struct piece *p;

    for (uint32_t i = s->num; i-- > 0;)
        if (s->pieces[i].at == at && (a->bytes > a->lane_bytes || s->pieces[i].lanes == a->lanes))
            return &s->pieces[i];
    if (!race_ok(c, race_room(&s->pieces, s->num, &s->max, sizeof *s->pieces)))
        return NULL;
    p = &s->pieces[s->num++];
    *p = (struct piece){.at = at, .lanes = a->lanes, .size = (uint8_t)size};
    if (a->by && a->lane_bytes < a->bytes)
        p->lanes = 1u << at / a->lane_bytes;
    if (a->by)
        p->index = (uint8_t)(at % a->lane_bytes / size);
    memcpy(p->bytes, a->host + at, size);
    return p;
}

void race_old_see(struct race_checker *c, const struct emu_access *a, uint32_t reader,
                  const struct race_block *block, unsigned cell, uint64_t at,
                  const struct race_mark *mark, uint16_t bytes)
{
    unsigned size = a->elem, first = (unsigned)__builtin_ctz(bytes);
    unsigned byte = first;

    /* Elements count from the access's first byte: where memory is not aligned, one may lie in two
     * cells, and is delayed as one. */
    for (unsigned end; byte < RACE_CELL; byte = end) {
        uint64_t behind = (at + byte - first) % size, start = cell * RACE_CELL + byte;
        uint64_t seen = block->old->when[cell] +
                        delay(c, mark, reader, (start + RACE_BLOCK - behind) % RACE_BLOCK);
        uint16_t mine;
        struct piece *p;

        end = byte + size - (unsigned)behind;
        mine = bytes & (uint16_t)((1u << (end < RACE_CELL ? end : RACE_CELL)) - (1u << byte));
        if (!mine || seen <= c->world->now)
            continue;
        if (seen < c->stale->soonest)
            c->stale->soonest = seen;
        p = piece_at(c, a, at + byte - first - behind, size);
        for (; p && mine; mine &= mine - 1) {
            unsigned b = (unsigned)__builtin_ctz(mine);

            p->bytes[behind + b - byte] = block->old->bytes[cell * RACE_CELL + b];
        }
    }
}

static void set_registers(struct emu_exec *x, const struct emu_instr *op, int32_t at,
                          uint32_t lanes, const uint8_t *bytes)
{
    void *reg = x->warp->registers + at;
    uint64_t value = 0;

    memcpy(&value, bytes, op->elem);
    for (uint32_t left = lanes; left; left &= left - 1) {
        if (op->wide)
            ((emu_u64 *)reg)[__builtin_ctz(left)] = value;
        else
            ((emu_u32 *)reg)[__builtin_ctz(left)] =
                emu_narrow((uint32_t)value, op->dst_mask, op->dst_sign);
    }
}

void race_old_load(struct race_checker *c, struct emu_exec *x, const struct emu_instr *op)
{
    struct race_stale *s = c->stale;

    for (uint32_t i = 0; i < s->num; i++) {
        const struct piece *p = &s->pieces[i];

        /* A .b128 is one piece in two registers. */
        for (unsigned at = 0; at < p->size; at += op->elem)
            set_registers(x, op, op->dst[p->index + at / op->elem], p->lanes, p->bytes + at);
    }
    s->num = 0;
}

void race_old_copy(struct race_checker *c, uint8_t *bytes)
{
    struct race_stale *s = c->stale;

    for (uint32_t i = 0; i < s->num; i++)
        memcpy(bytes + s->pieces[i].at, s->pieces[i].bytes, s->pieces[i].size);
    s->num = 0;
}
