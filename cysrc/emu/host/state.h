/* SPDX-License-Identifier: MIT
 *
 * What the parts of the host side share.  Their functions want the world's lock held, but for those
 * of host.h and host_release(). */
#ifndef DEEPEP_PTX_EMU_HOST_STATE_H
#define DEEPEP_PTX_EMU_HOST_STATE_H

#include <pthread.h>

#include "emu/host/host.h"
#include "emu/race/race.h"

#define ERROR_BYTES 4096
#define REPORT_BYTES 8192
#define NOBODY (-1)

enum rank_state { RANK_ABSENT, RANK_READY, RANK_RUNNING, RANK_WAITING, RANK_DONE };

enum wait_kind { WAIT_WORD, WAIT_MARK, WAIT_YIELD };

struct wait {
    enum wait_kind kind;
    const char *what;
    const uint64_t *word;
    uint64_t want;
    const struct mark *mark;
    uint64_t round;          /* yield: the round that it wants to be over */
    uint64_t deadline;       /* virtual ns, EP_FOREVER = none */
    int deadlocked;
};

enum op_kind { OP_LAUNCH, OP_COPY, OP_FILL, OP_FREE, OP_MARK, OP_WAIT };

/* A place in a stream's work, and whether the stream is past it.  In a capture: a place in that. */
struct mark {
    int refs;
    int passed;
    int captured;
    int joined;              /* the end of the capture's origin lies behind it */
    struct host_graph *graph;            /* captured: where; NULL once the capture is over */
    struct race_clock *after;            /* what comes after it once it is passed; NULL: unknown */
};

struct op {
    struct op *next;
    enum op_kind kind;
    ep_dptr_t va;
    uint64_t bytes;          /* of data, or of a fill */
    uint8_t value;
    struct host_kernel *kernel;
    uint32_t grid, block, smem;
    struct emu_grid *running;
    struct mark *mark;       /* of OP_MARK, which passes it, and of the OP_WAIT for that */
    struct host_stream *stream;          /* during a capture: what it was queued on */
    struct host_graph *graph;            /* what a replay cloned it from, kept until it is over */
    struct race_clock *after;            /* what the host that queued it had come after */
    unsigned char data[];    /* parameters or copied bytes */
};

/* What its owner knows by its address: a stream, an event or a graph, in a list of its rank. */
struct owned {
    struct owned *next;
    int destroyed;           /* by its owner, and still in use */
};

struct host_stream {
    struct owned owned;
    struct host_stream *next_active;     /* of the streams with work */
    struct op *head, *tail;
    uint32_t rank;
    struct host_graph *graph;            /* that captures it, NULL: none */
    int joined;                          /* see struct mark */
    struct race_order *order;            /* this and all `order`s: NULL if nobody checks */
};

struct keep {
    struct keep *next;
    void *what;
    void (*release)(void *what);
};

struct host_graph {
    struct owned owned;                  /* while it has an owner */
    struct op *ops;                      /* in order of capture; the newest first during it */
    struct host_stream *origin;          /* whose end ends the capture, NULL: it is over */
    int broken;                          /* something that no capture may have was asked for */
    int refs;                            /* of the owner and of cloned ops */
    uint32_t rank;
    struct keep *kept;
};

struct host_event {
    struct owned owned;
    struct mark *mark;                   /* what was recorded last, NULL: nothing was */
};

enum segment_kind { SEGMENT_ALLOC, SEGMENT_PINNED, SEGMENT_MAPPED, SEGMENT_PEER };

struct segment {
    enum segment_kind kind;
    int freed;               /* waits for its last pin to go */
    uint32_t pins;
    uint32_t owner;
    ep_dptr_t va;
    ep_dptr_t owner_va;
    uint64_t bytes;
    void *host;
};

struct rank {
    enum rank_state state;
    struct race_order *order;            /* of its host threads: see host_order() */
    struct race_clock *ended;            /* what comes after the streams that are no more */
    struct wait *wait;
    pthread_cond_t turn;
    pthread_cond_t waited;               /* none of its threads waits any more */
    struct owned *streams;               /* the default stream is the last one */
    struct host_stream *stream0;
    struct owned *events, *graphs;
    struct segment *segments;
    uint32_t num_segments, room_segments;
};

struct host_kernel {
    struct host_kernel *next;
    struct emu_kernel *kernel;
    uint32_t param_bytes;
    char symbol[96];
};

struct host_world {
    struct emu_world *world;
    struct race_checker *races;          /* NULL: nobody checks */
    struct race_clock *met;              /* what ranks of the last collective have come after */
    uint64_t id;
    pthread_mutex_t lock;
    uint32_t num_ranks;
    int started;             /* ranks have threads of their own */
    int holder;
    int wanted;              /* atomic: threads that want the lock while one steps */
    int touched;             /* host code ran, or a stream wrote memory, since the last step */
    uint64_t round;          /* calls of progress() */
    uint64_t wait_limit_ns;
    struct emu_fault fault;              /* once emu_faulted(); its text is never NULL */
    enum host_failure failure;
    int failed_rank;
    struct host_stream *active;
    struct host_kernel *kernels;
    struct keep *gone;                   /* of graphs that are gone, to be released */
    struct rank *ranks;
    char report[REPORT_BYTES];           /* text of a failure or of a host deadlock */
};

/* What the rank's host threads have done and come after.  Without such threads, one does it all. */
static inline struct race_order *host_order(const struct host_world *h, uint32_t rank)
{
    return h->ranks[h->started ? rank : 0].order;
}

void host_release(struct keep *kept);

/* What graphs kept is released here: its owner may need the GIL, or locks of its own. */
static inline void unlock(struct host_world *h)
{
    struct keep *gone = h->gone;

    h->gone = NULL;
    pthread_mutex_unlock(&h->lock);
    host_release(gone);
}

static inline void lock(struct host_world *h)
{
    __atomic_fetch_add(&h->wanted, 1, __ATOMIC_RELAXED);
    pthread_mutex_lock(&h->lock);
    __atomic_fetch_sub(&h->wanted, 1, __ATOMIC_RELAXED);
}

#endif
