/* SPDX-License-Identifier: MIT */
#include "find.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_FOUND 256                   /* pairs of lines                                    */

/* -- places ------------------------------------------------------------------------------------ */

static const char *what_of(const struct race_mark *mark)
{
    bool reads = mark->flags & RACE_READS, writes = mark->flags & RACE_WRITES;

    if (mark->flags & RACE_HOST)
        return writes ? "host write" : "host read";
    if (mark->flags & RACE_ASYNC)
        return mark->flags & RACE_STRONG ? "bulk copy's arrival"
             : writes ? "bulk write" : "bulk read";
    return reads && writes ? "atomic" : writes ? "store" : "load";
}

static void set_statement(struct race_place *place, const struct emu_kernel *kernel, uint32_t pc)
{
    int32_t line = kernel->line_of[pc];

    place->kernel = kernel->symbol;
    place->statement = kernel->texts[pc];
    if (line >= 0) {
        place->file = kernel->files[kernel->lines[line].file];
        place->line = kernel->lines[line].line;
        place->ptx_line = kernel->lines[line].ptx_line;
    }
}

static struct race_place place_of(const struct race_checker *c, uint32_t slot, uint32_t time,
                                  uint32_t pc, uint32_t lanes, const char *what)
{
    const struct race_tenant *tenant = race_tenant_at(c, slot, time);
    struct race_place place = {
        .what = what, .kernel = "", .file = "", .statement = "", .lanes = lanes,
        .rank = (int32_t)c->slots[slot].rank, .cta = -1, .warp = -1,
    };

    if (!tenant->grid)
        return place;
    set_statement(&place, tenant->grid->kernel, pc);
    if (tenant->agent != RACE_NC_LOADS) {
        place.cta = (int32_t)tenant->cta;
        place.warp = (int32_t)tenant->warp;
    }
    return place;
}

static struct race_place place_of_mark(const struct race_checker *c, const struct race_mark *mark,
                                       uint16_t common)
{
    return place_of(c, mark->slot, mark->time, mark->pc, race_mark_lanes(mark, common),
                    what_of(mark));
}

static struct race_place place_of_end(const struct race_checker *c, uint32_t place, uint32_t time,
                                      uint32_t pc, int lane)
{
    if (place & RACE_NODE)
        return (struct race_place){.what = "", .kernel = "", .file = "", .statement = "",
                                   .rank = -1, .cta = -1, .warp = -1};
    return place_of(c, place, time, pc, lane < 0 ? EMU_ALL_LANES : 1u << lane, "");
}

/* -- what would have ordered them -------------------------------------------------------------- */

static const char *lacks_text(uint8_t lacks)
{
    static const char *const texts[] = {
        "", "no release", "no acquire", "neither release nor acquire", "scope too narrow",
        "no release, scope too narrow", "no acquire, scope too narrow",
        "neither release nor acquire, scope too narrow",
    };

    return texts[lacks & 7];
}

static const char *by_text(uint8_t kind)
{
    static const char *const texts[] = {
        [RACE_EDGE_WORD] = "the value is read", [RACE_EDGE_BAR] = "bar.sync",
        [RACE_EDGE_MBAR] = "mbarrier phase", [RACE_EDGE_COPY] = "completion",
        [RACE_EDGE_STREAM] = "kernel boundary",
    };

    return texts[kind];
}

static uint32_t query_to(const struct race_pair *pair, uint32_t *time)
{
    const struct race_copy *copy = pair->access->copy ? pair->access->copy->watched : NULL;

    *time = copy ? copy->issued : pair->second->time;
    if (pair->second->flags & RACE_NC) {
        const struct race_warp *warp = pair->access->by->watched;

        *time = UINT32_MAX;
        return warp->slot;
    }
    return copy ? copy->issuer : pair->second->slot;
}

static void say(struct race_found *f, const char *format, const struct race_place *place,
                const char *rest)
{
    snprintf(f->fix, sizeof f->fix, format, place->file[0] ? place->file : "<ptx>",
             place->file[0] ? place->line : place->ptx_line, place->statement, rest);
}

/* The way as links, and of the first one that lacks something its number + 1.  All that they lack
 * together: *lacks. */
static uint32_t set_links(const struct race_checker *c, struct race_found *f,
                          const struct race_edge **way, uint32_t num, uint8_t *lacks)
{
    uint32_t bad = 0;

    *lacks = 0;
    for (uint32_t i = 0; i < num && f->num_links < RACE_CHAIN; i++) {
        const struct race_edge *in = way[i], *out = in;

        /* Into a barrier, or a stream, and out of it again is one link. */
        while (out->to & RACE_NODE && i + 1 < num)
            out = way[++i];
        f->links[f->num_links++] = (struct race_link){
            .from = place_of_end(c, in->from, in->from_time, in->from_pc, in->from_lane),
            .to = place_of_end(c, out->to, out->to_time, out->to_pc, out->to_lane),
            .by = by_text(in->kind), .lacks = lacks_text(in->lacks | out->lacks),
        };
        if ((in->lacks | out->lacks) && !bad)
            bad = f->num_links;
        *lacks |= in->lacks | out->lacks;
    }
    return bad;
}

/* Both are strong: they would be no race if their scopes included each other. */
static void explain_scopes(const struct race_pair *pair, struct race_found *f)
{
    f->kind = RACE_SCOPE;
    if (pair->first->elem != pair->second->elem)
        say(f, "%s:%u (%s) and the other access must be of the same bytes%s", &f->first, "");
    else
        say(f, "the scopes of %s:%u (%s) and of the other access must include both threads%s",
            &f->first, "");
}

