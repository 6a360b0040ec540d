/* SPDX-License-Identifier: MIT */
#include "core/launch.h"

#include "core/residency.h"
#include "core/util.h"

static uint32_t smem_without_rings(const struct ep_buffer *b, const struct ep_loaded *kernel)
{
    return kernel->smem + b->comm.num_ranks * kernel->smem_per_rank;
}

/* For each of a kernel's rings, which it has. */
static uint32_t room_of_ring(const struct ep_buffer *b, const struct ep_loaded *kernel)
{
    return (kernel->max_smem - smem_without_rings(b, kernel)) / kernel->rings;
}

static uint32_t smem_of(const struct ep_buffer *b, const struct ep_loaded *kernel)
{
    return smem_without_rings(b, kernel)
           + kernel->rings * kernel->stages * (kernel->stage_bytes + EP_STAGE_EXTRA);
}

/* Whatever stages a call wants. */
static uint32_t most_smem(const struct ep_buffer *b, const struct ep_loaded *kernel)
{
    return kernel->rings ? kernel->max_smem : smem_without_rings(b, kernel);
}

uint32_t ep_launch_most_stage_bytes(const struct ep_buffer *b, const struct ep_loaded *kernel)
{
    if (!kernel->rings)
        return 0;
    uint32_t most = room_of_ring(b, kernel) / EP_MIN_STAGES - EP_STAGE_EXTRA;
    return most - most % EP_ROW_ALIGN;
}

void ep_launch_fit(const struct ep_buffer *b, struct ep_loaded *kernel)
{
    if (kernel->rings)
        kernel->stages = min_u32(kernel->stages, room_of_ring(b, kernel)
                                                 / (kernel->stage_bytes + EP_STAGE_EXTRA));
}

int ep_launch_choose(const struct ep_buffer *b, uint32_t kernel, const struct ep_call *call,
                     struct ep_loaded *out)
{
    *out = b->kernel[kernel];
    if (!call->num_sms)
        return EP_ERR_ARGUMENT;
    if (!out->rings)
        return EP_OK;
    if (call->stages)
        out->stages = call->stages;
    if (call->stage_bytes)
        out->stage_bytes = call->stage_bytes;
    if (out->stages < EP_MIN_STAGES || out->stage_bytes % EP_ROW_ALIGN
        || out->stage_bytes > ep_launch_most_stage_bytes(b, out))
        return EP_ERR_ARGUMENT;
    ep_launch_fit(b, out);
    return EP_OK;
}

int ep_launch_max_ctas(const struct ep_buffer *b, uint32_t *ctas)
{
    *ctas = UINT32_MAX;
    for (uint32_t i = 0; i < EP_NUM_KERNELS; i++) {
        const struct ep_loaded *kernel = &b->kernel[i];
        uint32_t resident = UINT32_MAX;
        if (ep_kernels[i].co_resident && kernel->handle)
            TRY(b->exec->max_resident(b->exec->self, kernel->handle, kernel->threads,
                                      most_smem(b, kernel), &resident));
        *ctas = min_u32(*ctas, resident);
    }
    return EP_OK;
}

static int launch_as(struct ep_buffer *b, uint32_t kernel, const struct ep_loaded *loaded,
                     struct ep_launch *launch)
{
    launch->kernel = loaded->handle;
    launch->block = loaded->threads;
    launch->smem = smem_of(b, loaded);
    if (b->num_launched < EP_NUM_KERNELS)
        b->launched[b->num_launched++] = kernel;
    return b->exec->launch(b->exec->self, launch);
}

int ep_launch_call(struct ep_buffer *b, const struct ep_call *call, uint32_t kernel,
                   const struct ep_loaded *loaded, const void *params, uint32_t param_bytes)
{
    struct ep_launch launch = {
        .params = params, .param_bytes = param_bytes, .grid = call->num_sms, .stream = b->stream,
        /* Where the device holds them all it would cost some 0.2 us for nothing. */
        .cooperative = ep_residency_is_crowded(b, call->num_sms), .started = call->started};
    return launch_as(b, kernel, loaded, &launch);
}

int ep_launch_on(struct ep_buffer *b, void *stream, uint32_t kernel,
                 const struct ep_loaded *loaded, const void *params, uint32_t param_bytes,
                 uint32_t grid)
{
    struct ep_launch launch = {
        .params = params, .param_bytes = param_bytes, .grid = grid, .stream = stream};
    return launch_as(b, kernel, loaded, &launch);
}

/* The word that ends this rank's waits needs no launch, which may queue behind the call that waits
 * (CUDA_DEVICE_MAX_CONNECTIONS).  The launch tells the peers, also where no call of this rank runs. */
int ep_launch_abort(struct ep_buffer *b)
{
    struct ep_abort_params params = {.comm = b->comm};
    __atomic_store_n(&b->ring->stop, 1, __ATOMIC_RELEASE);
    return ep_launch_on(b, b->abort_stream, EP_KERNEL_ABORT, &b->kernel[EP_KERNEL_ABORT], &params,
                        sizeof params, 1);
}
