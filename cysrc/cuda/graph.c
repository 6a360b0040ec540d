/* SPDX-License-Identifier: MIT */
#include "cuda/graph.h"

#include "cuda/call.h"

static int find_capture(struct cuda_executor *e, void *stream, void **graph)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUgraph captured = NULL;

    *graph = NULL;
    ENTER();
    /* The legacy stream cannot be captured, and must not be asked while another one is.  Older
     * drivers' function takes one argument less; all of the last three are NULL. */
    if (stream == NULL || stream == CU_STREAM_LEGACY)
        return EP_OK;
    TRY(cuStreamGetCaptureInfo, stream, &status, NULL, &captured, NULL, NULL, NULL);
    if (status == CU_STREAM_CAPTURE_STATUS_ACTIVE)
        *graph = captured;
    return EP_OK;
}

int cuda_refuse_captured(struct cuda_executor *e, void *stream)
{
    void *graph;
    int code = find_capture(e, stream, &graph);

    if (code != EP_OK || graph == NULL)
        return code;
    return cuda_refuse(EP_ERR_CAPTURED,
                       "stream: is being captured, the host cannot wait for it now");
}

static int op_capture(void *self, void *stream, void **graph)
{
    EXECUTOR(self);
    CUcontext before = cuda_current_context(e);

    return cuda_keeping_context(e, before, find_capture(e, stream, graph));
}

static int op_look(void *self, void *stream, void **graph)
{
    EXECUTOR(self);

    cuda_call_begins(e);
    return op_capture(self, stream, graph);
}

static int op_graph_keep(void *self, void *graph, void *what, void (*release)(void *what))
{
    EXECUTOR(self);
    CUuserObject object = NULL;

    ENTER();
    TRY(cuUserObjectCreate, &object, what, release, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC);
    TRY(cuGraphRetainUserObject, graph, object, 1, CU_GRAPH_USER_OBJECT_MOVE);
    return EP_OK;
}

void cuda_graph_ops(struct ep_executor *table)
{
    table->capture = op_capture;
    table->look = op_look;
    table->graph_keep = op_graph_keep;
}
