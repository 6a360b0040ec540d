/* SPDX-License-Identifier: MIT
 *
 * The host side of one emulated world: the threads of its ranks, their streams and their waits.
 *
 * Baton.  host_start() makes every rank a thread that runs only while it holds the baton.  A
 * thread gives the baton away only where it waits (host_wait_word, host_synchronize, host_copy_out,
 * host_event_synchronize, host_yield) and when it leaves; the next holder is the first rank after
 * it, in rank order, that can go on.  When none can, the waiting holder steps the world until one
 * can, the lowest first.  So the order in which host code and kernels run is a function of the
 * world's options and of the host code.
 *
 * Time.  A world that is idle or stalled jumps to the earliest limit that a kernel or a host wait
 * has.  If there is none: kernels that wait are a fault, ranks that wait for each other get
 * EP_ERR_EXECUTOR from their waits with a text that names each rank and what it waits in.
 *
 * Threads.  Every function locks the world and may be called without the GIL; a call from a
 * thread without the baton (a destructor, say) is served between two steps.  Nothing needs the GIL
 * while it holds the lock.  A world without started ranks is for one thread, which steps the world
 * itself whenever it waits.
 *
 * Functions that return int return enum ep_result; the reason is in host_last_error(). */
#ifndef DEEPEP_PTX_EMU_HOST_H
#define DEEPEP_PTX_EMU_HOST_H

#include "deepep_ptx/executor.h"
#include "emu/device/emu.h"

struct host_world;
struct host_stream;
struct host_event;
struct host_graph;
struct host_kernel;
struct race_found;

/* wait_limit_ns: limit of waits that name none, EP_FOREVER = no limit. */
enum host_checks {           /* bits of `races` */
    HOST_RACES = 1,          /* races are collected: host_races() */
    HOST_WEAK = 2,           /* stores are seen late where nothing orders them */
    HOST_STRICT = 4          /* the begin of a grid is no proxy fence */
};
struct host_world *host_create(const struct emu_options *options, uint64_t wait_limit_ns,
                               uint32_t races);
void host_destroy(struct host_world *h);
/* Differs between the worlds of a machine. */
uint64_t host_world_id(const struct host_world *h);

/* -- threads of ranks ---------------------------------------------------------------------- */
void host_start(struct host_world *h);
/* Waits for the rank's first turn; EP_ERR_ABORTED when the run failed before it. */
int  host_enter(struct host_world *h, uint32_t rank);
/* The rank is done.  `failed`: its function raised; the others' waits return EP_ERR_ABORTED. */
void host_leave(struct host_world *h, uint32_t rank, int failed);
/* Stops the run, from any thread. */
void host_abort(struct host_world *h);
/* The rank that holds the baton, -1: none. */
int  host_holder(struct host_world *h);

/* -- waits -----------------------------------------------------------------------------------
 * `what` names the wait in reports and must outlive it.  EP_ERR_TIMEOUT after timeout_ns of
 * virtual time; EP_FOREVER takes the world's own limit. */
int host_wait_word(struct host_world *h, uint32_t rank, const uint64_t *word, uint64_t want,
                   uint64_t timeout_ns, const char *what);
/* Waits for what the stream has queued now. */
int host_synchronize(struct host_world *h, uint32_t rank, struct host_stream *stream);
int host_event_synchronize(struct host_world *h, uint32_t rank, struct host_event *event);
/* Lets every other rank and the kernels go on once; a world with nothing to do gains 1 us. */
int host_yield(struct host_world *h, uint32_t rank);

enum host_run { HOST_RUN_IDLE, HOST_RUN_LIMIT, HOST_RUN_MORE, HOST_RUN_FAILED };
/* Without rank threads: step until no stream has work, virtual time `until`, or `rounds` steps.
 * `touched`: the host may have written memory since the last call. */
enum host_run host_run(struct host_world *h, uint64_t until, uint32_t rounds, int touched);

/* -- memory --------------------------------------------------------------------------------- */
int host_alloc(struct host_world *h, uint32_t rank, uint64_t bytes, const char *name,
               ep_dptr_t *out);
/* Stream-ordered; memory with a pin is returned when the last pin goes. */
int host_free(struct host_world *h, uint32_t rank, ep_dptr_t va, struct host_stream *stream);
/* Zeroed host memory that kernels see too. */
int host_pinned_alloc(struct host_world *h, uint32_t rank, uint64_t bytes, const char *name,
                      void **host, ep_dptr_t *out);
int host_pinned_free(struct host_world *h, uint32_t rank, const void *host);
/* The caller's memory; it must stay until host_unmap. */
int host_map(struct host_world *h, uint32_t rank, void *address, uint64_t bytes, int writable,
             const char *name, ep_dptr_t *out);
int host_unmap(struct host_world *h, uint32_t rank, ep_dptr_t va);
/* owner_va: start of an allocation of `owner`, which gets its own address back.  `bytes` must be
 * its size, 0 = any. */
int host_map_peer(struct host_world *h, uint32_t rank, uint32_t owner, ep_dptr_t owner_va,
                  uint64_t bytes, ep_dptr_t *out);
int host_unmap_peer(struct host_world *h, uint32_t rank, ep_dptr_t va);
/* Size of the allocation that starts at va. */
int host_alloc_size(struct host_world *h, uint32_t rank, ep_dptr_t va, uint64_t *bytes);

/* A pin keeps the memory behind [va, va + bytes) (an allocation, a peer's, or pinned) readable by
 * the host until host_unpin(owner, pin), whatever is freed meanwhile. */
int  host_pin(struct host_world *h, uint32_t rank, ep_dptr_t va, uint64_t bytes, void **host,
              uint32_t *owner, ep_dptr_t *pin);
