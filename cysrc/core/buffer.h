/* SPDX-License-Identifier: MIT
 *
 * A buffer as the core's own files see it.  What it is to its callers stands in deepep_ptx.h; nobody
 * outside of cysrc/core reads this. */
#ifndef DEEPEP_PTX_BUFFER_H
#define DEEPEP_PTX_BUFFER_H

#include <pthread.h>
#include <stdint.h>

#include "core/arena.h"
#include "deepep_ptx/deepep_ptx.h"
#include "kernels.h"

struct ep_buffer {
    const struct ep_executor *exec;
    struct ep_comm comm;         /* first field of every parameter block                       */
    struct ep_loaded kernel[EP_NUM_KERNELS];
    void    *stream;
    void    *abort_stream;       /* an abort must not queue behind the call it ends             */

    /* Other ranks' memory as mapped here; own entries are own addresses.  publish() copies the
     * tables to the device. */
    struct ep_peers {
        ep_dptr_t heap[EP_MAX_RANKS];
        ep_dptr_t arena[EP_MAX_SEGMENTS][EP_MAX_RANKS];
        ep_dptr_t low_latency[EP_MAX_RANKS];
        uint64_t  half_bytes;    /* of low-latency memory                                       */
        uint64_t  words_at, raw_at;      /* in a half                                           */
    } peers;
    struct ep_ll_memory {
        ep_dptr_t base;
        struct ep_ll_areas {     /* bytes of a half's; zero before the first shape             */
            uint64_t numbers, words, raw;
        } areas;
        uint64_t  bytes;         /* of both halves                                             */
        ep_dptr_t peer[EP_MAX_RANKS];
    } ll, next_ll;               /* the second while the ranks replace the first                */
    int       ll_shrink;         /* ranks may be masked                                         */

    ep_dptr_t tally;             /* of layout, zero between calls                              */

    struct ep_status_ring *ring;
    struct ep_totals *totals;
    ep_dptr_t totals_dptr;
    uint64_t  ticket;

    uint64_t  num_calls;         /* collective calls made, also those that were only captured   */
    int       grows;             /* the arena grows: see landing                                */
    int       unseen;            /* calls were made since the host last looked                  */
    int       may_grow;          /* the newest call, and no other, found no room                */
    int       lands;             /* it cannot grow: results for which nothing is free land         */
    int       poisons;           /* slots that die are filled with EP_POISON                    */
    int       wants_room;        /* it grows, and a result had to land since it last did           */
    uint64_t  host_abort;        /* like control.abort, where the device could not be told      */
    void     *graph;             /* of the running call, NULL when it is not captured           */
    uint32_t  resident;          /* CTAs of its calls that the device runs at the same time, 0: not
                                  * known; this and the next three are residency.c's            */
    uint32_t  most_ctas;         /* of a call so far                                            */
    int       crowded;           /* see ep_residency_is_crowded                                 */
    struct ep_buffer *next_resident;
    int       stream_stays;      /* others use the handle of `stream` after the buffer's end       */

    struct ep_control control;   /* as it was when the host last looked                         */
    struct ep_status_record status[EP_STATUS_RECORDS];
    uint32_t  num_status;
    uint32_t  launched[EP_NUM_KERNELS], num_launched;     /* of the newest call, in this table   */

    pthread_mutex_t order;       /* held while a dying slot is ordered on `stream`, and at its end;
                                  * guards the next four                                        */
    void     *calls_on;          /* the caller's stream of the newest call that was not captured */
    int       between_calls;     /* such a call is queued, and none has begun since              */
    void     *last_use;          /* event: what `calls_on` had queued when a slot died between calls */
    int       awaits_last_use;   /* `stream` does not come after it yet                         */
    pthread_mutex_t lock;        /* guards all below                                           */
    struct ep_arena arena;
    /* Where the arena grows: the extent that no result keeps.  Rows pushed by a combine land in it,
     * and results that the arena has no room for, which are copied out at once.  Every dispatch sees
     * to it that landing can take what combines and cached dispatches with its handle need, so these
     * need no verdict on the host.  In an arena of fixed size pushed rows land in what is free, and
     * a result stays only while as much room is left as the largest so far took. */
    struct ep_block *landing;
    uint64_t  landing_want;      /* bytes that the next dispatch shall make it: a refused call asked
                                  * for them, or it had them before segments were recycled      */
    uint64_t  largest_slot;      /* bytes of the largest result so far                          */
    struct ep_block *quarantine; /* slots of aborted calls, until reset                        */
    struct ep_block *retired;    /* slots that died during a capture                            */
    uint32_t  num_kept;          /* blocks held by graphs                                       */
    int       orphan;            /* destroyed; the last of these graphs frees what is left      */
    int       closed;
    int       alone;             /* maps nothing of its peers' any more: no kernel may tell them    */
    int       abandoned;         /* peers may still write to this rank's memory: it stays       */
    int       left;              /* of it, the heap alone: see ep_buffer_leave                  */
};

#endif
