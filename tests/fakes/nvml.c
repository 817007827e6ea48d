/* libnvidia-ml.so.1 of the host that FAKE_GPU_HOST describes: the library, which GPUs, who uses them. Their health is
 * in nvml_health.c. Each function is known by its exported name; struct layouts are those of pynvml 13.615. The string
 * "nvml.<word>" in a function is the key that makes it fail or hang. */
#include "nvml.h"
#include <stdio.h>
#include <string.h>

enum { NO_ATTACH = 2 };

static _Atomic int users, init_flags;

static int gpu_count(void) {
    if (init_flags & NO_ATTACH) return 0; /* as on a real host: facts/measured.md */
    return (int)number(NULL, "nvml.gpus", number(NULL, "gpus", 8));
}

static int system_call(const char *call) { return users ? answer(NULL, call, SUCCESS) : UNINITIALIZED; }

int call_or(device_t device, const char *call, int otherwise) {
    if (!users) return UNINITIALIZED;
    return device ? answer(device, call, otherwise) : INVALID_ARGUMENT;
}

int any_call(device_t device, const char *call) { return call_or(device, call, SUCCESS); }

int gpu_call(device_t device, const char *call) {
    return call_or(device, call, device && device->mig >= 0 ? NOT_SUPPORTED : SUCCESS);
}

static int copy(int code, char *out, unsigned size, const char *words) {
    if (code) return code;
    if (strlen(words) >= size) return INSUFFICIENT_SIZE;
    strcpy(out, words);
    return SUCCESS;
}

/* ---- the library and the driver ------------------------------------------------------------------------------- */

EXPORT int nvmlInitWithFlags(unsigned flags) {
    int code = answer(NULL, "nvml.init", SUCCESS);
    if (code) return code;
    init_flags = (int)flags;
    users++;
    return SUCCESS;
}

EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT int nvmlShutdown(void) {
    int code = system_call("nvml.shutdown");
    if (!code) users--;
    return code;
}

EXPORT const char *nvmlErrorString(int code) {
    static const char *const words[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded",
        "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found",
        "Corrupted infoROM", "GPU is lost", "GPU requires reset", "The operating system has blocked the request",
        "Driver/library version mismatch", "In use by another client", "Insufficient Memory", "No data",
        "vGPU ECC is not supported", "Insufficient resources", "Frequency not supported",
        "Argument version mismatch", "Deprecated function", "Not ready", "GPU not found", "Invalid state",
    };
    return code >= 0 && code < (int)(sizeof words / sizeof *words) ? words[code] : "Unknown Error";
}

EXPORT int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    return copy(system_call("nvml.driver_version"), out, size, text(NULL, "driver", "580.159.04"));
}

EXPORT int nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    return copy(answer(NULL, "nvml.nvml_version", SUCCESS), out, size, text(NULL, "nvml_version", "13.580.159.04"));
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *out) {
    int code = answer(NULL, "nvml.cuda_driver_version", SUCCESS);
    if (!code) *out = (int)number(NULL, "cuda_version", 13000);
    return code;
}

EXPORT int nvmlSystemGetCudaDriverVersion(int *out) { return nvmlSystemGetCudaDriverVersion_v2(out); }

/* ---- which GPUs ----------------------------------------------------------------------------------------------- */

EXPORT int nvmlDeviceGetCount_v2(unsigned *out) {
    int code = system_call("nvml.count");
    if (!code) *out = (unsigned)gpu_count();
    return code;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *out) {
    if (!users) return UNINITIALIZED;
    if (index >= (unsigned)gpu_count()) return INVALID_ARGUMENT;
    int code = any_call(whole_gpu((int)index), "nvml.handle");
    if (!code) *out = whole_gpu((int)index);
    return code;
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *wanted, device_t *out) {
    if (!users) return UNINITIALIZED;
    for (int gpu = 0; gpu < gpu_count(); gpu++) {
        for (int mig = -1; mig < mig_count(gpu); mig++) {
            device_t device = mig < 0 ? whole_gpu(gpu) : mig_instance(gpu, mig);
            char uuid[48];
            uuid_of(device, uuid);
            if (strcmp(uuid, wanted)) continue;
            int code = any_call(device, "nvml.handle");
            if (!code) *out = device;
            return code;
        }
    }
    return NOT_FOUND;
}

EXPORT int nvmlDeviceGetUUID(device_t device, char *out, unsigned size) {
    int code = any_call(device, "nvml.uuid");
    char uuid[48] = "";
    if (!code) uuid_of(device, uuid);
    return copy(code, out, size, uuid);
}

EXPORT int nvmlDeviceGetName(device_t device, char *out, unsigned size) {
    int code = any_call(device, "nvml.name");
    if (code) return code;
    char name[96];
    const char *gpu = text(whole_gpu(device->gpu), "name", "NVIDIA H100 80GB HBM3");
    snprintf(name, sizeof name, device->mig < 0 ? "%s" : "%s MIG 3g.40gb", gpu);
    return copy(code, out, size, text(device, "name", name));
}

