/* SPDX-License-Identifier: MIT
 *
 * What the parts of the host side share: host.c (threads and waits), memory.c, stream.c,
 * event.c, graph.c.
 * All functions here but host_release() want the world's lock held. */
#ifndef DEEPEP_PTX_EMU_HOST_STATE_H
#define DEEPEP_PTX_EMU_HOST_STATE_H

#include <pthread.h>

#include "emu/host/host.h"

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
    unsigned char data[];    /* parameters or copied bytes */
};

struct host_stream {
    struct host_stream *next;            /* of the rank's streams */
    struct host_stream *next_active;     /* of the streams with work */
    struct op *head, *tail;
    uint32_t rank;
    int closing;                         /* destroyed by its owner, still has work */
    struct host_graph *graph;            /* that captures it, NULL: none */
    int joined;                          /* see struct mark */
};

struct keep {
    struct keep *next;
    void *what;
    void (*release)(void *what);
};

struct host_graph {
    struct host_graph *next;             /* of the rank's graphs that have an owner */
    struct op *ops;                      /* in order of capture; the newest first during it */
    struct host_stream *origin;          /* whose end ends the capture, NULL: it is over */
    int broken;                          /* something that no capture may have was asked for */
    int refs;                            /* of the owner and of cloned ops */
    uint32_t rank;
    struct keep *kept;
};

struct host_event {
    struct host_event *next;             /* of the rank's events */
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
    struct wait *wait;
    pthread_cond_t turn;
    pthread_cond_t waited;               /* none of its threads waits any more */
    struct host_stream *streams;         /* the default stream is the last one */
    struct host_stream *stream0;
    struct host_event *events;
    struct host_graph *graphs;
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
    uint64_t id;
    pthread_mutex_t lock;
    uint32_t num_ranks;
    int holder;
    int wanted;              /* atomic: threads that want the lock while one steps */
    int touched;             /* host code ran, or a stream wrote memory, since the last step */
    uint64_t round;          /* calls of progress() */
    uint64_t wait_limit_ns;
    enum host_failure failure;
    int failed_rank;
    struct host_stream *active;
    struct host_kernel *kernels;
    struct keep *gone;                   /* of graphs that are gone, to be released */
    struct rank *ranks;
    char report[REPORT_BYTES];           /* text of a failure or of a host deadlock */
};

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

/* Records the thread's error text and returns `code`. */
__attribute__((format(printf, 4, 5)))
int host_error(struct host_world *h, uint32_t rank, int code, const char *format, ...);
/* The same for a result of the core (not EMU_OK); `what` names the argument. */
int host_emu_error(struct host_world *h, uint32_t rank, int result, const char *what);
/* EP_OK, or what every call of `rank` returns since the run failed. */
int host_failure_code(struct host_world *h, uint32_t rank);
/* The first failure stays. */
void host_fail(struct host_world *h, enum host_failure failure, int rank);
void host_fail_by_fault(struct host_world *h);

/* NULL: none starts at va. */
struct segment *host_find_segment(struct host_world *h, uint32_t rank, ep_dptr_t va);
/* Unmaps now, or with the last pin. */
void host_release_segment(struct host_world *h, uint32_t rank, struct segment *s);
/* Frees what the world's end does not. */
void host_free_segments(struct rank *r);

/* NULL: no memory. */
struct host_stream *host_stream_new(struct host_world *h, uint32_t rank);
/* The rank's stream, NULL = its default one; returns NULL with an error for any other pointer. */
struct host_stream *host_stream_find(struct host_world *h, uint32_t rank,
                                     const struct host_stream *stream);
/* Whether what is queued now need not wait: nothing is there before it, and nothing captures it. */
static inline int host_runs_at_once(const struct host_stream *stream)
{
    return !stream->head && !stream->graph;
}
void host_delete_stream(struct host_world *h, struct host_stream *stream);
void host_free_streams(struct host_world *h, struct rank *r);
/* NULL with an error: no memory.  `bytes` of `data` are copied. */
struct op *host_new_op(struct host_world *h, uint32_t rank, enum op_kind kind, const void *data,
                       uint64_t bytes);
void host_free_op(struct host_world *h, struct op *op);
/* The op is the stream's from now on, or that of the graph that captures it. */
void host_append(struct host_world *h, struct host_stream *stream, struct op *op);
/* Moves every stream as far as it goes.  Returns whether anything ended or began. */
int host_pump(struct host_world *h);

/* A mark behind all that `stream` has queued, and a reference to it for the caller; NULL with an
 * error: no memory. */
struct mark *host_mark(struct host_world *h, uint32_t rank, struct host_stream *stream);
void host_drop_mark(struct mark *mark);
/* The host waits until `mark` is passed; takes the caller's reference.  An error in a capture. */
int host_wait_mark(struct host_world *h, uint32_t rank, struct mark *mark, const char *what);
void host_free_events(struct rank *r);

/* Takes a reference away.  With the last one the ops go, and what it keeps becomes h->gone. */
void host_drop_graph(struct host_world *h, struct host_graph *graph);
void host_free_graphs(struct host_world *h, struct rank *r);

/* Waits as host.h says; `w` has kind, what and what the kind needs. */
int host_wait(struct host_world *h, uint32_t rank, struct wait *w, uint64_t timeout_ns);

#endif
