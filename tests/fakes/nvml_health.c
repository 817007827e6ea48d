/* libnvidia-ml.so.1 of the host that FAKE_GPU_HOST describes: how its GPUs are. The rest is in nvml.c. */
#include "nvml.h"
#include <stdio.h>
#include <string.h>

/* ---- calls that give one unsigned number ---------------------------------------------------------------------- */

#define GETTER(function, call, key, healthy)                                                                          \
    EXPORT int function(device_t device, unsigned *out) {                                                             \
        int code = gpu_call(device, call);                                                                            \
        if (!code) *out = (unsigned)number(device, key, healthy);                                                     \
        return code;                                                                                                  \
    }
GETTER(nvmlDeviceGetIndex, "nvml.index", "index", device->gpu)
GETTER(nvmlDeviceGetMinorNumber, "nvml.minor", "minor", device->gpu)
GETTER(nvmlDeviceGetComputeMode, "nvml.compute_mode", "compute_mode", 0)
GETTER(nvmlDeviceGetPersistenceMode, "nvml.persistence", "persistence", 1)
GETTER(nvmlDeviceGetArchitecture, "nvml.architecture", "architecture", 9)
GETTER(nvmlDeviceGetVirtualizationMode, "nvml.virtualization", "virtualization", 1)
GETTER(nvmlDeviceGetCurrPcieLinkGeneration, "nvml.pcie", "pcie.generation", 5)
GETTER(nvmlDeviceGetCurrPcieLinkWidth, "nvml.pcie", "pcie.width", 16)
GETTER(nvmlDeviceGetMaxPcieLinkGeneration, "nvml.pcie", "pcie.max_generation", 5)
GETTER(nvmlDeviceGetMaxPcieLinkWidth, "nvml.pcie", "pcie.max_width", 16)
GETTER(nvmlDeviceGetGpuMaxPcieLinkGeneration, "nvml.pcie", "pcie.gpu_max_generation", 5)
GETTER(nvmlDeviceGetPowerUsage, "nvml.power", "power", 73819)

