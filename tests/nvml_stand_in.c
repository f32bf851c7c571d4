/* Stands in for NVIDIA's management library, libnvidia-ml.so.1, where there is no GPU.

   The file that NVML_STAND_IN names has a line a GPU: its utilisation in percent (- if the driver
   has none), then for each process its id, the bytes that it holds and the percent of the time that
   the GPU computes for it. It is read anew at every call. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };
enum { MOST = 16 };

typedef struct { unsigned pid; unsigned long long bytes; unsigned share; } Process;
typedef struct { unsigned pid; unsigned long long bytes; unsigned instance, compute; } ProcessInfo;
typedef struct { unsigned pid; unsigned long long moment; unsigned sm, memory, encoder, decoder; } ProcessUse;

static int read_gpu(long index, int *utilisation, Process *processes) {
    FILE *file = fopen(getenv("NVML_STAND_IN"), "r");
    char line[1024] = "", *rest;
    int count = 0;
    for (long i = 0; file && i <= index; i++)
        if (!fgets(line, sizeof line, file)) { fclose(file); return -1; }
    if (!file) return -1;
    fclose(file);
    rest = strtok(line, " \n");
    *utilisation = rest && *rest != '-' ? atoi(rest) : -1;
    while (count < MOST && (rest = strtok(NULL, " \n"))) {
        processes[count].pid = strtoul(rest, NULL, 10);
        processes[count].bytes = strtoull(strtok(NULL, " \n"), NULL, 10);
        processes[count++].share = strtoul(strtok(NULL, " \n"), NULL, 10);
    }
    return count;
}

int nvmlInitWithFlags(unsigned flags) { return getenv("NVML_STAND_IN") ? OK : NOT_SUPPORTED; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    Process processes[MOST];
    int utilisation;
    for (*count = 0; read_gpu(*count, &utilisation, processes) >= 0;) ++*count;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) { *gpu = (void *)(long)(index + 1); return OK; }

int nvmlDeviceGetName(void *gpu, char *name, unsigned length) { snprintf(name, length, "Stand-in %ld", (long)gpu - 1); return OK; }

int nvmlDeviceGetUUID(void *gpu, char *uuid, unsigned length) { snprintf(uuid, length, "GPU-%ld000", (long)gpu - 1); return OK; }

int nvmlDeviceGetUtilizationRates(void *gpu, unsigned *rates) {
    Process processes[MOST];
    int utilisation;
    read_gpu((long)gpu - 1, &utilisation, processes);
    rates[0] = utilisation;
    rates[1] = 0;
    return utilisation < 0 ? NOT_SUPPORTED : OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *gpu, unsigned *count, ProcessInfo *found) {
    Process processes[MOST];
    int utilisation, running = read_gpu((long)gpu - 1, &utilisation, processes);
    if (!running) { *count = 0; return OK; }
    if (!found || (int)*count < running) { *count = running; return TOO_SMALL; }
    for (int i = 0; i < running; i++) found[i] = (ProcessInfo){processes[i].pid, processes[i].bytes, 0, 0};
    *count = running;
    return OK;
}

int nvmlDeviceGetProcessUtilization(void *gpu, ProcessUse *found, unsigned *count, unsigned long long since) {
    Process processes[MOST];
    int utilisation, running = read_gpu((long)gpu - 1, &utilisation, processes), used = 0;
    for (int i = 0; i < running; i++) used += processes[i].share > 0;
    if (!used) { *count = 0; return NOT_FOUND; }
    if (!found) { *count = used; return TOO_SMALL; }
    used = 0;
    for (int i = 0; i < running; i++)
        if (processes[i].share > 0) found[used++] = (ProcessUse){processes[i].pid, since + 1, processes[i].share, 0, 0, 0};
    *count = used;
    return OK;
}
