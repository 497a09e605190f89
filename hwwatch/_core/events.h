/* Kernel breakpoints behind a watch: shared by slots.c, modify.c and canary.c. */
#ifndef HWW_EVENTS_H
#define HWW_EVENTS_H

#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

/* One thread's events. */
struct hww_event {
    pid_t tid;
    uint32_t doubtful; /* bit p: the thread may have inherited piece p as well */
    int fd[HWW_MAX_PIECES];
};

/* Events of one watch. The handler may read a list while it grows: arrays are replaced, and an outgrown
 * one is kept (together they are smaller than the last). */
struct hww_event_list {
    struct hww_event *events;
    uint32_t count, capacity;
};
extern struct hww_event_list hww_events[HWW_MAX_WATCHES];

struct hww_watch *hww_watch_at(int watch);
void hww_event_describe(struct perf_event_attr *attr, uint32_t mode, uint64_t address, uint32_t nbytes,
                        uint64_t cookie, const struct hww_arm_options *options, int disabled);
int hww_event_open(uint32_t mode, uint64_t address, uint32_t nbytes, pid_t tid, uint64_t cookie,
                   const struct hww_arm_options *options, int disabled);
void hww_event_close(int *place);
uint64_t hww_event_count(int fd);
int hww_threads_list(pid_t **tids);

#endif