EXPORT int nvmlDeviceGetCudaComputeCapability(device_t device, int *major, int *minor) {
    int code = any_call(device, "nvml.compute_capability");
    if (code) return code;
    *major = (int)number(whole_gpu(device->gpu), "compute_capability.major", 9);
    *minor = (int)number(whole_gpu(device->gpu), "compute_capability.minor", 0);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetTemperature(device_t device, unsigned sensor, unsigned *out) {
    int code = gpu_call(device, "nvml.temperature");
    if (!code && sensor) code = INVALID_ARGUMENT;
    if (!code) *out = (unsigned)number(device, "temperature", 41);
    return code;
}

struct temperature {
    unsigned version, sensor;
    int celsius;
};

EXPORT int nvmlDeviceGetTemperatureV(device_t device, struct temperature *out) {
    return nvmlDeviceGetTemperature(device, out->sensor, (unsigned *)&out->celsius);
}

EXPORT int nvmlDeviceGetTemperatureThreshold(device_t device, unsigned threshold, unsigned *out) {
    static const char *const keys[] = {"temperature.shutdown", "temperature.slowdown", "temperature.memory_max",
                                       "temperature.gpu_max"};
    static const int healthy[] = {95, 89, 95, 87};
    int code = gpu_call(device, "nvml.temperature_threshold");
    if (!code && threshold > 3) code = NOT_SUPPORTED;
    if (!code) *out = (unsigned)number(device, keys[threshold], healthy[threshold]);
    return code;
}

struct margin {
    unsigned version;
    int celsius;
};

EXPORT int nvmlDeviceGetMarginTemperature(device_t device, struct margin *out) {
    int code = gpu_call(device, "nvml.margin_temperature");
    if (!code && out->version != 0x1000008) code = ARGUMENT_VERSION_MISMATCH;
    if (!code) out->celsius = (int)number(device, "temperature.margin", 46);
    return code;
}

EXPORT int nvmlDeviceGetClockInfo(device_t device, unsigned type, unsigned *out) {
    static const char *const keys[] = {"clock.graphics", "clock.sm", "clock.memory", "clock.video"};
    static const int idle[] = {345, 345, 2619, 765};
    int code = gpu_call(device, "nvml.clock");
    if (!code && type > 3) code = INVALID_ARGUMENT;
    if (!code) *out = (unsigned)number(device, keys[type], idle[type]);
    return code;
}

EXPORT int nvmlDeviceGetMaxClockInfo(device_t device, unsigned type, unsigned *out) {
    static const char *const keys[] = {"clock.max_graphics", "clock.max_sm", "clock.max_memory", "clock.max_video"};
    static const int healthy[] = {1980, 1980, 2619, 1545};
    int code = gpu_call(device, "nvml.max_clock");
    if (!code && type > 3) code = INVALID_ARGUMENT;
    if (!code) *out = (unsigned)number(device, keys[type], healthy[type]);
    return code;
}

EXPORT int nvmlDeviceGetCurrentClocksEventReasons(device_t device, u64 *out) {
    int code = gpu_call(device, "nvml.clocks_event_reasons");
    if (!code) *out = (u64)number(device, "clocks_event_reasons", 1);
    return code;
}

EXPORT int nvmlDeviceGetCurrentClocksThrottleReasons(device_t device, u64 *out) {
    return nvmlDeviceGetCurrentClocksEventReasons(device, out);
}

/* ---- how it is ------------------------------------------------------------------------------------------------ */

EXPORT int nvmlDeviceGetEccMode(device_t device, unsigned *current, unsigned *pending) {
    int code = gpu_call(device, "nvml.ecc_mode");
    if (code) return code;
    *current = (unsigned)number(device, "ecc.mode", 1);
    *pending = (unsigned)number(device, "ecc.pending", *current);
    return SUCCESS;
}

static const char *const ecc_keys[2][2] = {{"ecc.corrected.volatile", "ecc.corrected.aggregate"},
                                           {"ecc.uncorrected.volatile", "ecc.uncorrected.aggregate"}};

EXPORT int nvmlDeviceGetTotalEccErrors(device_t device, unsigned type, unsigned counter, u64 *out) {
    int code = gpu_call(device, "nvml.ecc_errors");
    if (!code && (type > 1 || counter > 1)) code = INVALID_ARGUMENT;
    if (!code) *out = (u64)number(device, ecc_keys[type][counter], 0);
    return code;
}

EXPORT int nvmlDeviceGetMemoryErrorCounter(device_t device, unsigned type, unsigned counter, unsigned location,
                                           u64 *out) {
    const char *memory = location == 2 ? "dram" : location == 7 ? "sram" : NULL;
    int code = gpu_call(device, "nvml.memory_errors");
    if (!code && (type > 1 || counter > 1)) code = INVALID_ARGUMENT;
    if (!code && !memory) code = NOT_SUPPORTED;
    if (code) return code;
    char key[64];
    snprintf(key, sizeof key, "%s.%s", ecc_keys[type][counter], memory);
    *out = (u64)number(device, key, 0);
    return SUCCESS;
}

struct sram {
    unsigned version;
    u64 counts[11];
    unsigned threshold_exceeded;
};

EXPORT int nvmlDeviceGetSramEccErrorStatus(device_t device, struct sram *out) {
    static const char *const keys[] = {
        "sram.aggregate_parity", "sram.aggregate_secded", "sram.aggregate_corrected", "sram.volatile_parity",
        "sram.volatile_secded", "sram.volatile_corrected", "sram.bucket_l2", "sram.bucket_sm", "sram.bucket_pcie",
        "sram.bucket_mcu", "sram.bucket_other",
    };
    int code = gpu_call(device, "nvml.sram");
    if (!code && out->version != 0x1000068) code = ARGUMENT_VERSION_MISMATCH;
    if (code) return code;
    for (int i = 0; i < 11; i++) out->counts[i] = (u64)number(device, keys[i], 0);
    out->threshold_exceeded = (unsigned)number(device, "sram.threshold_exceeded", 0);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetRemappedRows(device_t device, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                                     unsigned *failure) {
    int code = gpu_call(device, "nvml.remapped_rows");
    if (code) return code;
    *corrected = (unsigned)number(device, "remap.corrected", 0);
    *uncorrected = (unsigned)number(device, "remap.uncorrected", 0);
    *pending = (unsigned)number(device, "remap.pending", 0);
    *failure = (unsigned)number(device, "remap.failure", 0);
    return SUCCESS;
}

/* Page retirement ended with Ampere: `nvml.retired_pages = 0` makes it an older GPU. */
EXPORT int nvmlDeviceGetRetiredPages(device_t device, unsigned cause, unsigned *count, u64 *out) {
    int code = call_or(device, "nvml.retired_pages", NOT_SUPPORTED);
    if (code) return code;
    unsigned room = *count;
    *count = (unsigned)number(device, cause ? "retired.double_bit" : "retired.single_bit", 0);
    if (*count > room || (*count && !out)) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *count; i++) out[i] = 0x1000ULL * (i + 1);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetRetiredPagesPendingStatus(device_t device, unsigned *out) {
    int code = call_or(device, "nvml.retired_pages", NOT_SUPPORTED);
    if (!code) *out = (unsigned)number(device, "retired.pending", 0);
    return code;
}

struct field {
    uint32_t id, scope;
    int64_t timestamp, latency;
    unsigned type, code;
    union {
        int32_t signed_int;
        uint32_t unsigned_int;
        u64 whole;
    } value;
};

static void fill(device_t device, struct field *field) {
    enum { UNSIGNED_INT = 1, UNSIGNED_LONG_LONG = 3, SIGNED_INT = 5 };
    static const struct {
        unsigned id, type;
        int value;
    } healthy[] = {{94, UNSIGNED_INT, 0}, {193, SIGNED_INT, -8}, {194, SIGNED_INT, -2},
                   {195, SIGNED_INT, 0}, {196, SIGNED_INT, 0}, {230, UNSIGNED_INT, 0}};
    char key[64], call[64], scoped[64];
    snprintf(key, sizeof key, "field.%u", field->id);
    snprintf(scoped, sizeof scoped, "field.%u.%u", field->id, field->scope);
    snprintf(call, sizeof call, "nvml.field.%u", field->id);
    const char *said = text(device, scoped, text(device, key, NULL));
    long long value = 0;
    field->type = UNSIGNED_LONG_LONG;
    field->code = said ? SUCCESS : NOT_SUPPORTED;
    for (size_t i = 0; i < sizeof healthy / sizeof *healthy; i++) {
        if (healthy[i].id != field->id) continue;
        field->type = healthy[i].type;
        field->code = SUCCESS;
        value = healthy[i].value;
    }
    if (said) value = number(device, text(device, scoped, NULL) ? scoped : key, 0);
    field->code = (unsigned)answer(device, call, (int)field->code);
    field->value.whole = 0;
    if (field->type == UNSIGNED_LONG_LONG)
        field->value.whole = (u64)value;
    else
        field->value.signed_int = (int32_t)value;
}

EXPORT int nvmlDeviceGetFieldValues(device_t device, int count, struct field *fields) {
    int code = gpu_call(device, "nvml.fields");
    for (int i = 0; !code && i < count; i++) fill(device, &fields[i]);
    return code;
}

/* ---- NVLink and its fabric ------------------------------------------------------------------------------------ */

EXPORT int nvmlDeviceGetNvLinkState(device_t device, unsigned link, unsigned *out) {
    int code = gpu_call(device, "nvml.nvlink");
    if (code) return code;
    if (!number(device, "nvlinks", 18)) return NOT_SUPPORTED;
    if (link >= number(device, "nvlinks", 18)) return INVALID_ARGUMENT;
    char key[64];
    snprintf(key, sizeof key, "nvlink.%u", link);
    *out = (unsigned)number(device, key, 1);
    return SUCCESS;
}

struct fabric {
    uint8_t cluster[16];
    unsigned status;
    uint32_t clique;
    unsigned state;
};

EXPORT int nvmlDeviceGetGpuFabricInfo(device_t device, struct fabric *out) {
    int code = gpu_call(device, "nvml.fabric");
    if (code) return code;
    memset(out, 0, sizeof *out);
    out->status = (unsigned)number(device, "fabric.status", 0);
    out->clique = (uint32_t)number(device, "fabric.clique", 0);
    out->state = (unsigned)number(device, "fabric.state", 3);
    return SUCCESS;
}

struct fabric_v3 {
    unsigned version;
    struct fabric fabric;
    uint32_t health_mask;
    uint8_t health_summary; /* not there in version 2 */
};

EXPORT int nvmlDeviceGetGpuFabricInfoV(device_t device, struct fabric_v3 *out) {
    int code = gpu_call(device, "nvml.fabric");
    if (code) return code;
    unsigned newest = (unsigned)number(device, "fabric.version", 3); /* of the driver */
    if (out->version != 0x2000024 && (out->version != 0x3000028 || newest < 3)) return ARGUMENT_VERSION_MISMATCH;
    /* 2 (false) in each of the first four two-bit fields, 1 (none) for an incorrect configuration */
    out->health_mask = (uint32_t)number(device, "fabric.health_mask", 0x1aa);
    if (out->version == 0x3000028) out->health_summary = (uint8_t)number(device, "fabric.health_summary", 1);
    return nvmlDeviceGetGpuFabricInfo(device, &out->fabric);
}
