/* SPDX-License-Identifier: MIT
 *
 * Vector clocks: what an agent's next step comes after.
 *
 * An agent has a slot, and a time in it that only grows; whatever it does bears its slot and time.
 * A slot is 32 lanes wide: `times` says up to when all of them are known, `lanes` of which single
 * ones more is.  There are three planes of this: what comes before at all, and of that what the
 * async proxy may rely on, since a proxy fence lies between, in global and in shared memory.
 *
 * A clock has counted references.  With more than one it never changes: race_clock_own() makes a
 * copy.  Functions that return bool: false is no memory. */
#ifndef DEEPEP_PTX_EMU_RACE_CLOCK_H
#define DEEPEP_PTX_EMU_RACE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

enum race_plane { RACE_ORDER, RACE_ASYNC_GLOBAL, RACE_ASYNC_SHARED, RACE_PLANES };

struct race_lane_time { uint32_t who, time; };       /* who: slot << 5 | lane */

struct race_lane_times {
    struct race_lane_time *of;           /* in order of `who`                                 */
    uint32_t num, max;
};

#define RACE_JOINED 8

struct race_clock {
    uint32_t refs;
    uint32_t num_planes;                 /* 1: the other planes are as the first              */
    uint32_t num_slots;
    uint32_t node;                       /* whose clock it is, in the history; 0: nobody's    */
    uint64_t id;                         /* of no other clock, nor of what this one was before */
    uint64_t joined[RACE_JOINED];        /* ids of the last clocks that it was joined with    */
    uint32_t num_joined;
    struct race_pool *pool;
    struct race_clock *next;             /* in the pool                                       */
    struct race_lane_times lanes[RACE_PLANES];
    uint32_t times[];                    /* [num_planes][num_slots]                           */
};

/* Clocks of one size that are free: large ones come and go all the time. */
struct race_pool {
    struct race_clock *free;
    uint32_t num;
};

/* What clocks have to have room for, as things are, and whose they are. */
struct race_extent {
    uint32_t num_planes, num_slots;
    struct race_pool *pool;              /* which outlives its clocks                         */
};

/* After nothing.  NULL: no memory. */
struct race_clock *race_clock_new(struct race_extent extent);
void race_clock_drop(struct race_clock *clock);
void race_pool_empty(struct race_pool *pool);

static inline struct race_clock *race_clock_hold(struct race_clock *clock)
{
    if (clock)
        clock->refs++;
    return clock;
}

/* *clock becomes one of that extent with `refs` references, which are all its holder's: it may
 * change. */
bool race_clock_own(struct race_clock **clock, uint32_t refs, struct race_extent extent);

bool race_clock_knows(const struct race_clock *clock, enum race_plane plane, uint32_t slot,
                      unsigned lane, uint32_t time);

/* All lanes of a slot up to `time`. */
static inline bool race_clock_knows_all(const struct race_clock *clock, enum race_plane plane,
                                        uint32_t slot, uint32_t time)
{
    uint32_t p = plane < clock->num_planes ? plane : 0;

    return slot < clock->num_slots && clock->times[p * clock->num_slots + slot] >= time;
}

/* Whether `clock` comes after all that `other` does. */
bool race_clock_covers(const struct race_clock *clock, const struct race_clock *other);

/* Of an owned clock of the extent: it comes after more. */
void race_clock_note(struct race_clock *clock, enum race_plane plane, uint32_t slot, uint32_t time);
bool race_clock_note_lane(struct race_clock *clock, enum race_plane plane, uint32_t slot,
                          unsigned lane, uint32_t time);
bool race_clock_join(struct race_clock *clock, const struct race_clock *other);
/* A proxy fence: what comes before in the first plane does so in that one. */
bool race_clock_fence(struct race_clock *clock, enum race_plane plane);
/* Whether that would change anything. */
bool race_clock_is_fenced(const struct race_clock *clock, enum race_plane plane);

#endif
