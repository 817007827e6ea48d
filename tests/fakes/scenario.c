#include "scenario.h"
#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
    char key[96], value[128];
} entries[2048];
static int entry_count;
static struct device gpus[MAX_GPUS], instances[MAX_GPUS][MAX_MIG];

static void refuse(const char *why, const char *what) {
    fprintf(stderr, "fake GPU host: %s: %s\n", why, what);
    abort();
}

static char *trimmed(char *words) {
    while (isspace((unsigned char)*words)) words++;
    for (char *end = words + strlen(words); end > words && isspace((unsigned char)end[-1]);) *--end = 0;
    return words;
}

__attribute__((constructor)) static void load(void) {
    for (int gpu = 0; gpu < MAX_GPUS; gpu++) {
        gpus[gpu] = (struct device){gpu, -1};
        for (int mig = 0; mig < MAX_MIG; mig++) instances[gpu][mig] = (struct device){gpu, mig};
    }
    const char *path = getenv("FAKE_GPU_HOST");
    if (!path) return;
    FILE *file = fopen(path, "re");
    if (!file) refuse("cannot open", path);
    for (char line[256]; fgets(line, sizeof line, file);) {
        char *equals = strchr(line, '=');
        if (!*trimmed(line) || *line == '#') continue;
        if (!equals || entry_count == (int)(sizeof entries / sizeof *entries)) refuse("cannot take the line", line);
        *equals = 0;
        snprintf(entries[entry_count].key, sizeof entries->key, "%s", trimmed(line));
        snprintf(entries[entry_count++].value, sizeof entries->value, "%s", trimmed(equals + 1));
    }
    fclose(file);
}

struct device *whole_gpu(int gpu) { return &gpus[gpu]; }
struct device *mig_instance(int gpu, int mig) { return &instances[gpu][mig]; }

static const char *find(const char *key) {
    for (int i = 0; i < entry_count; i++)
        if (!strcmp(entries[i].key, key)) return entries[i].value;
    return NULL;
}

const char *text(const struct device *device, const char *key, const char *otherwise) {
    char full[128];
    if (!device)
        snprintf(full, sizeof full, "%s", key);
    else if (device->mig >= 0)
        snprintf(full, sizeof full, "gpu.%d.mig.%d.%s", device->gpu, device->mig, key);
    else
        snprintf(full, sizeof full, "gpu.%d.%s", device->gpu, key);
    const char *found = find(full);
    if (!found && device && device->mig < 0) {
        snprintf(full, sizeof full, "gpu.*.%s", key);
        found = find(full);
    }
    return found ? found : otherwise;
}

long long number(const struct device *device, const char *key, long long otherwise) {
    const char *found = text(device, key, NULL);
    if (!found) return otherwise;
    char *end;
    long long value = strtoll(found, &end, 0);
    if (end == found || *end) refuse("not a number", found);
    return value;
}

int answer(const struct device *device, const char *call, int otherwise) {
    const char *found = text(device, call, NULL);
    if (!found) return otherwise;
    if (!strcmp(found, "hang"))
        for (;;) pause();
    if (!strcmp(found, "segv")) {
        int *volatile nowhere = NULL;
        *nowhere = 1;
    }
    if (!strcmp(found, "abort")) abort();
    if (!strcmp(found, "kill")) kill(getpid(), SIGKILL);
    if (!strcmp(found, "exit")) _exit(0);
    return (int)number(device, call, otherwise);
}

/* Spelled the same way in host.py, so that a test can name a GPU without asking one. */
void uuid_of(const struct device *device, char uuid[48]) {
    char made[48];
    unsigned first = (unsigned)(device->gpu + 1) * 0x1f3d5b79u;
    if (device->mig < 0)
        snprintf(made, sizeof made, "GPU-%08x-6e1c-4b2a-9f0d-%012x", first, device->gpu);
    else
        snprintf(made, sizeof made, "MIG-%08x-7d2e-5c3b-8a1f-%012x", first, device->mig);
    snprintf(uuid, 48, "%s", text(device, "uuid", made));
}

int mig_count(int gpu) { return (int)number(&gpus[gpu], "mig.instances", 0); }

/* The buses of an HGX H100 board's GPUs, then of a second one. */
int bus_of(int gpu) {
    static const int buses[MAX_GPUS] = {0x19, 0x3b, 0x4c, 0x5d, 0x9b, 0xbb, 0xcb, 0xdb,
                                        0x1a, 0x3c, 0x4d, 0x5e, 0x9c, 0xbc, 0xcc, 0xdc};
    return (int)number(&gpus[gpu], "bus", buses[gpu]);
}

unsigned long long memory_total(const struct device *device) {
    return (unsigned long long)number(device, "memory.total", device->mig < 0 ? 85520809984 : 42144366592);
}

unsigned long long memory_reserved(const struct device *device) {
    return (unsigned long long)number(device, "memory.reserved", device->mig < 0 ? 503316480 : 0);
}

unsigned long long memory_used(const struct device *device) {
    return (unsigned long long)number(device, "memory.used", 0);
}
