/* A libnvidia-ml.so.1 without a driver: tells what files beside it say, and loses, hides and hangs as they say.
 *
 * Beside the library:
 *   gpus       one line a GPU: uuid total base lost ecc celsius clocks pending failure mig name (sizes in bytes)
 *   alloc/     PID.UUID holds the bytes that a process has; they count while it lives, or while `linger` is there
 *   linger     memory of the dead stays: `listed` with its process, `hidden` without
 *   xids       one line an error: uuid number; each is told once
 *   broken     not even the number of GPUs is told         mode       the compute mode of every GPU
 *   sizeless   processes are told, what they use is not     silent     not even the processes are told
 *   hang       nothing answers while this is there
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, LOST = 15, DRIVER_MISMATCH = 18 };

struct gpu { char uuid[96]; unsigned long long total, base; int lost, ecc, celsius, clocks, pending, failure, mig; char name[96]; };
struct process { unsigned pid; unsigned long long used; unsigned gi, ci; };

static char folder[2048];

static const char *beside(const char *name) {
    static char path[4][4096];
    static int turn;
    if (!folder[0]) {
        Dl_info info;
        dladdr((void *)beside, &info);
        snprintf(folder, sizeof folder, "%s", info.dli_fname);
        *strrchr(folder, '/') = 0;
    }
    char *made = path[turn++ % 4];
    snprintf(made, 4096, "%s/%s", folder, name);
    return made;
}

static int there(const char *name) { return access(beside(name), F_OK) == 0; }

static int read_gpus(struct gpu *found) {
    FILE *file = fopen(beside("gpus"), "r");
    int count = 0;
    while (file && count < 64) {
        struct gpu *g = found + count;
        if (fscanf(file, "%95s %llu %llu %d %d %d %d %d %d %d %95[^\n]", g->uuid, &g->total, &g->base, &g->lost, &g->ecc,
                   &g->celsius, &g->clocks, &g->pending, &g->failure, &g->mig, g->name) != 11) break;
        count++;
    }
    if (file) fclose(file);
    return count;
}

/* A handle is the number of the GPU and, above it, that of the MIG device, both counted from 1. */
static int gpu_of(void *handle, struct gpu *found, int *part) {
    static struct gpu all[64];
    long number = (long)handle;
    int count = read_gpus(all), index = (int)(number & 0xff) - 1;
    if (index < 0 || index >= count) return LOST;
    *found = all[index];
    *part = (int)(number >> 8);
    if (*part) {
        found->total /= found->mig ? found->mig : 1;
        found->base = 0;
        char whole[64];
        snprintf(whole, sizeof whole, "%.60s", found->uuid);
        snprintf(found->uuid, sizeof found->uuid, "MIG-%s-%d", whole + 4, *part - 1);
    }
    return found->lost ? LOST : SUCCESS;
}

static int lives(int pid) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    char *read = fgets(line, sizeof line, file), *after = read ? strrchr(line, ')') : NULL;
    fclose(file);
    return after && after[2] != 'Z' && after[2] != 'X';
}

static unsigned long long uses(const char *uuid, struct process *listed, unsigned *count, unsigned room) {
    unsigned long long sum = 0;
    char how[16] = "";
    FILE *file = fopen(beside("linger"), "r");
    if (file) {
        if (fscanf(file, "%15s", how) != 1) strcpy(how, "hidden");
        fclose(file);
    }
    DIR *dir = opendir(beside("alloc"));
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        int pid = atoi(entry->d_name);
        const char *dot = strchr(entry->d_name, '.');
        if (pid <= 0 || !dot || strcmp(dot + 1, uuid)) continue;
        int alive = lives(pid);
        if (!alive && !how[0]) continue;
        char path[4400];
        snprintf(path, sizeof path, "%s/alloc/%s", folder, entry->d_name);
        unsigned long long size = 0;
        if ((file = fopen(path, "r"))) {
            if (fscanf(file, "%llu", &size) != 1) size = 0;
            fclose(file);
        }
        sum += size;
        if (!alive && strcmp(how, "listed")) continue;
        if (count) {
            if (listed && *count < room) listed[*count] = (struct process){(unsigned)pid, there("sizeless") ? ~0ULL : size, ~0U, ~0U};
            ++*count;
        }
    }
    if (dir) closedir(dir);
    return sum;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "an error of the fake"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    struct gpu all[64];
    while (there("hang")) usleep(10000);
    if (there("broken")) return DRIVER_MISMATCH;
    *count = (unsigned)read_gpus(all);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    struct gpu all[64];
    if ((int)index >= read_gpus(all)) return INVALID_ARGUMENT;
    if (all[index].lost) return LOST;
    *handle = (void *)(long)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned size) {
    struct gpu g;
    int part, status = gpu_of(handle, &g, &part);
    if (!status) snprintf(uuid, size, "%s", g.uuid);
    return status;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned size) {
    struct gpu g;
    int part, status = gpu_of(handle, &g, &part);
    if (!status) snprintf(name, size, "%s", g.name);
    return status;
}

