/* SPDX-License-Identifier: MIT
 *
 * CTA barriers and mbarriers: who comes together there. */
#ifndef DEEPEP_PTX_EMU_RACE_MEETINGS_H
#define DEEPEP_PTX_EMU_RACE_MEETINGS_H

#include "agents.h"

void race_bar_arrive(struct race_checker *c, const struct emu_event *e, struct race_cta *cta,
                     struct race_warp *warp);
void race_bar_complete(struct race_checker *c, const struct emu_event *e, struct race_cta *cta);

void race_mbarrier_arrive(struct race_checker *c, const struct emu_event *e, struct race_cta *cta,
                          struct race_warp *warp);
void race_mbarrier_pass(struct race_checker *c, const struct emu_event *e, struct race_cta *cta,
                        struct race_warp *warp);
void race_mbarrier_deliver(struct race_checker *c, const struct emu_event *e,
                           struct race_cta *cta);

#endif
