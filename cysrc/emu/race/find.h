/* SPDX-License-Identifier: MIT
 *
 * Races, as they are kept for reports: one for all that two lines of source have. */
#ifndef DEEPEP_PTX_EMU_RACE_FIND_H
#define DEEPEP_PTX_EMU_RACE_FIND_H

#include "agents.h"

/* Two accesses that nothing orders, in one cell. */
struct race_pair {
    const struct emu_access *access;     /* the second one                                    */
    const struct race_mark *first, *second;
    uint16_t common;                     /* bytes of the cell that both accessed              */
    uint64_t cell;                       /* where it begins                                   */
    bool nc;                             /* the second is ld.global.nc                        */
    bool ordered_without_proxies;
};

void race_find(struct race_checker *c, const struct race_pair *pair);
void race_found_free(struct race_checker *c);

#endif