int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    struct gpu g;
    int part, status = gpu_of(handle, &g, &part);
    if (status) return status;
    unsigned long long used = g.base + uses(g.uuid, NULL, NULL, 0);
    memory[0] = g.total;
    memory[1] = used < g.total ? g.total - used : 0;
    memory[2] = used;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *listed) {
    struct gpu g;
    int part, status = gpu_of(handle, &g, &part);
    unsigned room = *count, found = 0;
    if (status) return status;
    if (there("silent")) return NOT_SUPPORTED;
    uses(g.uuid, listed, &found, room);
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, struct process *listed) {
    (void)handle, (void)listed;
    if (there("silent")) return NOT_SUPPORTED;
    *count = 0;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
    struct gpu g;
    int part, status = gpu_of(handle, &g, &part);
    (void)sensor;
    if (!status) *celsius = (unsigned)g.celsius;
    return status;
}

int nvmlDeviceGetTotalEccErrors(void *handle, int type, int counter, unsigned long long *errors) {
    struct gpu g;
    int part, status = gpu_of(handle, &g, &part);
    (void)type, (void)counter;
    if (status) return status;
    if (g.ecc < 0) return NOT_SUPPORTED;
    *errors = (unsigned long long)g.ecc;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *reasons) {
    struct gpu g;
    int part, status = gpu_of(handle, &g, &part);
    if (!status) *reasons = (unsigned long long)g.clocks;
    return status;
}

int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failure) {
    struct gpu g;
    int part, status = gpu_of(handle, &g, &part);
    if (status) return status;
    *corrected = *uncorrected = 0;
    *pending = (unsigned)g.pending;
    *failure = (unsigned)g.failure;
    return SUCCESS;
}

int nvmlDeviceGetComputeMode(void *handle, int *mode) {
    FILE *file = fopen(beside("mode"), "r");
    (void)handle;
    if (!file) return NOT_SUPPORTED;
    int read = fscanf(file, "%d", mode);
    fclose(file);
    return read == 1 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    struct gpu g;
    int part, status = gpu_of(handle, &g, &part);
    if (status) return status;
    if (g.mig < 0) return NOT_SUPPORTED;
    *current = *pending = g.mig > 0;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) { (void)handle; *count = 7; return SUCCESS; }

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **found) {
    struct gpu g;
    int part, status = gpu_of(handle, &g, &part);
    if (status) return status;
    if ((int)index >= g.mig) return NOT_FOUND;
    *found = (void *)(((long)(index + 1) << 8) | (long)handle);
    return SUCCESS;
}

int nvmlEventSetCreate(void **set) { *set = (void *)1; return SUCCESS; }
int nvmlDeviceRegisterEvents(void *handle, unsigned long long types, void *set) { (void)handle, (void)types, (void)set; return SUCCESS; }

struct event { void *device; unsigned long long type, data; unsigned gi, ci; };

int nvmlEventSetWait_v2(void *set, struct event *event, unsigned timeout_ms) {
    static long told;
    struct gpu all[64];
    char uuid[96];
    unsigned long long xid;
    int count = read_gpus(all), status = TIMEOUT;
    FILE *file = fopen(beside("xids"), "r");
    (void)set, (void)timeout_ms;
    if (!file) return TIMEOUT;
    fseek(file, told, SEEK_SET);
    if (fscanf(file, "%95s %llu ", uuid, &xid) == 2) {
        told = ftell(file);
        for (int index = 0; index < count; index++)
            if (!strcmp(all[index].uuid, uuid)) {
                *event = (struct event){(void *)(long)(index + 1), 8, xid, ~0U, ~0U};
                status = SUCCESS;
            }
    }
    fclose(file);
    return status;
}
