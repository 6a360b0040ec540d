/* SPDX-License-Identifier: MIT */
#include "core/launch.h"

uint32_t ep_launch_smem(const struct ep_buffer *b, const struct ep_loaded *kernel)
{
    return kernel->smem + b->comm.num_ranks * kernel->smem_per_rank
           + kernel->rings * kernel->stages * (kernel->stage_bytes + (uint32_t)sizeof(uint64_t));
}

int ep_launch_fit(const struct ep_buffer *b, struct ep_loaded *kernel)
{
    while (kernel->stages > EP_MIN_STAGES && ep_launch_smem(b, kernel) > EP_MAX_SMEM)
        kernel->stages--;
    return ep_launch_smem(b, kernel) <= EP_MAX_SMEM;
}

int ep_launch_choose(const struct ep_buffer *b, uint32_t kernel, const struct ep_call *call,
                     struct ep_loaded *out)
{
    *out = b->kernel[kernel];
    if (!out->rings)
        return EP_OK;
    if (call->stages)
        out->stages = call->stages;
    if (call->stage_bytes)
        out->stage_bytes = call->stage_bytes;
    if (out->stages < EP_MIN_STAGES || out->stage_bytes % EP_ROW_ALIGN
        || out->stage_bytes > EP_MAX_SMEM || out->stages > EP_MAX_SMEM)
        return EP_ERR_ARGUMENT;
    return ep_launch_fit(b, out) ? EP_OK : EP_ERR_ARGUMENT;
}

int ep_launch_on(struct ep_buffer *b, void *stream, uint32_t kernel,
                 const struct ep_loaded *loaded, const void *params, uint32_t param_bytes,
                 uint32_t grid)
{
    struct ep_launch launch = {
        .kernel = loaded->handle, .params = params, .param_bytes = param_bytes,
        .grid = grid, .block = loaded->threads, .smem = ep_launch_smem(b, loaded),
        .stream = stream};
    if (b->num_launched < EP_NUM_KERNELS)
        b->launched[b->num_launched++] = kernel;
    return b->exec->launch(b->exec->self, &launch);
}
