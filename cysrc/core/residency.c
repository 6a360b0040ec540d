/* SPDX-License-Identifier: MIT */
#include "core/residency.h"

#include <stddef.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ep_buffer *first;              /* of those that have joined                       */

void ep_residency_join(struct ep_buffer *b, uint32_t resident)
{
    pthread_mutex_lock(&lock);
    if (b->resident == 0) {
        b->next_resident = first;
        first = b;
    }
    b->resident = resident;
    pthread_mutex_unlock(&lock);
}

void ep_residency_leave(struct ep_buffer *b)
{
    pthread_mutex_lock(&lock);
    for (struct ep_buffer **at = &first; *at != NULL; at = &(*at)->next_resident) {
        if (*at == b) {
            *at = b->next_resident;
            break;
        }
    }
    b->resident = 0;
    pthread_mutex_unlock(&lock);
}

int ep_residency_is_crowded(struct ep_buffer *b, uint32_t ctas)
{
    double share = 0;
    pthread_mutex_lock(&lock);
    if (b->most_ctas < ctas)
        b->most_ctas = ctas;
    for (const struct ep_buffer *other = first; other != NULL; other = other->next_resident) {
        if (other->exec->device == b->exec->device)
            share += (double)other->most_ctas / other->resident;
    }
    pthread_mutex_unlock(&lock);
    b->crowded = share > 1;
    return b->crowded;
}
