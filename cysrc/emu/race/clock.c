/* SPDX-License-Identifier: MIT */
#include "clock.h"
#include "array.h"

#include <stdlib.h>
#include <string.h>

#define LANE_BITS 5
#define MOST_POOLED 4096                 /* clocks that a pool keeps                          */

static uint32_t *plane_of(struct race_clock *clock, uint32_t plane)
{
    return clock->times + (uint64_t)plane * clock->num_slots;
}

static const uint32_t *plane_in(const struct race_clock *clock, uint32_t plane)
{
    return clock->times + (uint64_t)(plane < clock->num_planes ? plane : 0) * clock->num_slots;
}

static const struct race_lane_times *lanes_in(const struct race_clock *clock, uint32_t plane)
{
    return &clock->lanes[plane < clock->num_planes ? plane : 0];
}

static uint64_t new_id(void)
{
    static uint64_t ids;                 /* of all worlds, which threads of their own may run */

    return __atomic_add_fetch(&ids, 1, __ATOMIC_RELAXED);
}

/* One whose times are anything. */
static struct race_clock *take(struct race_extent extent)
{
    uint64_t times = (uint64_t)extent.num_planes * extent.num_slots;
    struct race_pool *pool = extent.pool;
    struct race_clock *clock = pool->free;

    /* The pool's are all of the last size that was asked for. */
    if (clock && (clock->num_planes != extent.num_planes || clock->num_slots != extent.num_slots)) {
        race_pool_empty(pool);
        clock = NULL;
    }
    if (clock) {
        pool->free = clock->next;
        pool->num--;
    } else if (!(clock = malloc(sizeof *clock + times * sizeof(uint32_t)))) {
        return NULL;
    }
    *clock = (struct race_clock){
        .refs = 1, .id = new_id(), .num_planes = extent.num_planes,
        .num_slots = extent.num_slots, .pool = pool,
    };
    return clock;
}

struct race_clock *race_clock_new(struct race_extent extent)
{
    struct race_clock *clock = take(extent);

    if (clock)
        memset(clock->times, 0,
               (uint64_t)extent.num_planes * extent.num_slots * sizeof(uint32_t));
    return clock;
}

void race_clock_drop(struct race_clock *clock)
{
    struct race_pool *pool;

    if (!clock || --clock->refs)
        return;
    for (uint32_t p = 0; p < RACE_PLANES; p++)
        free(clock->lanes[p].of);
    pool = clock->pool;
    if (pool->num == MOST_POOLED ||
        (pool->free && (pool->free->num_slots != clock->num_slots ||
                        pool->free->num_planes != clock->num_planes))) {
        free(clock);
        return;
    }
    clock->next = pool->free;
    pool->free = clock;
    pool->num++;
}

void race_pool_empty(struct race_pool *pool)
{
    while (pool->free) {
        struct race_clock *next = pool->free->next;

        free(pool->free);
        pool->free = next;
    }
    pool->num = 0;
}

static bool copy_lanes(struct race_lane_times *to, const struct race_lane_times *from)
{
    if (!from->num)
        return true;
    to->of = malloc(from->num * sizeof *to->of);
    if (!to->of)
        return false;
    memcpy(to->of, from->of, from->num * sizeof *to->of);
    to->num = to->max = from->num;
    return true;
}

/* The clock comes after all that the one of that id does. */
static void note_joined(struct race_clock *clock, uint64_t id)
{
    clock->joined[clock->num_joined++ % RACE_JOINED] = id;
}

static struct race_clock *clone(const struct race_clock *from, struct race_extent extent)
{
    struct race_clock *to = take(extent);

    for (uint32_t p = 0; to && p < extent.num_planes; p++) {
        memcpy(plane_of(to, p), plane_in(from, p), from->num_slots * sizeof(uint32_t));
        memset(plane_of(to, p) + from->num_slots, 0,
               (extent.num_slots - from->num_slots) * sizeof(uint32_t));
        if (!copy_lanes(&to->lanes[p], lanes_in(from, p))) {
            race_clock_drop(to);
            return NULL;
        }
    }
    return to;
}

