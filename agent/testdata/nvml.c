/*
 * A stand-in for NVIDIA's libnvidia-ml.so.1, for tests: functions and structures as nvml.h documents them
 * (https://docs.nvidia.com/deploy/nvml-api). Two GPUs, the first with everything, the second with nothing.
 *
 * -DOLD: as the library of driver 470, without what came with 510.
 * -DGONE=N: the driver has gone since the start; calls fail with NVML's error N.
 * -DCROWD: more processes than there can be.
 */
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7 };
#ifndef GONE
#define GONE SUCCESS
#endif

typedef struct gpu gpu;
/* Handles are opaque; these are never looked at. */
#define WHOLE ((gpu *)8)
#define MUTE ((gpu *)16)
#define PART ((gpu *)24)

typedef struct {
    unsigned gpu, memory;
} utilisation;
typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} memory_v2;
typedef struct {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
} process;

static int put(gpu *of, char *to, unsigned size, const char *whole, const char *part) {
    const char *text = of == WHOLE ? whole : part;
    if (of == MUTE)
        return NOT_SUPPORTED;
    if (strlen(text) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}
static int number(gpu *of, unsigned *to, unsigned value) {
    if (of != WHOLE)
        return NOT_SUPPORTED;
    *to = value;
    return SUCCESS;
}

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *to) {
    *to = 2;
    return GONE;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu **to) {
    *to = index == 0 ? WHOLE : MUTE;
    return SUCCESS;
}
int nvmlDeviceGetUUID(gpu *of, char *to, unsigned size) {
    return put(of, to, size, "GPU-11111111-2222-3333-4444-555555555555", "MIG-11111111-2222-3333-4444-555555555555");
}
int nvmlDeviceGetName(gpu *of, char *to, unsigned size) {
    return put(of, to, size, "NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB MIG 1g.10gb");
}
int nvmlDeviceGetUtilizationRates(gpu *of, utilisation *to) {
    to->memory = 41;
    return number(of, &to->gpu, 97);
}
int nvmlDeviceGetTemperature(gpu *of, int sensor, unsigned *to) { return number(of, to, sensor == 0 ? 64 : 0); }
int nvmlDeviceGetPowerUsage(gpu *of, unsigned *to) { return number(of, to, 311250); }
int nvmlDeviceGetEnforcedPowerLimit(gpu *of, unsigned *to) { return number(of, to, 400000); }
int nvmlDeviceGetTotalEnergyConsumption(gpu *of, unsigned long long *to) {
    *to = 5000000000ULL; /* more than 32 bits hold */
    return of == WHOLE ? SUCCESS : NOT_SUPPORTED;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(gpu *of, unsigned long long *to) {
    *to = 0x4 | 0x40;
    return of == WHOLE ? SUCCESS : NOT_SUPPORTED;
}
int nvmlDeviceGetClockInfo(gpu *of, int clock, unsigned *to) { return number(of, to, 1000 + clock); }
int nvmlDeviceGetMaxClockInfo(gpu *of, int clock, unsigned *to) { return number(of, to, 2000 + clock); }
int nvmlDeviceGetEccMode(gpu *of, int *now, int *next) {
    *now = *next = 1;
    return of == WHOLE ? SUCCESS : NOT_SUPPORTED;
}
int nvmlDeviceGetTotalEccErrors(gpu *of, int kind, int counter, unsigned long long *to) {
    *to = kind == 0 && counter == 0 ? 17 : 0;
    return of == WHOLE ? SUCCESS : NOT_SUPPORTED;
}
int nvmlDeviceGetMigMode(gpu *of, unsigned *now, unsigned *next) {
    *next = 1;
    return number(of, now, 1);
}
int nvmlDeviceGetMaxMigDeviceCount(gpu *of, unsigned *to) { return number(of, to, 7); }
int nvmlDeviceGetMigDeviceHandleByIndex(gpu *of, unsigned index, gpu **to) {
    *to = PART;
    return of == WHOLE && index == 2 ? SUCCESS : 6; /* not found */
}

#ifndef OLD
int nvmlDeviceGetMemoryInfo_v2(gpu *of, memory_v2 *to) {
    if (of == MUTE || to->version != (sizeof(memory_v2) | 2u << 24))
        return NOT_SUPPORTED;
    to->total = of == WHOLE ? 85899345920ULL : 10737418240ULL;
    to->used = 1073741824;
    to->reserved = 0;
    to->free = to->total - to->used;
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(gpu *of, unsigned *count, process *to) {
    const process all[] = {{4711, 536870912, 0, 0}, {4712, ~0ULL, 0, 0}};
    unsigned room = *count;
    if (of != WHOLE)
        return NOT_SUPPORTED;
#ifdef CROWD
    *count = 4000000000u;
    return room < *count ? INSUFFICIENT_SIZE : SUCCESS;
#endif
    *count = 2;
    if (room < 2)
        return INSUFFICIENT_SIZE;
    memcpy(to, all, sizeof all);
    return SUCCESS;
}
#endif
