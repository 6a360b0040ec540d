/* SPDX-License-Identifier: MIT
 *
 * Which synchronisation there was, also such as orders nothing: of a race it is asked what would
 * have ordered the two accesses, and what is missing there. */
#ifndef DEEPEP_PTX_EMU_RACE_HISTORY_H
#define DEEPEP_PTX_EMU_RACE_HISTORY_H

#include <stdbool.h>
#include <stdint.h>

enum race_edge_kind {
    RACE_EDGE_WORD,          /* a strong store, and a load that has read it                   */
    RACE_EDGE_BAR,           /* bar.sync                                                      */
    RACE_EDGE_MBAR,          /* arrival and wait                                              */
    RACE_EDGE_COPY,          /* a bulk copy's end, and who waits for it                       */
    RACE_EDGE_STREAM         /* begins and ends of grids, streams and events                  */
};

enum race_lacks {            /* bits: what an edge lacks for an order                         */
    RACE_LACKS_RELEASE = 1,
    RACE_LACKS_ACQUIRE = 2,
    RACE_LACKS_SCOPE = 4
};

#define RACE_NODE UINT32_C(0x80000000)   /* a place that is no slot: a barrier's completion   */

struct race_edge {
    uint32_t from, from_time, from_pc;
    uint32_t to, to_time, to_pc;
    uint8_t kind, lacks;
    int8_t from_lane, to_lane;           /* -1: all                                           */
    uint32_t before;         /* number + 1 of the edge before it to the same place            */
};

#define RACE_EDGES (1u << 18)            /* that are kept                                     */
#define RACE_NODES (1u << 14)            /* heads of nodes, by number modulo this             */

struct race_history {
    struct race_edge *edges;             /* a ring                                            */
    uint32_t num;                        /* ever made                                         */
    uint32_t *heads;                     /* [num_heads] per slot, number + 1                  */
    uint32_t num_heads;
    uint32_t *node_heads;                /* [RACE_NODES]                                      */
    uint32_t num_nodes;
    uint64_t *recent;
};

/* A new node. */
uint32_t race_history_node(struct race_history *h);
/* False: no memory. */
bool race_history_add(struct race_history *h, const struct race_edge *edge);
void race_history_free(struct race_history *h);

/* The way from an access of slot `from` at `from_time` to slot `to` at `to_time` that lacks least,
 * as edges, the first first; at most `max`.  Returns how many: 0 where there is none (*found is
 * false), and where both are of one slot. */
struct race_query { uint32_t from, from_time, to, to_time; };
uint32_t race_history_way(const struct race_history *h, const struct race_query *query,
                          const struct race_edge **way, uint32_t max, bool *found);

#endif
