/* SPDX-License-Identifier: MIT
 *
 * Streams that are being captured, and their graphs. */
#ifndef DEEPEP_PTX_CUDA_GRAPH_H
#define DEEPEP_PTX_CUDA_GRAPH_H

#include "deepep_ptx/executor.h"

struct cuda_executor;

/* EP_ERR_CAPTURED while `stream` is captured: to ask it whether it is done would break the capture,
 * whosever it is. */
int cuda_refuse_captured(struct cuda_executor *e, void *stream);

void cuda_graph_ops(struct ep_executor *table);

#endif
