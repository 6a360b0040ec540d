/* SPDX-License-Identifier: MIT */
#include "cuda/driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

static struct cuda_driver driver;
static char reason[256];             /* empty: the driver is usable */
static pthread_once_t once = PTHREAD_ONCE_INIT;

typedef CUresult (*get_proc_address)(const char *, void **, int, cuuint64_t,
                                     CUdriverProcAddressQueryResult *);

static void refuse(const char *what, const char *detail)
{
    snprintf(reason, sizeof reason, "%s%s; a driver for CUDA %d.%d or newer is needed", what, detail,
             CUDA_MIN_DRIVER / 1000, CUDA_MIN_DRIVER % 1000 / 10);
}

/* cuda.h's macros turn a name into the newest version's symbol; the driver wants the plain name
 * and gives the version that CUDA_MIN_DRIVER had, whose signature is the same for all in use. */
static const char *find_all(get_proc_address find)
{
#define F(name)                                                                                  \
    if (find(#name, (void **)&driver.p_##name, CUDA_MIN_DRIVER, CU_GET_PROC_ADDRESS_DEFAULT,      \
             NULL) != CUDA_SUCCESS || driver.p_##name == NULL)                                    \
        return #name;
    CUDA_FUNCTIONS(F)
#undef F
    return NULL;
}

static void load(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    get_proc_address find;
    const char *missing, *name = "unknown error";
    CUresult code;

    if (library == NULL) {
        refuse("libcuda.so.1 cannot be loaded", "");
        return;
    }
    *(void **)&find = dlsym(library, "cuGetProcAddress_v2");
    if (find == NULL) {
        refuse("the driver has no cuGetProcAddress_v2", "");
        return;
    }
    missing = find_all(find);
    if (missing != NULL) {
        refuse("the driver lacks ", missing);
        return;
    }
    code = driver.p_cuInit(0);
    if (code == CUDA_SUCCESS)
        code = driver.p_cuDriverGetVersion(&driver.version);
    if (code != CUDA_SUCCESS) {
        driver.p_cuGetErrorName(code, &name);
        refuse("cuInit: ", name);
    }
}

const struct cuda_driver *cuda_driver(const char **why)
{
    pthread_once(&once, load);
    *why = reason;
    return reason[0] == '\0' ? &driver : NULL;
}
