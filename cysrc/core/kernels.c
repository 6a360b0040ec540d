/* SPDX-License-Identifier: MIT */
#include "kernels.h"

#include <stddef.h>

#include "deepep_ptx/deepep_ptx.h"

uint32_t ep_num_kernels(void)
{
    return EP_NUM_KERNELS;
}

const char *ep_kernel_name(uint32_t kernel)
{
    return kernel < EP_NUM_KERNELS ? ep_kernels[kernel].name : NULL;
}

uint32_t ep_param_bytes(uint32_t kernel)
{
    return kernel < EP_NUM_KERNELS ? ep_kernels[kernel].param_bytes : 0;
}
