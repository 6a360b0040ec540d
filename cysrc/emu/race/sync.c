/* SPDX-License-Identifier: MIT */
#include "sync.h"
#include "copies.h"
#include "grids.h"
#include "meetings.h"
#include "words.h"

void race_hear(struct race_checker *c, const struct emu_event *e)
{
    struct race_cta *cta = e->cta ? e->cta->watched : NULL;
    struct race_warp *warp = e->warp ? e->warp->watched : NULL;

    switch (e->kind) {
    case EMU_EVENT_FENCE:
        race_fence(c, e, warp);
        break;
    case EMU_EVENT_WARP_SYNC:
        if (e->lanes == e->warp->live)
            race_warp_meet(c, warp, e->lanes);
        else
            race_lanes_meet(c, warp, e->lanes, e->pc);
        break;
    case EMU_EVENT_BAR_ARRIVE:
        race_bar_arrive(c, e, cta, warp);
        break;
    case EMU_EVENT_BAR_COMPLETE:
        race_bar_complete(c, e, cta);
        break;
    case EMU_EVENT_MBAR_ARRIVE:
        race_mbarrier_arrive(c, e, cta, warp);
        break;
    case EMU_EVENT_MBAR_PASS:
        race_mbarrier_pass(c, e, cta, warp);
        break;
    case EMU_EVENT_MBAR_DELIVER:
        race_mbarrier_deliver(c, e, cta);
        break;
    case EMU_EVENT_COPY_ISSUE:
        race_copy_issue(c, e, cta, warp);
        break;
    case EMU_EVENT_COPY_END:
        race_copy_end(c, e);
        break;
    case EMU_EVENT_GROUPS_WAITED:
        race_groups_waited(c, e, warp);
        break;
    case EMU_EVENT_CTA_BEGIN:
        race_cta_begin(c, e);
        break;
    case EMU_EVENT_CTA_END:
        if (cta)                         /* else it had no memory to begin                    */
            race_cta_end(c, e, cta);
        break;
    default:                             /* EMU_EVENT_FREE */
        race_shadow_free(e->segment->watched);
        e->segment->watched = NULL;
        break;
    }
}
