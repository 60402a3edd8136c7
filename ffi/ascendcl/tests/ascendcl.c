/* A stand-in for AscendCL with two devices, for the tests of probe(). Switches are macros: see probe.rs. */
#include <stddef.h>
#include <stdint.h>

#ifndef INIT
#define INIT 0
#endif
#ifndef COUNT
#define COUNT 0
#endif
#ifndef SOC
#define SOC "Ascend910B3"
#endif

static int initialised = 0;
static const char *message = NULL;

int aclInit(const char *json) {
    if (json != NULL) return 100000;
    if (initialised) return 100002;
    initialised = INIT == 0;
    message = INIT == 0 ? NULL : "E10000: the driver is not installed\n";
    return INIT;
}

int aclFinalize(void) {
    if (!initialised) return 100001;
    initialised = 0;
    return 0;
}

const char *aclGetRecentErrMsg(void) {
    const char *last = message;
    message = NULL;
    return last;
}

int aclrtGetVersion(int32_t *major, int32_t *minor, int32_t *patch) {
    *major = 1, *minor = 14, *patch = 0;
    return 0;
}

#ifndef WITHOUT_COUNT
int aclrtGetDeviceCount(uint32_t *count) {
    if (!initialised) return 100001;
    *count = 2;
    return COUNT;
}
#endif

const char *aclrtGetSocName(void) { return SOC; }