bool race_clock_own(struct race_clock **clock, uint32_t refs, struct race_extent extent)
{
    struct race_clock *old = *clock, *new;

    if (old->refs == refs && old->num_slots >= extent.num_slots &&
        old->num_planes >= extent.num_planes) {
        note_joined(old, old->id);
        old->id = new_id();
        return true;
    }
    if (extent.num_slots < old->num_slots)
        extent.num_slots = old->num_slots;
    if (extent.num_planes < old->num_planes)
        extent.num_planes = old->num_planes;
    new = clone(old, extent);
    if (!new)
        return false;
    new->refs = refs;
    new->node = old->node;
    memcpy(new->joined, old->joined, sizeof new->joined);
    new->num_joined = old->num_joined;
    note_joined(new, old->id);
    old->refs -= refs - 1;
    race_clock_drop(old);
    *clock = new;
    return true;
}

/* The first place whose `who` is not below. */
static uint32_t place_of(const struct race_lane_times *lanes, uint32_t who)
{
    uint32_t low = 0, high = lanes->num;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (lanes->of[middle].who < who)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool race_clock_knows(const struct race_clock *clock, enum race_plane plane, uint32_t slot,
                      unsigned lane, uint32_t time)
{
    const struct race_lane_times *lanes = lanes_in(clock, plane);
    uint32_t who = slot << LANE_BITS | lane, at;

    if (race_clock_knows_all(clock, plane, slot, time))
        return true;
    at = place_of(lanes, who);
    return at < lanes->num && lanes->of[at].who == who && lanes->of[at].time >= time;
}

/* -- loops over slots, once for each instruction set of the host ------------------------------- */

#define INLINE static inline __attribute__((always_inline))

INLINE bool any_above(const uint32_t *a, const uint32_t *b, uint32_t num)
{
    uint32_t above = 0;

    for (uint32_t i = 0; i < num; i++)
        above |= a[i] > b[i];
    return above;
}

INLINE void raise_to(uint32_t *restrict a, const uint32_t *restrict b, uint32_t num)
{
    for (uint32_t i = 0; i < num; i++)
        a[i] = a[i] < b[i] ? b[i] : a[i];
}

#if defined(__x86_64__) && defined(__GNUC__)
#define AVX2 __attribute__((target("avx2")))

AVX2 static bool any_above_avx2(const uint32_t *a, const uint32_t *b, uint32_t num)
{
    return any_above(a, b, num);
}

AVX2 static void raise_to_avx2(uint32_t *restrict a, const uint32_t *restrict b, uint32_t num)
{
    raise_to(a, b, num);
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}
#else
#define any_above_avx2 any_above
#define raise_to_avx2 raise_to

static bool has_avx2(void)
{
    return false;
}
#endif

/* Whether one of the times in `a` is above that in `b`. */
static bool is_above(const uint32_t *a, const uint32_t *b, uint32_t num)
{
    return has_avx2() ? any_above_avx2(a, b, num) : any_above(a, b, num);
}

static bool plane_covers(const struct race_clock *clock, const struct race_clock *other,
                         uint32_t plane)
{
    const uint32_t *mine = plane_in(clock, plane), *theirs = plane_in(other, plane);
    const struct race_lane_times *lanes = lanes_in(other, plane);
    uint32_t common = clock->num_slots < other->num_slots ? clock->num_slots : other->num_slots;
    bool missing = is_above(theirs, mine, common);

    for (uint32_t i = common; i < other->num_slots; i++)
        missing |= theirs[i] != 0;
    for (uint32_t i = 0; i < lanes->num && !missing; i++)
        missing = !race_clock_knows(clock, plane, lanes->of[i].who >> LANE_BITS,
                                    lanes->of[i].who & 31, lanes->of[i].time);
    return !missing;
}

bool race_clock_covers(const struct race_clock *clock, const struct race_clock *other)
{
    uint32_t planes = clock->num_planes > other->num_planes ? clock->num_planes
                                                            : other->num_planes;

    if (clock == other)
        return true;
    for (uint32_t i = 0; i < RACE_JOINED; i++)
        if (clock->joined[i] == other->id)
            return true;
    for (uint32_t p = 0; p < planes; p++)
        if (!plane_covers(clock, other, p))
            return false;
    return true;
}

void race_clock_note(struct race_clock *clock, enum race_plane plane, uint32_t slot, uint32_t time)
{
    uint32_t *at;

    if ((uint32_t)plane >= clock->num_planes)
        return;
    at = &plane_of(clock, plane)[slot];
    if (*at < time)
        *at = time;
}

bool race_clock_note_lane(struct race_clock *clock, enum race_plane plane, uint32_t slot,
                          unsigned lane, uint32_t time)
{
    struct race_lane_times *lanes = &clock->lanes[plane];
    uint32_t who = slot << LANE_BITS | lane, at;

    if ((uint32_t)plane >= clock->num_planes || race_clock_knows_all(clock, plane, slot, time))
        return true;
    at = place_of(lanes, who);
    if (at < lanes->num && lanes->of[at].who == who) {
        if (lanes->of[at].time < time)
            lanes->of[at].time = time;
        return true;
    }
    if (!race_room(&lanes->of, lanes->num, &lanes->max, sizeof *lanes->of))
        return false;
    memmove(&lanes->of[at + 1], &lanes->of[at], (lanes->num - at) * sizeof *lanes->of);
    lanes->of[at] = (struct race_lane_time){who, time};
    lanes->num++;
    return true;
}

/* Both lists in one; lanes of which no more is known than of their whole slots go. */
static bool merge_lanes(struct race_clock *clock, uint32_t plane,
                        const struct race_lane_times *other)
{
    struct race_lane_times *mine = &clock->lanes[plane];
    const uint32_t *times = plane_in(clock, plane);
    uint32_t most = mine->num + other->num, a = 0, b = 0, num = 0;
    struct race_lane_time *merged = most ? malloc(most * sizeof *merged) : NULL;

    if (most && !merged)
        return false;
    while (a < mine->num || b < other->num) {
        bool first = b == other->num || (a < mine->num && mine->of[a].who <= other->of[b].who);
        bool both = first && b < other->num && mine->of[a].who == other->of[b].who;
        struct race_lane_time next = first ? mine->of[a] : other->of[b];

        if (both && other->of[b].time > next.time)
            next.time = other->of[b].time;
        a += first;
        b += !first || both;
        if (next.time > times[next.who >> LANE_BITS])
            merged[num++] = next;
    }
    free(mine->of);
    mine->of = merged;
    mine->num = num;
    mine->max = most;
    return true;
}

static bool join_plane(struct race_clock *clock, uint32_t to, const struct race_clock *other,
                       uint32_t from)
{
    const struct race_lane_times *lanes = lanes_in(other, from);

    if (has_avx2())
        raise_to_avx2(plane_of(clock, to), plane_in(other, from), other->num_slots);
    else
        raise_to(plane_of(clock, to), plane_in(other, from), other->num_slots);
    return merge_lanes(clock, to, lanes);
}

bool race_clock_join(struct race_clock *clock, const struct race_clock *other)
{
    for (uint32_t p = 0; p < clock->num_planes; p++)
        if (!join_plane(clock, p, other, p))
            return false;
    note_joined(clock, other->id);
    return true;
}

bool race_clock_fence(struct race_clock *clock, enum race_plane plane)
{
    return (uint32_t)plane >= clock->num_planes || join_plane(clock, plane, clock, RACE_ORDER);
}

bool race_clock_is_fenced(const struct race_clock *clock, enum race_plane plane)
{
    const struct race_lane_times *lanes = &clock->lanes[RACE_ORDER];
    bool missing = is_above(plane_in(clock, RACE_ORDER), plane_in(clock, plane), clock->num_slots);

    for (uint32_t i = 0; i < lanes->num && !missing; i++)
        missing = !race_clock_knows(clock, plane, lanes->of[i].who >> LANE_BITS,
                                    lanes->of[i].who & 31, lanes->of[i].time);
    return !missing;
}
