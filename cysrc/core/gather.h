/* SPDX-License-Identifier: MIT
 *
 * One collective of the ranks of a buffer: each gives a record of a fixed size, which says in which
 * collective its rank is and whether it has failed, so that all of them find out the same. */
#ifndef DEEPEP_PTX_GATHER_H
#define DEEPEP_PTX_GATHER_H

#include "deepep_ptx/symmetric.h"

#define EP_RECORD_NUMBERS (1 + EP_NUM_SAID)
#define EP_MOST_NUMBER ((UINT64_C(1) << 62) - 1)

struct ep_record {
    uint32_t magic;
    uint32_t rank;
    uint32_t collective;         /* enum ep_collective                                          */
    uint32_t code;               /* EP_OK, or how this rank has failed                          */
    uint64_t buffer;             /* whose collective it is, 0: it has no number yet             */
    uint64_t number[EP_RECORD_NUMBERS];  /* at most EP_MOST_NUMBER                              */
    uint8_t  handle[EP_HANDLE_BYTES];
    union {
        char reason[EP_REASON_BYTES];    /* where code is not EP_OK                             */
        struct {
            char name[EP_NAME_BYTES], place[EP_NAME_BYTES];
        } device;                /* of connect                                                  */
    } text;
};

struct ep_symmetric {
    const struct ep_executor *exec;
    struct ep_group  group;
    struct ep_hooks  hooks;
    struct ep_buffer *buffer;
    uint64_t growth_step;
    uint64_t number;
    struct ep_failure failure;
    struct ep_record all[EP_MAX_RANKS];  /* of the newest collective                            */
};

/* Takes down who has done what; returns the code of a rank that has not failed itself. */
int  ep_gather_failed(struct ep_symmetric *s, enum ep_failed what, uint32_t rank);
/* The record that allgather has given as that rank's cannot be its. */
int  ep_gather_nonsense(struct ep_symmetric *s, uint32_t rank);
/* Gives `mine`, whose numbers, handle and device are set, and takes everybody's into s->all.  rc:
 * how this rank's own part has ended; where that is not EP_OK, it travels instead, and is returned.
 * EP_OK where all ranks are here and none has failed. */
int  ep_gather(struct ep_symmetric *s, enum ep_collective collective, int rc,
               struct ep_record *mine);
/* Returns when all ranks are in this collective; who is in another learns there that this one is
 * not. */
int  ep_gather_everybody(struct ep_symmetric *s, enum ep_collective collective);
/* Whether it has failed, on all ranks alike, for want of memory somewhere. */
int  ep_gather_was_short(const struct ep_symmetric *s);
/* Of number i of all records. */
uint64_t ep_gather_most(const struct ep_symmetric *s, uint32_t i);
uint64_t ep_gather_least(const struct ep_symmetric *s, uint32_t i);

#endif
