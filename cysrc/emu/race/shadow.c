/* SPDX-License-Identifier: MIT */
#include "shadow.h"
#include "array.h"

#include <stdlib.h>
#include <string.h>

/* -- marks ------------------------------------------------------------------------------------- */

uint32_t race_mark_lanes(const struct race_mark *mark, uint16_t bytes)
{
    uint32_t lanes = 0, left = mark->lanes;
    unsigned size = 1u << mark->spread >> 1;

    if (!mark->spread)
        return mark->lanes;
    for (unsigned at = __builtin_ctz(mark->bytes); left && at < RACE_CELL;
         at += size, left &= left - 1)
        if (bytes >> at & ((1u << size) - 1))
            lanes |= left & -left;
    return lanes;
}

bool race_clock_knows_mark(const struct race_clock *clock, enum race_plane plane,
                           const struct race_mark *mark, uint32_t lanes)
{
    if (race_clock_knows_all(clock, plane, mark->slot, mark->time))
        return true;
    if (mark->flags & (RACE_ASYNC | RACE_HOST | RACE_NC))
        return false;                    /* a slot of one agent; lanes say who it is          */
    for (; lanes; lanes &= lanes - 1)
        if (!race_clock_knows(clock, plane, mark->slot, __builtin_ctz(lanes), mark->time))
            return false;
    return true;
}

bool race_cell_add(struct race_cell *cell, const struct race_mark *mark)
{
    if (cell->num >= 2 && !race_room(&cell->more, cell->num - 2, &cell->max, sizeof *cell->more))
        return false;
    cell->num++;
    *race_cell_at(cell, cell->num - 1) = *mark;
    return true;
}

void race_cell_remove(struct race_cell *cell, uint32_t i)
{
    *race_cell_at(cell, i) = *race_cell_at(cell, cell->num - 1);
    cell->num--;
}

/* -- words ------------------------------------------------------------------------------------- */

struct race_word *race_word_make(struct race_block *block, unsigned at)
{
    struct race_word **word;

    if (!block->words && !(block->words = calloc(RACE_WORDS, sizeof *block->words)))
        return NULL;
    word = &block->words[at / 4];
    if (!*word)
        *word = calloc(1, sizeof **word);
    return *word;
}

void race_word_free(struct race_word *word)
{
    if (!word)
        return;
    for (uint32_t i = 0; i < word->num; i++)
        race_clock_drop(word->tokens[i].clock);
    free(word->tokens);
    free(word);
}

bool race_word_add(struct race_word *word, const struct race_token *token)
{
    if (!race_room(&word->tokens, word->num, &word->max, sizeof *word->tokens))
        return false;
    word->tokens[word->num++] = *token;
    return true;
}

static void free_words(struct race_block *block)
{
    for (uint32_t i = 0; block->words && i < RACE_WORDS; i++)
        race_word_free(block->words[i]);
    free(block->words);
}

/* -- blocks ------------------------------------------------------------------------------------ */

static void free_cells(struct race_block *block)
{
    for (uint32_t i = 0; block->cells && i < RACE_CELLS; i++)
        free(block->cells[i].more);
    free(block->cells);
    block->cells = NULL;
    block->split = false;
}

void race_block_clear(struct race_block *block)
{
    free_cells(block);
    block->write.flags = block->read.flags = 0;
}

bool race_block_split(struct race_block *block)
{
    if (block->split)
        return true;
    block->cells = calloc(RACE_CELLS, sizeof *block->cells);
    if (!block->cells)
        return false;
    block->split = true;
    for (unsigned i = 0; i < RACE_CELLS; i++) {
        struct race_mark write = race_mark_part(&block->write, i);
        struct race_mark read = race_mark_part(&block->read, i);

        if (write.flags)
            race_cell_add(&block->cells[i], &write);
        if (read.flags)
            race_cell_add(&block->cells[i], &read);
    }
    block->write.flags = block->read.flags = 0;
    return true;
}

/* -- shadows ----------------------------------------------------------------------------------- */

struct race_shadow *race_shadow_new(struct race_shadow **all, uint64_t bytes)
{
    struct race_shadow *shadow = calloc(1, sizeof *shadow);

    if (!shadow)
        return NULL;
    shadow->num_blocks = (bytes + RACE_BLOCK - 1) / RACE_BLOCK;
    shadow->pages = calloc(shadow->num_blocks / RACE_PAGE + 1, sizeof *shadow->pages);
    if (!shadow->pages) {
        free(shadow);
        return NULL;
    }
    shadow->next = *all;
    shadow->link = all;
    if (*all)
        (*all)->link = &shadow->next;
    *all = shadow;
    return shadow;
}

struct race_block *race_block_make(struct race_shadow *shadow, uint64_t index)
{
    struct race_block **page = &shadow->pages[index / RACE_PAGE];

    if (!*page)
        *page = calloc(RACE_PAGE, sizeof **page);
    return *page ? &(*page)[index % RACE_PAGE] : NULL;
}

void race_shadow_free(struct race_shadow *shadow)
{
    if (!shadow)
        return;
    for (uint64_t p = 0; p <= shadow->num_blocks / RACE_PAGE; p++) {
        struct race_block *page = shadow->pages[p];

        for (uint32_t i = 0; page && i < RACE_PAGE; i++) {
            free_cells(&page[i]);
            free_words(&page[i]);
            free(page[i].old);
        }
        free(page);
    }
    *shadow->link = shadow->next;
    if (shadow->next)
        shadow->next->link = shadow->link;
    free(shadow->pages);
    free(shadow);
}
