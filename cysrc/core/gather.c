/* SPDX-License-Identifier: MIT */
#include "core/gather.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/util.h"

#define MAGIC 0x31647072u                    /* "rpd1"                                          */

/* Padding would travel as whatever it was. */
_Static_assert(sizeof(struct ep_record) == 24 + 8 * EP_RECORD_NUMBERS + EP_HANDLE_BYTES
               + EP_REASON_BYTES, "a record is its fields");

int ep_gather_failed(struct ep_symmetric *s, enum ep_failed what, uint32_t rank)
{
    s->failure.what = what;
    s->failure.rank = rank;
    return what == EP_FAILED_CALLER || what == EP_FAILED_NONSENSE ? EP_ERR_CALLER : EP_ERR_PEER;
}

static int is_sound(const struct ep_record *record, uint32_t rank)
{
    for (uint32_t i = 0; i < EP_RECORD_NUMBERS; i++)
        if (record->number[i] > EP_MOST_NUMBER)
            return 0;
    return record->magic == MAGIC && record->rank == rank && record->buffer <= EP_MOST_NUMBER
           && record->text.reason[EP_REASON_BYTES - 1] == 0
           && (record->code != EP_OK || record->text.reason[EP_NAME_BYTES - 1] == 0);
}

/* What rank `rank` is said to have given. */
static void show(struct ep_symmetric *s, uint32_t rank)
{
    const struct ep_record *got = &s->all[rank];
    snprintf(s->failure.reason, sizeof s->failure.reason,
             "collective %" PRIu32 " of buffer %" PRIu64 ", code %" PRIu32 ", numbers %" PRIu64
             " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64,
             got->collective, got->buffer, got->code, got->number[0], got->number[1],
             got->number[2], got->number[3], got->number[4], got->number[5]);
}

int ep_gather_nonsense(struct ep_symmetric *s, uint32_t rank)
{
    show(s, rank);
    return ep_gather_failed(s, EP_FAILED_NONSENSE, rank);
}

/* Everybody's records are in s->all, and each may be what its rank has given. */
static int exchange(struct ep_symmetric *s, enum ep_collective collective, struct ep_record *mine)
{
    uint32_t me = s->group.rank;
    mine->magic = MAGIC;
    mine->rank = me;
    mine->collective = collective;
    mine->buffer = s->number;
    s->failure.collective = collective;
    s->failure.buffer = s->number;
    if (s->group.allgather(s->group.self, mine, s->all, sizeof *mine) != EP_OK)
        return ep_gather_failed(s, EP_FAILED_CALLER, me);
    /* Who is told something else of itself goes to other collectives than the others. */
    if (memcmp(&s->all[me], mine, sizeof *mine) != 0)
        return ep_gather_nonsense(s, me);
    for (uint32_t rank = 0; rank < s->group.size; rank++)
        if (!is_sound(&s->all[rank], rank))
            return ep_gather_nonsense(s, rank);
    return EP_OK;
}

static int is_here(const struct ep_symmetric *s, enum ep_collective collective, uint32_t rank)
{
    return s->all[rank].collective == collective && s->all[rank].buffer == s->number;
}

/* This rank has failed: it says so, whatever becomes of that. */
static int tell(struct ep_symmetric *s, enum ep_collective collective, int rc,
                struct ep_record *mine)
{
    if (s->failure.what == EP_FAILED_NOT)
        ep_gather_failed(s, EP_FAILED_HERE, s->group.rank);
    s->failure.code = rc;
    s->failure.described = 1;
    s->failure.collective = collective;
    s->failure.buffer = s->number;
    *mine = (struct ep_record){.code = (uint32_t)rc};
    if (s->hooks.describe)
        s->hooks.describe(s->hooks.self, &s->failure, mine->text.reason);
    else
        snprintf(mine->text.reason, sizeof mine->text.reason, "result %d: %s", rc,
                 s->exec->last_error(s->exec->self));
    struct ep_failure own = s->failure;
    own.untold = exchange(s, collective, mine) == EP_OK ? EP_FAILED_NOT : s->failure.what;
    s->failure = own;
    return rc;
}

int ep_gather(struct ep_symmetric *s, enum ep_collective collective, int rc,
              struct ep_record *mine)
{
    if (rc != EP_OK)
        return tell(s, collective, rc, mine);
    TRY(exchange(s, collective, mine));
    for (uint32_t rank = 0; rank < s->group.size; rank++) {
        const struct ep_record *got = &s->all[rank];
        if (!is_here(s, collective, rank)) {
            show(s, rank);
            return ep_gather_failed(s, EP_FAILED_ELSEWHERE, rank);
        }
        if (got->code != EP_OK) {
            s->failure.code = (int)got->code;
            memcpy(s->failure.reason, got->text.reason, sizeof s->failure.reason);
            return ep_gather_failed(s, EP_FAILED_PEER, rank);
        }
    }
    return EP_OK;
}

int ep_gather_everybody(struct ep_symmetric *s, enum ep_collective collective)
{
    uint32_t num_here;
    do {
        struct ep_record mine = {0};
        TRY(exchange(s, collective, &mine));
        num_here = 0;
        for (uint32_t rank = 0; rank < s->group.size; rank++)
            num_here += s->all[rank].collective == collective;
    } while (num_here < s->group.size);
    for (uint32_t rank = 0; rank < s->group.size; rank++)
        if (!is_here(s, collective, rank))
            return ep_gather_failed(s, EP_FAILED_ELSEWHERE, rank);
    return EP_OK;
}

int ep_gather_was_short(const struct ep_symmetric *s)
{
    if (s->failure.untold || (s->failure.what != EP_FAILED_HERE
                              && s->failure.what != EP_FAILED_PEER))
        return 0;
    for (uint32_t rank = 0; rank < s->group.size; rank++)
        if (s->all[rank].code != EP_OK && s->all[rank].code != EP_ERR_MEMORY
            && s->all[rank].code != EP_ERR_EXECUTOR)
            return 0;
    return 1;
}

uint64_t ep_gather_most(const struct ep_symmetric *s, uint32_t i)
{
    uint64_t most = 0;
    for (uint32_t rank = 0; rank < s->group.size; rank++)
        most = max_u64(most, s->all[rank].number[i]);
    return most;
}

uint64_t ep_gather_least(const struct ep_symmetric *s, uint32_t i)
{
    uint64_t least = UINT64_MAX;
    for (uint32_t rank = 0; rank < s->group.size; rank++)
        if (s->all[rank].number[i] < least)
            least = s->all[rank].number[i];
    return least;
}
