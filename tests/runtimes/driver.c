/* The calls of the NVIDIA driver that edgemm makes, on the host's memory: one "GPU", one stream.
   With -DREAL_HEADER it is compiled against the toolkit's own cuda.h, which holds every signature below. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#ifdef REAL_HEADER
#include <cuda.h>
#else
typedef int CUresult, CUdevice, CUdevice_attribute, CUstreamCaptureMode;
typedef unsigned long long CUdeviceptr, cuuint64_t;
typedef void *CUcontext, *CUstream, *CUgraph, *CUgraphExec;
#endif

#ifndef START
#define START 0
#endif
enum { OUT_OF_MEMORY = 2, BAD_VALUE = 1, NO_CONTEXT = 201, UNREADY = 600 };
enum { MOST = 1 << 20, STEPS = 8 };

struct copy { void *to; const void *from; size_t size; };
struct graph { struct copy steps[STEPS]; int n; };
static _Thread_local CUcontext current;
static struct graph *recording;
static int context, stream, busy;

#define NEEDS_CONTEXT if (current != (CUcontext)&context) return (CUresult)NO_CONTEXT

static CUresult copied(void *to, const void *from, size_t size, CUstream on) {
    NEEDS_CONTEXT;
    if (on != (CUstream)&stream) return (CUresult)BAD_VALUE;
    if (recording) recording->steps[recording->n++] = (struct copy){to, from, size};
    else memcpy(to, from, size), busy = 2;
    return (CUresult)0;
}

CUresult cuInit(unsigned flags) { return (CUresult)(flags ? BAD_VALUE : START); }
CUresult cuDriverGetVersion(int *version) { *version = 12080; return (CUresult)0; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return (CUresult)0; }
CUresult cuDeviceGet(CUdevice *device, int index) { *device = index + 40; return (CUresult)0; }
CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    strncpy(name, device == 40 ? "Host GPU" : "?", (size_t)size);
    return (CUresult)0;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
    *value = which == 75 ? 8 : which == 76 ? 9 : -1;
    return (CUresult)(device == 40 ? 0 : BAD_VALUE);
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *made, CUdevice device) {
    *made = (CUcontext)&context;
    return (CUresult)(device == 40 ? 0 : BAD_VALUE);
}
CUresult cuCtxSetCurrent(CUcontext made) { current = made; return (CUresult)0; }
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
    NEEDS_CONTEXT;
    if (size > MOST) return (CUresult)OUT_OF_MEMORY;
    *address = (CUdeviceptr)malloc(size);
    return (CUresult)0;
}
CUresult cuMemFree_v2(CUdeviceptr address) { NEEDS_CONTEXT; free((void *)address); return (CUresult)0; }
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream on) {
    return copied((void *)to, from, size, on);
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream on) {
    return copied(to, (void *)from, size, on);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream on) {
    return copied((void *)to, (void *)from, size, on);
}
CUresult cuStreamCreate(CUstream *made, unsigned flags) {
    NEEDS_CONTEXT;
    *made = (CUstream)&stream;
    return (CUresult)(flags == 1 ? 0 : BAD_VALUE);
}
CUresult cuStreamDestroy_v2(CUstream on) { return (CUresult)(on == (CUstream)&stream ? 0 : BAD_VALUE); }
CUresult cuStreamQuery(CUstream on) {
    if (on != (CUstream)&stream) return (CUresult)BAD_VALUE;
    return (CUresult)(busy-- > 0 ? UNREADY : 0);
}
CUresult cuStreamSynchronize(CUstream on) { busy = 0; return (CUresult)(on == (CUstream)&stream ? 0 : BAD_VALUE); }
CUresult cuStreamBeginCapture_v2(CUstream on, CUstreamCaptureMode mode) {
    recording = calloc(1, sizeof *recording);
    return (CUresult)(on == (CUstream)&stream && mode == 1 ? 0 : BAD_VALUE);
}
CUresult cuStreamEndCapture(CUstream on, CUgraph *made) {
    *made = (CUgraph)recording;
    recording = NULL;
    return (CUresult)(on == (CUstream)&stream ? 0 : BAD_VALUE);
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *made, CUgraph graph, unsigned long long flags) {
    struct graph *copy = malloc(sizeof *copy);
    memcpy(copy, graph, sizeof *copy);
    *made = (CUgraphExec)copy;
    return (CUresult)(flags ? BAD_VALUE : 0);
}
CUresult cuGraphLaunch(CUgraphExec graph, CUstream on) {
    struct graph *steps = (struct graph *)graph;
    CUresult code = (CUresult)0;
    for (int i = 0; i < steps->n && !code; i++)
        code = copied(steps->steps[i].to, steps->steps[i].from, steps->steps[i].size, on);
    return code;
}
CUresult cuGraphDestroy(CUgraph graph) { free(graph); return (CUresult)0; }
CUresult cuGraphExecDestroy(CUgraphExec graph) { free(graph); return (CUresult)0; }
CUresult cuGetErrorName(CUresult code, const char **word) {
    *word = code == (CUresult)OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : NULL;
    return (CUresult)0;
}
