/* SPDX-License-Identifier: MIT */
#include "emu/host/state.h"

#include <stdlib.h>

void host_release(struct keep *kept)
{
    while (kept) {
        struct keep *next = kept->next;

        kept->release(kept->what);
        free(kept);
        kept = next;
    }
}