void host_unpin(struct host_world *h, uint32_t owner, ep_dptr_t pin);
/* The host is about to read pinned memory that kernels have written. */
void host_will_read(struct host_world *h, uint32_t rank, const void *host, uint64_t bytes);
/* The host stored to these bytes through an address that it holds. */
int host_written(struct host_world *h, uint32_t rank, ep_dptr_t va, uint64_t bytes);

/* -- streams: launches, copies, fills and frees in order; NULL = the rank's default stream ----- */
int host_stream_create(struct host_world *h, uint32_t rank, struct host_stream **out);
/* Work already queued still runs. */
int host_stream_destroy(struct host_world *h, uint32_t rank, struct host_stream *stream);
/* What is queued on `waiter` from now on runs after all that is queued on `waited` now. */
int host_stream_wait(struct host_world *h, uint32_t rank, struct host_stream *waiter,
                     struct host_stream *waited);
int host_copy_in(struct host_world *h, uint32_t rank, ep_dptr_t dst, const void *src,
                 uint64_t bytes, struct host_stream *stream);
int host_copy_out(struct host_world *h, uint32_t rank, void *dst, ep_dptr_t src, uint64_t bytes,
                  struct host_stream *stream);
int host_fill(struct host_world *h, uint32_t rank, ep_dptr_t dst, uint8_t value, uint64_t bytes,
              struct host_stream *stream);
int host_launch(struct host_world *h, uint32_t rank, const struct ep_launch *launch);

/* -- events: points in the work of streams -----------------------------------------------------
 * An event that was never recorded is complete. */
int host_event_create(struct host_world *h, uint32_t rank, struct host_event **out);
/* Who waits for the event still does. */
int host_event_destroy(struct host_world *h, uint32_t rank, struct host_event *event);
/* The event becomes the end of what `stream` has queued now; what waits for it already stays with
 * what it was. */
int host_event_record(struct host_world *h, uint32_t rank, struct host_event *event,
                      struct host_stream *stream);
/* What is queued on `stream` from now on runs after what was recorded last. */
int host_event_wait(struct host_world *h, uint32_t rank, struct host_stream *stream,
                    struct host_event *event);
/* Whether the work before it is done.  Nothing runs meanwhile: who polls has to yield. */
int host_event_query(struct host_world *h, uint32_t rank, struct host_event *event, int *done);

/* -- capture: as in CUDA ------------------------------------------------------------------------
 * While a stream is captured its launches, copies and fills are recorded instead of run.  A stream
 * that waits for captured work joins the capture.  Not for a capture, and an error that breaks it:
 * host waits for its work, and streams in it that wait for work outside of it. */
int host_capture_begin(struct host_world *h, uint32_t rank, struct host_stream *stream);
/* On the stream that it began on.  An error drops the capture: it is broken, or `stream` did not
 * wait for all the work of the streams that joined. */
int host_capture_end(struct host_world *h, uint32_t rank, struct host_stream *stream,
                     struct host_graph **out);
/* What captures `stream`, NULL: nothing. */
int host_capture_of(struct host_world *h, uint32_t rank, struct host_stream *stream,
                    struct host_graph **out);
/* Queues what was captured, in the order in which it was, or captures that. */
int host_graph_replay(struct host_world *h, uint32_t rank, struct host_graph *graph,
                      struct host_stream *stream);
/* Replays already queued still run. */
int host_graph_destroy(struct host_world *h, uint32_t rank, struct host_graph *graph);
/* release(what), once, when `graph` was destroyed and its replays are over: from the end of any
 * call of the host, without the world's lock. */
int host_graph_keep(struct host_world *h, uint32_t rank, struct host_graph *graph, void *what,
                    void (*release)(void *what));

/* -- kernels: live as long as the world -------------------------------------------------------*/
struct host_kernel *host_kernel_load(struct host_world *h, const struct emu_kernel_image *image);
/* ran[num_insns], see emu_kernel_ran(); num_insns as in its image. */
void host_kernel_ran(struct host_world *h, const struct host_kernel *kernel, uint8_t *ran);
int host_max_resident(struct host_world *h, uint32_t rank, const struct host_kernel *kernel,
                      uint32_t block, uint32_t smem, uint32_t *ctas);

/* -- results ----------------------------------------------------------------------------------*/
uint64_t host_now(struct host_world *h);
void host_counters(struct host_world *h, uint32_t rank, struct emu_counters *out);
/* The thread's newest error; valid until its next call, and no longer than the world. */
const char *host_last_error(void);

/* The first race that was found, NULL: none was.  Valid until kernels run again. */
const struct race_found *host_races(struct host_world *h);
/* 0: there was no memory at some point, and nothing has been checked since. */
int host_races_whole(struct host_world *h);

/* For callers' own checks: records `text`, returns EP_ERR_ARGUMENT. */
int host_refuse(struct host_world *h, uint32_t rank, const char *text);

enum host_failure {
    HOST_OK,
    HOST_RANK_FAILED,        /* host_leave(failed)                                            */
    HOST_FAULT,              /* a kernel: host_fault()                                        */
    HOST_LAUNCH_FAILED,      /* a queued launch or copy no longer fitted when its turn came   */
    HOST_STOPPED             /* host_abort()                                                  */
};
/* The first failure of the run, and the rank it is charged to (-1: none). */
enum host_failure host_failure(struct host_world *h, int *rank);
const struct emu_fault *host_fault(struct host_world *h);
/* What each rank did when the world failed or the ranks deadlocked. */
const char *host_report(struct host_world *h);

#endif
