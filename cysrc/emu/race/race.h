/* SPDX-License-Identifier: MIT
 *
 * The race checker: an observer of a world that says of every access whether it is ordered, by the
 * rules of the PTX memory model, with those that it conflicts with.
 *
 * docs/verifier.md says what it takes for ordered and why.  Its host tells it what streams and host
 * threads come after, as `struct race_order`. */
#ifndef DEEPEP_PTX_EMU_RACE_H
#define DEEPEP_PTX_EMU_RACE_H

#include <stdbool.h>
#include <stdint.h>
#include "emu/device/emu.h"

struct race_checker;
struct race_clock;

struct race_options {
    uint32_t num_ranks;
    uint64_t seed;
    bool reports;            /* collect races                                                 */
    bool weak;               /* stores are seen late where nothing orders them                */
    bool strict;             /* the begin of a grid is no proxy fence                         */
};

/* NULL: no memory. */
struct race_checker *race_create(const struct race_options *options);
void race_destroy(struct race_checker *c);
/* Makes the checker what `observer` tells of accesses and events, of `world`. */
void race_observe(struct race_checker *c, struct emu_observer *observer);
/* False: no memory. */
bool race_set_world(struct race_checker *c, struct emu_world *world);
/* False: it had no memory at some point, and has checked nothing since. */
bool race_is_whole(const struct race_checker *c);

/* -- what the host and its streams come after --------------------------------------------------
 * All of these take a NULL checker, and then do nothing. */

/* A host thread or a stream of a rank: it accesses memory itself, and others come after it. */
struct race_order;
struct race_order *race_order_new(struct race_checker *c, uint32_t rank, bool is_stream);
void race_order_free(struct race_order *order);
/* What it has done and come after so far: a reference. */
struct race_clock *race_order_now(struct race_checker *c, struct race_order *order);
/* It comes after that too; NULL: nothing. */
void race_order_after(struct race_checker *c, struct race_order *order,
                      const struct race_clock *clock);
/* It comes after all that `other` has done; so does *clock, made if it is NULL. */
void race_order_follow(struct race_checker *c, struct race_order *order, struct race_order *other);
void race_order_give(struct race_checker *c, struct race_order *other, struct race_clock **clock);
void race_clock_release(struct race_clock *clock);

/* The host's accesses of memory are its from now on; NULL: nobody's, they are not looked at. */
void race_act_for(struct race_checker *c, struct race_order *order);
/* The grid, just launched and without a step so far, comes after what `order` does. */
void race_launch(struct race_checker *c, struct emu_grid *grid, struct race_order *order);
/* The grid is done; `order` comes after it.  Before emu_grid_free(). */
void race_finish(struct race_checker *c, struct emu_grid *grid, struct race_order *order);

/* -- what it found ----------------------------------------------------------------------------- */

enum race_kind {
    RACE_UNORDERED,          /* nothing orders the two                                        */
    RACE_RELAXED,            /* something would, were it release or acquire                   */
    RACE_SCOPE,              /* something would, were its scope wider                         */
    RACE_PROXY,              /* a proxy fence is missing                                      */
    RACE_COMPLETION,         /* nobody waited for a bulk copy's end                           */
    RACE_NC_WRITTEN          /* ld.global.nc of what is written while its grid runs           */
};

#define RACE_CHAIN 12        /* links of a chain that are kept                                */

/* Where and by whom; numbers are -1, strings "" where there is none. */
struct race_place {
    const char *what;        /* "load", "bulk write", ...                                     */
    const char *kernel, *file, *statement;
    uint32_t line, ptx_line, lanes;
    int32_t rank, cta, warp;
};

struct race_link {
    struct race_place from, to;
    const char *by;          /* "the value is read", "bar.sync", ...                          */
    const char *lacks;       /* "": nothing                                                   */
};

struct race_found {
    struct race_found *next;
    uint8_t kind;            /* enum race_kind                                                */
    uint64_t count;
    struct race_place first, second;
    char memory[64];
    int32_t owner;           /* rank                                                          */
    uint64_t offset;
    uint32_t bytes;
    uint32_t num_links;
    struct race_link links[RACE_CHAIN];  /* from the first access to the second               */
    char fix[256];
};

/* In the order in which they were found; valid until the checker's next call. */
const struct race_found *race_first(const struct race_checker *c);

#endif
