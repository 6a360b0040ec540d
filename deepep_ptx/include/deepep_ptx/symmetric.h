/* SPDX-License-Identifier: MIT
 *
 * What the ranks of a buffer do together, whoever they are: they map each other's memory, make the
 * arena grow, reset, and end.  All but create and free is collective: every rank of the group makes
 * the same calls in the same order, one at a time.
 *
 * On every rank:
 *     ep_symmetric_create
 *     ep_buffer_create, ep_buffer_set_kernel for each kernel, ep_symmetric_connect
 *     calls; ep_symmetric_grow, _ensure_landing and _reset between them
 *     ep_buffer_check, ep_symmetric_end, ep_buffer_close; where the end fails ep_buffer_abandon
 *     ep_buffer_destroy, ep_symmetric_free
 *
 * A rank that fails in the middle of one of these tells the others in the collective that they wait
 * in, and none of them goes on to another: so nobody waits for a rank that does not come.
 *
 * Functions return enum ep_result; what is not EP_OK is explained by ep_symmetric_failure. */
#ifndef DEEPEP_PTX_SYMMETRIC_H
#define DEEPEP_PTX_SYMMETRIC_H

#include <stdint.h>

#include "deepep_ptx/deepep_ptx.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EP_REASON_BYTES 512
#define EP_NAME_BYTES (EP_REASON_BYTES / 2)
#define EP_GROWTH_STEP (1u << 20)
#define EP_NUM_SAID 6

struct ep_symmetric;

/* The ranks, as the caller brings them: over MPI, a store, memory that threads share.  Functions
 * return EP_OK or anything else, which ends the collective with EP_ERR_CALLER. */
struct ep_group {
    void    *self;
    uint32_t rank, size;
    /* `bytes` at `mine` from every rank, in rank order, into all[size * bytes]; the number of bytes
     * is the same on all ranks, always. */
    int (*allgather)(void *self, const void *mine, void *all, uint64_t bytes);
    int (*barrier)(void *self);
};

enum ep_collective {             /* which one; those of one call are told apart                 */
    EP_IN_CONNECT = 1,
    EP_IN_HEAPS,
    EP_IN_PUBLISH,
    EP_IN_SEGMENT,               /* allocated                                                   */
    EP_IN_MAPPING,               /* of that segment                                             */
    EP_IN_GROWTH,
    EP_IN_RECYCLING,
    EP_IN_ROOM,                  /* ensure_landing                                              */
    EP_IN_SHAPE,                 /* ensure_low_latency                                          */
    EP_IN_MEMORY,                /* allocated                                                   */
    EP_IN_MEMORY_MAPPING,
    EP_IN_RESET,
    EP_IN_EPOCH,                 /* of that reset                                               */
    EP_IN_RESET_END,
    EP_IN_END
};

enum ep_failed {
    EP_FAILED_NOT,
    EP_FAILED_HERE,              /* `code` is this rank's: of the core or its executor          */
    EP_FAILED_CALLER,            /* a function of ep_group or ep_hooks has failed               */
    EP_FAILED_PEER,              /* rank `rank` has, with `code`; `reason` is its own           */
    EP_FAILED_ELSEWHERE,         /* rank `rank` is in another collective, or another buffer's   */
    EP_FAILED_NONSENSE,          /* allgather gave `reason` as rank `rank`'s, which it is not   */
    EP_FAILED_MISMATCH           /* ranks 0 and `rank` differ in `argument`                     */
};

struct ep_failure {
    enum ep_failed what;
    enum ep_failed untold;       /* why the others could not be told; EP_FAILED_NOT: they are   */
    enum ep_failed kept;         /* likewise, why its segment could not be given back           */
    int        code;
    int        described;        /* this rank has failed, and said so by ep_hooks.describe      */
    uint32_t   rank;
    enum ep_collective collective;
    uint64_t   buffer;           /* whose that collective is                                    */
    uint64_t   bytes;            /* of the segment for which there was no memory, else 0        */
    const char *argument;        /* "arena_limit_bytes", with `sizes`, or "group", with `names` */
    uint64_t   sizes[2];
    char       names[2][EP_NAME_BYTES];
    char       reason[EP_REASON_BYTES];
};

