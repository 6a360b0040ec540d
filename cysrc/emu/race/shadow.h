/* SPDX-License-Identifier: MIT
 *
 * What is remembered of memory: who accessed which byte last, and what strong stores carried.
 *
 * Memory is looked at in blocks of 512 bytes, which a warp's widest access fills, and in cells of
 * 16 bytes inside of a block that was not accessed as a whole. */
#ifndef DEEPEP_PTX_EMU_RACE_SHADOW_H
#define DEEPEP_PTX_EMU_RACE_SHADOW_H

#include "clock.h"

#define RACE_CELL 16
#define RACE_BLOCK 512
#define RACE_CELLS (RACE_BLOCK / RACE_CELL)
#define RACE_WORDS (RACE_BLOCK / 4)
#define RACE_SPREAD 5                    /* `spread` of a block: 16 bytes a lane               */

enum race_mark_flags {
    RACE_WRITES = 1,
    RACE_READS = 2,
    RACE_STRONG = 4,
    RACE_ASYNC = 8,          /* by the async proxy                                            */
    RACE_HOST = 16,          /* by a host thread or a stream                                  */
    RACE_NC = 32             /* ld.global.nc: lasts until its grid ends                       */
};

/* An access that is remembered. */
struct race_mark {
    uint32_t slot, time, pc;
    uint32_t lanes;          /* see `spread`                                                  */
    uint16_t bytes;          /* of its cell; of a block: all                                  */
    uint8_t flags;           /* enum race_mark_flags                                          */
    uint8_t scope;           /* of a strong access                                            */
    uint8_t elem;            /* bytes of one element                                          */
    uint8_t spread;          /* 0: each of `lanes` accessed all the bytes.  Else 1 + log2 of the
                                bytes of each: `lanes` in order                               */
};

/* Marks of the bytes of a cell. */
struct race_cell {
    uint32_t num, max;       /* max: those that `more` has room for beside the first two      */
    uint64_t version;        /* another one behind each write                                 */
    uint32_t crowd;          /* how many make it worth while to look for those that are over  */
    struct race_mark first[2];
    struct race_mark *more;
};

static inline struct race_mark *race_cell_at(struct race_cell *cell, uint32_t i)
{
    return i < 2 ? &cell->first[i] : &cell->more[i - 2];
}

/* False: no memory. */
bool race_cell_add(struct race_cell *cell, const struct race_mark *mark);
void race_cell_remove(struct race_cell *cell, uint32_t i);

/* A release, as whoever acquires it gets it. */
struct race_token {
    struct race_clock *clock;
    uint32_t slot, time, synced;         /* the lane up to `time`, all others up to `synced`  */
    uint8_t lane;
    uint8_t scope;
    uint32_t pc;
};

/* What the last strong store to a word carries. */
struct race_word {
    uint32_t num, max;
    struct race_token *tokens;           /* several where atomics added to it                 */
    struct race_mark last;               /* the store itself; lanes: one                      */
};

struct race_old;             /* old.h; from malloc */

struct race_block {
    bool split;              /* `cells` hold its marks                                        */
    struct race_mark write, read;        /* of a block in one piece; flags 0: none            */
    struct race_cell *cells;
    struct race_word **words;            /* [RACE_WORDS]; NULL: no strong store has been here */
    struct race_old *old;
};

struct race_shadow {
    struct race_shadow *next, **link;    /* of all                                            */
    uint64_t num_blocks;
    struct race_block **pages;           /* of RACE_PAGE blocks each                          */
};

#define RACE_PAGE 64

struct race_shadow *race_shadow_new(struct race_shadow **all, uint64_t bytes);
void race_shadow_free(struct race_shadow *shadow);

/* NULL: no memory. */
struct race_block *race_block_make(struct race_shadow *shadow, uint64_t index);

static inline struct race_block *race_block_at(struct race_shadow *shadow, uint64_t index)
{
    struct race_block *page = shadow->pages[index / RACE_PAGE];

    return page ? &page[index % RACE_PAGE] : race_block_make(shadow, index);
}

/* From one piece to cells.  False: no memory. */
bool race_block_split(struct race_block *block);
/* No mark is left; strong stores stay. */
void race_block_clear(struct race_block *block);

/* The word at byte `at` of the block, made if it is not there: NULL is no memory. */
struct race_word *race_word_make(struct race_block *block, unsigned at);
void race_word_free(struct race_word *word);
bool race_word_add(struct race_word *word, const struct race_token *token);

/* The mark of a whole block, as its cell i has it. */
static inline struct race_mark race_mark_part(const struct race_mark *mark, unsigned i)
{
    struct race_mark part = *mark;

    if (part.spread) {
        part.spread = 0;
        part.lanes = UINT32_C(1) << i;
    }
    return part;
}

/* Whether the clock is after what these lanes of the mark did. */
bool race_clock_knows_mark(const struct race_clock *clock, enum race_plane plane,
                           const struct race_mark *mark, uint32_t lanes);
/* The lanes of a mark that accessed the bytes of a cell. */
uint32_t race_mark_lanes(const struct race_mark *mark, uint16_t bytes);

#endif
