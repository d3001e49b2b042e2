/* Runs kernels one after the other in one team of threads: those of a recorded step without anything in between, so that the
   threads stay awake. See native.h for what a kernel is. */
#include <stdint.h>

struct entry {
    void (*run)(const void *call);
    const void *call;
};

void replay(const struct entry *entries, int64_t count, int64_t parallel) {
#pragma omp parallel if (parallel)
    for (int64_t i = 0; i < count; i++) entries[i].run(entries[i].call);
}