/* What the caller does for memory of its own; any function may be NULL. */
struct ep_hooks {
    void *self;
    /* Own segment `index` is there.  *view, where the caller's arrays over it begin, is `base`. */
    int  (*added)(void *self, uint32_t index, ep_dptr_t base, uint64_t bytes, uint64_t *view);
    /* It is about to be freed; what the buffer still has at its end goes without a word. */
    void (*dropped)(void *self, uint32_t index);
    /* The device is short of memory: what the caller keeps of it without need goes back. */
    int  (*give_back)(void *self);
    /* How the others shall hear that this rank has failed, in words; at once, while last_error() of
     * the executor is about it. */
    void (*describe)(void *self, const struct ep_failure *failure, char reason[EP_REASON_BYTES]);
};

struct ep_connection {
    struct ep_buffer *buffer;    /* with its kernels; it outlives all that follows              */
    int         made;            /* what making it has returned, of which the others hear       */
    uint64_t    start_bytes;     /* of the arena, where it grows; the most of all ranks counts  */
    uint64_t    limit_bytes;     /* 0, or all that it ever has; 0 on all ranks or on none       */
    uint64_t    growth_step;     /* later segments are multiples of it; 0: EP_GROWTH_STEP       */
    const char *device_name;     /* its kind, equal on all ranks                                */
    const char *place;           /* what ranks on one device have in common, and no others      */
};

/* Numbers that the ranks have told each other. */
struct ep_heard {
    uint64_t least[EP_NUM_SAID], most[EP_NUM_SAID];
};

int  ep_symmetric_create(const struct ep_executor *exec, const struct ep_group *group,
                         const struct ep_hooks *hooks, struct ep_symmetric **out);
void ep_symmetric_free(struct ep_symmetric *s);
/* Of the newest call; until the next one. */
const struct ep_failure *ep_symmetric_failure(const struct ep_symmetric *s);
/* Of the buffer, once it is connected: equal on all ranks, and no other buffer of these processes
 * has it. */
uint64_t ep_symmetric_number(const struct ep_symmetric *s);

/* All ranks' heaps, and what the arena starts with.  *num_here: ranks that share this device. */
int  ep_symmetric_connect(struct ep_symmetric *s, const struct ep_connection *connection,
                          uint32_t *num_here);

/* Room for a call that has found none: `needed` bytes side by side, of which the most of all ranks
 * counts.  The segment is of all ranks or of none, and as large as all before it; where a device is
 * short of memory, no larger than what is needed.  Once there are as many segments as there can be,
 * those in which no rank holds anything go first. */
int  ep_symmetric_grow(struct ep_symmetric *s, uint64_t needed);

/* Landing of `bytes`, which need not be the same on all ranks.  said: numbers below 2^62 that the
 * ranks tell each other on this occasion: their calls may turn out to differ. */
int  ep_symmetric_ensure_landing(struct ep_symmetric *s, uint64_t bytes,
                                 const uint64_t said[EP_NUM_SAID], struct ep_heard *heard);

/* Low-latency memory for calls of that shape, which must be the same on all ranks: `bytes` at least.
 * Behind what is queued on `stream`, where replays of a graph may use what is replaced. */
int  ep_symmetric_ensure_low_latency(struct ep_symmetric *s, const struct ep_ll_shape *shape,
                                     uint64_t bytes, void *stream);

/* The buffer is usable again, whatever its ranks were in; who waits for others in a collective
 * learns that they are in the reset.  said: as above, of what each rank has kept. */
int  ep_symmetric_reset(struct ep_symmetric *s, const uint64_t said[EP_NUM_SAID],
                        struct ep_heard *heard);

/* Nobody maps anybody's memory any more: ep_buffer_close may follow.  Else some rank is not there,
 * and ep_buffer_abandon must. */
int  ep_symmetric_end(struct ep_symmetric *s);

#ifdef __cplusplus
}
#endif

#endif
