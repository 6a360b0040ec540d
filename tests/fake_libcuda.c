/* SPDX-License-Identifier: MIT
 *
 * A libcuda.so.1 that answers questions about GPUs and can do nothing else: the doctor's tests.
 * FAKE_GPUS: how many.  FAKE_NVLINK=0: they reach each other over PCIe.  FAKE_PEERS=0: not at all.
 * FAKE_HANG=1: cuInit does not return. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAJOR 75
#define MINOR 76
#define P2P_RANK 1
#define P2P_ATOMICS 3

static int setting(const char *name, int otherwise)
{
    const char *text = getenv(name);

    return text == NULL ? otherwise : atoi(text);
}

static int init(unsigned flags)
{
    (void)flags;
    while (setting("FAKE_HANG", 0))
        pause();
    return 0;
}

static int version(int *out) { *out = 13000; return 0; }
static int count(int *out) { *out = setting("FAKE_GPUS", 2); return 0; }
static int get(int *out, int ordinal) { *out = ordinal; return 0; }
static int memory(size_t *out, int device) { (void)device; *out = (size_t)80 << 30; return 0; }

static int name(char *out, int bytes, int device)
{
    (void)device;
    strncpy(out, "Fake H100", bytes);
    return 0;
}

static int attribute(int *out, int what, int device)
{
    (void)device;
    *out = what == MAJOR ? setting("FAKE_MAJOR", 9) : what == MINOR ? 0 : 1;
    return 0;
}

static int can_access(int *out, int from, int to)
{
    (void)from, (void)to;
    *out = setting("FAKE_PEERS", 1);
    return 0;
}

static int p2p(int *out, int what, int from, int to)
{
    (void)from, (void)to;
    *out = what == P2P_ATOMICS ? setting("FAKE_NVLINK", 1) : what == P2P_RANK ? 0 : 1;
    return 0;
}

static int error_name(int code, const char **out) { (void)code; *out = "FAKE_ERROR"; return 0; }
static int cannot(void) { return 801; }

int cuGetProcAddress_v2(const char *symbol, void **out, int least, unsigned long flags, int *found)
{
    static const struct { const char *name; void *function; } known[] = {
        { "cuInit", init }, { "cuDriverGetVersion", version }, { "cuDeviceGetCount", count },
        { "cuDeviceGet", get }, { "cuDeviceGetName", name }, { "cuDeviceTotalMem", memory },
        { "cuDeviceGetAttribute", attribute }, { "cuDeviceCanAccessPeer", can_access },
        { "cuDeviceGetP2PAttribute", p2p }, { "cuGetErrorName", error_name },
        { "cuGetErrorString", error_name },
    };

    (void)least, (void)flags, (void)found;
    *out = cannot;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, symbol) == 0)
            *out = known[i].function;
    return 0;
}
