/* SPDX-License-Identifier: MIT */
#include "history.h"

#include <stdlib.h>
#include <string.h>

#define RECENT (1u << 12)                /* edges that are known again, by hash               */

uint32_t race_history_node(struct race_history *h)
{
    return RACE_NODE | (h->num_nodes++ & ~RACE_NODE);
}

static bool grow_heads(struct race_history *h, uint32_t slot)
{
    uint32_t num = h->num_heads ? h->num_heads : 256, *grown;

    if (!h->edges && !(h->edges = calloc(RACE_EDGES, sizeof *h->edges)))
        return false;
    if (!h->node_heads && !(h->node_heads = calloc(RACE_NODES, sizeof *h->node_heads)))
        return false;
    if (!h->recent && !(h->recent = calloc(RECENT, sizeof *h->recent)))
        return false;
    if (slot & RACE_NODE || slot < h->num_heads)
        return true;
    while (num <= slot)
        num *= 2;
    grown = realloc(h->heads, num * sizeof *grown);
    if (!grown)
        return false;
    memset(grown + h->num_heads, 0, (num - h->num_heads) * sizeof *grown);
    h->heads = grown;
    h->num_heads = num;
    return true;
}

static uint32_t *head_of(const struct race_history *h, uint32_t place)
{
    return place & RACE_NODE ? &h->node_heads[place % RACE_NODES] : &h->heads[place];
}

/* A poll sees the same again and again: it is kept once. */
static bool is_new(struct race_history *h, const struct race_edge *edge)
{
    uint64_t what = ((uint64_t)edge->from << 32 | edge->from_time) * 0x9e3779b97f4a7c15;
    uint64_t *recent;

    what = (what ^ what >> 29 ^ ((uint64_t)edge->to << 32 | edge->to_pc << 6 |
                                 (uint8_t)(edge->to_lane + 1))) * 0xbf58476d1ce4e5b9;
    recent = &h->recent[what >> 32 & (RECENT - 1)];
    if (*recent == what)
        return false;
    *recent = what;
    return true;
}

bool race_history_add(struct race_history *h, const struct race_edge *edge)
{
    struct race_edge *to;
    uint32_t *head;

    if (!grow_heads(h, edge->to))
        return false;
    if (!is_new(h, edge))
        return true;
    head = head_of(h, edge->to);
    to = &h->edges[h->num % RACE_EDGES];
    *to = *edge;
    to->before = *head;
    *head = ++h->num;
    return true;
}

void race_history_free(struct race_history *h)
{
    free(h->edges);
    free(h->heads);
    free(h->node_heads);
    free(h->recent);
}

/* -- the search -------------------------------------------------------------------------------- */

#define MOST_STEPS (1u << 16)            /* places looked at in one search                    */
#define MOST_COST 16
#define NOWHERE UINT32_MAX

/* A place on the way back from the second access. */
struct step {
    uint32_t place, time;
    uint32_t cost;
    uint32_t edge;           /* number + 1 of the one that leads on to `next`; 0: the end     */
    uint32_t next;           /* of the steps                                                  */
    uint32_t below;          /* in its cost's stack                                           */
};

/* Steps are taken in order of their cost, so a place that comes again is of use only if it is later
 * in time than before. */
struct search {
    const struct race_history *h;
    uint32_t num;
    uint32_t stacks[MOST_COST];          /* by cost: the step on top, or NOWHERE              */
    struct { uint32_t place, time; bool used; } best[2 * MOST_STEPS];
    struct step steps[MOST_STEPS];
};

static const struct race_edge *edge_at(const struct race_history *h, uint32_t number)
{
    return number && h->num - (number - 1) <= RACE_EDGES ? &h->edges[(number - 1) % RACE_EDGES]
                                                         : NULL;
}

static bool is_news(struct search *s, uint32_t place, uint32_t time)
{
    uint32_t at = place * 0x9e3779b1u % (2 * MOST_STEPS);

    while (s->best[at].used && s->best[at].place != place)
        at = (at + 1) % (2 * MOST_STEPS);
    if (s->best[at].used && s->best[at].time >= time)
        return false;
    s->best[at].used = true;
    s->best[at].place = place;
    s->best[at].time = time;
    return true;
}

static void push(struct search *s, const struct step *step)
{
    uint32_t cost = step->cost < MOST_COST ? step->cost : MOST_COST - 1;

    if (s->num == MOST_STEPS)
        return;
    s->steps[s->num] = *step;
    s->steps[s->num].below = s->stacks[cost];
    s->stacks[cost] = s->num++;
}

static uint32_t pop(struct search *s)
{
    for (uint32_t cost = 0; cost < MOST_COST; cost++)
        if (s->stacks[cost] != NOWHERE) {
            uint32_t at = s->stacks[cost];

            s->stacks[cost] = s->steps[at].below;
            return at;
        }
    return NOWHERE;
}

static void go_back(struct search *s, uint32_t at)
{
    const struct step here = s->steps[at];
    uint32_t number = !(here.place & RACE_NODE) && here.place >= s->h->num_heads
                          ? 0 : *head_of(s->h, here.place);
    const struct race_edge *edge;

    for (; (edge = edge_at(s->h, number)); number = edge->before) {
        if (edge->to != here.place || (!(here.place & RACE_NODE) && edge->to_time > here.time))
            continue;
        push(s, &(struct step){
            .place = edge->from, .time = edge->from_time, .edge = number, .next = at,
            .cost = here.cost + (uint32_t)__builtin_popcount(edge->lacks),
        });
    }
}

uint32_t race_history_way(const struct race_history *h, const struct race_query *query,
                          const struct race_edge **way, uint32_t max, bool *found)
{
    struct search *s = h->edges ? calloc(1, sizeof *s) : NULL;
    uint32_t at, num = 0;

    *found = false;
    if (!s)
        return 0;
    s->h = h;
    memset(s->stacks, 0xff, sizeof s->stacks);
    push(s, &(struct step){.place = query->to, .time = query->to_time});
    while ((at = pop(s)) != NOWHERE) {
        const struct step *step = &s->steps[at];

        if (step->place != query->from || step->time < query->from_time) {
            if (is_news(s, step->place, step->time))
                go_back(s, at);
            continue;
        }
        *found = true;
        for (; step->edge && num < max; step = &s->steps[step->next])
            way[num++] = edge_at(h, step->edge);
        break;
    }
    free(s);
    return num;
}