/* Links, kind and fix of a race that no proxy explains. */
static void explain(struct race_checker *c, const struct race_pair *pair, struct race_found *f)
{
    const struct race_edge *way[2 * RACE_CHAIN];
    struct race_query query = {.from = pair->first->slot, .from_time = pair->first->time};
    const struct race_tenant *tenant = race_tenant_at(c, pair->first->slot, pair->first->time);
    const struct race_copy *copy = pair->access->copy ? pair->access->copy->watched : NULL;
    bool passed = copy && pair->first->slot == copy->issuer && pair->first->time > copy->issued;
    const struct race_link *link;
    bool found;
    uint8_t lacks;
    uint32_t num, bad;

    query.to = query_to(pair, &query.to_time);
    num = race_history_way(&c->history, &query, way, 2 * RACE_CHAIN, &found);
    bad = set_links(c, f, way, num, &lacks);
    link = bad ? &f->links[bad - 1] : NULL;
    f->kind = lacks & RACE_LACKS_SCOPE ? RACE_SCOPE : bad ? RACE_RELAXED
              : tenant->agent == RACE_COPY || passed ? RACE_COMPLETION : RACE_UNORDERED;
    if (f->kind == RACE_SCOPE)
        say(f, "the scopes of %s:%u (%s) and of what reads it must include both threads%s",
            &link->from, "");
    else if (bad && strstr(link->lacks, "release"))
        say(f, "%s:%u (%s) must be a release, or come behind a fence.acq_rel%s", &link->from,
            strstr(link->lacks, "acquire") ? ", and its reader must acquire" : "");
    else if (bad)
        say(f, "%s:%u (%s) must acquire, or be followed by a fence.acq_rel%s", &link->to, "");
    else if (f->kind == RACE_COMPLETION)
        say(f, "%s:%u (%s) must have ended before: %s", passed ? &f->second : &f->first,
            "a phase of its mbarrier, or wait_group of its bulk group (.read: its source alone)");
    else if (found || pair->first->slot == pair->second->slot)
        say(f, "bar.warp.sync between %s:%u (%s) and what another lane of the warp does next%s",
            &f->first, "");
    else
        say(f, "a barrier, or a release behind %s:%u (%s) and an acquire of it before the other "
            "access%s", &f->first, "");
}

/* -- races ------------------------------------------------------------------------------------- */

static bool same_line(const struct race_place *a, const struct race_place *b)
{
    return a->what == b->what && a->kernel == b->kernel && a->file == b->file &&
           a->line == b->line && a->ptx_line == b->ptx_line;
}

static struct race_found *find_same(const struct race_checker *c, const struct race_found *f)
{
    for (struct race_found *each = c->found; each; each = each->next)
        if (same_line(&each->first, &f->first) && same_line(&each->second, &f->second) &&
            (each->kind == RACE_NC_WRITTEN) == (f->kind == RACE_NC_WRITTEN) &&
            (each->kind == RACE_PROXY) == (f->kind == RACE_PROXY))
            return each;
    return NULL;
}

static void describe_memory(const struct race_pair *pair, struct race_found *f)
{
    const struct emu_access *a = pair->access;

    f->offset = pair->cell + (uint32_t)__builtin_ctz(pair->common);
    f->bytes = (uint32_t)__builtin_popcount(pair->common);
    f->owner = a->segment ? (int32_t)a->segment->owner : (int32_t)a->rank;
    snprintf(f->memory, sizeof f->memory, "%s", a->segment ? a->segment->name : "shared memory");
}

void race_find(struct race_checker *c, const struct race_pair *pair)
{
    struct race_found *f, *same;
    bool nc = pair->nc || pair->first->flags & RACE_NC;
    struct race_found new = {
        .kind = nc ? RACE_NC_WRITTEN : pair->ordered_without_proxies ? RACE_PROXY
                                                                          : RACE_UNORDERED,
        .count = 1,
    };

    if (!c->options.reports)
        return;
    new.first = place_of_mark(c, pair->first, pair->common);
    new.second = place_of_mark(c, pair->second, pair->common);
    if (pair->access->by) {
        new.second.cta = (int32_t)pair->access->cta;
        new.second.warp = (int32_t)pair->access->warp;
    }
    same = find_same(c, &new);
    if (same) {
        same->count++;
        return;
    }
    if (c->num_found == MOST_FOUND)
        return;
    f = malloc(sizeof *f);
    if (!race_ok(c, f != NULL))
        return;
    *f = new;
    describe_memory(pair, f);
    if (nc)
        say(f, "PTX leaves it open what %s:%u (%s) reads: memory that is written while the grid "
            "runs is not read-only; %s", pair->nc ? &f->second : &f->first,
            "ld.global without .nc");
    else if (pair->first->flags & pair->second->flags & RACE_STRONG)
        explain_scopes(pair, f);
    else if (f->kind == RACE_PROXY)
        snprintf(f->fix, sizeof f->fix, "fence.proxy.async%s between %s:%u and %s:%u",
                 pair->access->space == EMU_SP_SHARED ? ".shared::cta" : ".global", f->first.file,
                 f->first.line, f->second.file, f->second.line);
    else
        explain(c, pair, f);
    *c->last_found = f;
    c->last_found = &f->next;
    c->num_found++;
}

void race_found_free(struct race_checker *c)
{
    while (c->found) {
        struct race_found *next = c->found->next;

        free(c->found);
        c->found = next;
    }
}