EXPORT int nvmlDeviceGetSerial(device_t device, char *out, unsigned size) {
    int code = gpu_call(device, "nvml.serial");
    if (code) return code;
    char serial[24];
    snprintf(serial, sizeof serial, "16537%08d", device->gpu);
    return copy(code, out, size, text(device, "serial", serial));
}

struct pci {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char id[32];
};

EXPORT int nvmlDeviceGetPciInfo_v3(device_t device, struct pci *out) {
    int code = gpu_call(device, "nvml.pci");
    if (code) return code;
    memset(out, 0, sizeof *out);
    out->bus = (unsigned)bus_of(device->gpu);
    out->device_id = (unsigned)number(device, "pci.device_id", 0x233010de);
    out->subsystem_id = (unsigned)number(device, "pci.subsystem_id", 0x16c110de);
    snprintf(out->legacy, sizeof out->legacy, "0000:%02X:00.0", out->bus & 0xff);
    snprintf(out->id, sizeof out->id, "00000000:%02X:00.0", out->bus);
    return SUCCESS;
}

/* ---- MIG ------------------------------------------------------------------------------------------------------ */

static int mig_mode(device_t device) { return (int)number(device, "mig.mode", mig_count(device->gpu) > 0); }

EXPORT int nvmlDeviceGetMigMode(device_t device, unsigned *current, unsigned *pending) {
    int code = gpu_call(device, "nvml.mig_mode");
    if (code) return code;
    *current = (unsigned)mig_mode(device);
    *pending = (unsigned)number(device, "mig.pending", mig_mode(device));
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMaxMigDeviceCount(device_t device, unsigned *out) {
    int code = gpu_call(device, "nvml.max_mig");
    if (!code) *out = mig_mode(device) ? MAX_MIG : 0;
    return code;
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(device_t device, unsigned index, device_t *out) {
    int code = gpu_call(device, "nvml.mig_handle");
    if (code) return code;
    if (!mig_mode(device)) return NOT_SUPPORTED;
    if (index >= MAX_MIG) return INVALID_ARGUMENT;
    if (index >= (unsigned)mig_count(device->gpu)) return NOT_FOUND;
    *out = mig_instance(device->gpu, (int)index);
    return SUCCESS;
}

EXPORT int nvmlDeviceIsMigDeviceHandle(device_t device, unsigned *out) {
    int code = any_call(device, "nvml.is_mig");
    if (!code) *out = device->mig >= 0;
    return code;
}

EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t device, device_t *out) {
    int code = any_call(device, "nvml.mig_parent");
    if (code) return code;
    if (device->mig < 0) return INVALID_ARGUMENT;
    *out = whole_gpu(device->gpu);
    return SUCCESS;
}

/* ---- who uses it ---------------------------------------------------------------------------------------------- */

struct memory {
    u64 total, free, used;
};

EXPORT int nvmlDeviceGetMemoryInfo(device_t device, struct memory *out) {
    int code = any_call(device, "nvml.memory");
    if (code) return code;
    out->total = memory_total(device);
    out->used = memory_used(device) + memory_reserved(device); /* v1 counts what the driver reserves as used */
    out->free = out->total - out->used;
    return SUCCESS;
}

struct memory_v2 {
    unsigned version;
    u64 total, reserved, free, used;
};

EXPORT int nvmlDeviceGetMemoryInfo_v2(device_t device, struct memory_v2 *out) {
    int code = any_call(device, "nvml.memory");
    if (!code && out->version != 0x2000028) code = ARGUMENT_VERSION_MISMATCH;
    if (code) return code;
    out->total = memory_total(device);
    out->reserved = memory_reserved(device);
    out->used = memory_used(device);
    out->free = out->total - out->reserved - out->used;
    return SUCCESS;
}

struct utilization {
    unsigned gpu, memory;
};

EXPORT int nvmlDeviceGetUtilizationRates(device_t device, struct utilization *out) {
    int supported = device && device->mig < 0 && !mig_mode(device);
    int code = call_or(device, "nvml.utilization", supported ? SUCCESS : NOT_SUPPORTED);
    if (code) return code;
    out->gpu = (unsigned)number(device, "utilization.gpu", 0);
    out->memory = (unsigned)number(device, "utilization.memory", 0);
    return SUCCESS;
}

struct process {
    unsigned pid;
    u64 memory;
    unsigned gpu_instance, compute_instance;
};

static long long process_value(device_t device, int i, const char *what, long long otherwise) {
    char key[64];
    snprintf(key, sizeof key, "process.%d.%s", i, what);
    return number(device, key, otherwise);
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(device_t device, unsigned *count, struct process *out) {
    int code = any_call(device, "nvml.processes");
    if (code) return code;
    unsigned room = *count, there = 0;
    while (process_value(device, (int)there, "pid", 0)) there++;
    *count = there;
    if (there > room) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < there; i++)
        out[i] = (struct process){(unsigned)process_value(device, (int)i, "pid", 0),
                                  (u64)process_value(device, (int)i, "memory", 641728512), UINT32_MAX, UINT32_MAX};
    return SUCCESS;
}
