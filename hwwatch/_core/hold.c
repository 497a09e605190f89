/* Doing something while no other thread of the process runs, without a signal that any of them could notice.
 *
 * The tracer's helper stops the threads that run. Those that sleep are left alone, since being stopped would
 * end some system calls early; whether one of them has run meanwhile is asked of the scheduler afterwards.
 * What must not be done meanwhile is to wait for anything that a thread may hold: no malloc, no lock. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <linux/ptrace.h>
#include <sys/wait.h>
#include <time.h>

#include "helper.h"

/* How long the threads may take to stop, ns. One that has no CPU stops when it gets one. */
#define PATIENCE 50000000
#define ROUNDS 20

enum still { ASLEEP, STOPPED, ENDED, RUNS };

static struct {
    int32_t tid;
    int32_t status; /* of wait4 */
    uint64_t runs;  /* how often it had been given a CPU */
    enum still now;
} threads[HWW_MAX_TRACED];
static uint32_t count;
static uint64_t deadline;

static uint64_t now_ns(void)
{
    struct timespec time = {0, 0};
    HWW_RAW(SYS_clock_gettime, CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* How often a thread has been given a CPU: the third number of /proc/<pid>/task/<tid>/schedstat
 * (Documentation/scheduler/sched-stats.rst). 0: unknown, or it has ended. */
static uint64_t runs(int32_t tid)
{
    char text[96];
    uint64_t number = 0;
    int column = 0;
    if (hww_task_read(tid, "schedstat", text, sizeof text) <= 0)
        return 0;
    for (const char *at = text; *at && *at != '\n'; at++) {
        column += *at == ' ';
        if (column == 2 && *at != ' ')
            number = number * 10 + (uint64_t)(*at - '0');
    }
    return number;
}

/* Whether a thread is off its CPU, waiting in a system call: the kernel makes sure of that before it shows
 * which (task_current_syscall), and says "running" otherwise. */
static int sleeps(int32_t tid)
{
    char text[16];
    return hww_task_read(tid, "syscall", text, sizeof text) > 0 && text[0] >= '0' && text[0] <= '9';
}

static enum still stop(int32_t tid, int32_t *status)
{
    const struct timespec moment = {0, 10000};
    if (HWW_RAW(SYS_ptrace, PTRACE_SEIZE, tid, 0, 0))
        return hww_task_ended(tid) ? ENDED : RUNS;
    HWW_RAW(SYS_ptrace, PTRACE_INTERRUPT, tid, 0, 0);
    for (;;) {
        long got = HWW_RAW(SYS_wait4, tid, status, __WALL | WNOHANG, 0);
        if (got == tid)
            return (*status & 0xff) == 0x7f ? STOPPED : ENDED;
        if (got < 0)
            return ENDED;
        if (now_ns() > deadline)
            return RUNS; /* in a system call, perhaps; it goes on when the helper ends */
        HWW_RAW(SYS_nanosleep, &moment, 0);
    }
}

/* Whether a thread was met that had not been, or has run since. */
static int hold(int32_t tid)
{
    uint32_t i = 0;
    if (tid == hww_work.errand->only)
        return 0;
    while (i < count && threads[i].tid != tid)
        i++;
    if (i == HWW_MAX_TRACED)
        return 0;
    uint64_t ran = runs(tid);
    if (i < count && (threads[i].now != ASLEEP || threads[i].runs == ran))
        return 0;
    threads[i].tid = tid;
    threads[i].runs = ran;
    threads[i].now = ran && sleeps(tid) ? ASLEEP : stop(tid, &threads[i].status);
    count += i == count;
    return 1;
}

static void let_go(int32_t tid, int status)
{
    int event = status >> 16;
    if (event)
        hww_restart_call(tid, 1); /* it ran when it was stopped */
    HWW_RAW(SYS_ptrace, PTRACE_DETACH, tid, 0, event ? 0 : status >> 8 & 0xff);
}

/* What the helper runs. */
void hww_hold_all(void)
{
    int fresh = 1;
    count = 0;
    deadline = now_ns() + PATIENCE;
    for (int rounds = 0; fresh && rounds < ROUNDS && now_ns() < deadline; rounds++)
        fresh = hww_tasks_each(hold);
    HWW_STORE(&hww_work.held, 1);
    HWW_RAW(SYS_futex, &hww_work.held, FUTEX_WAKE, 1, 0, 0, 0);
    while (!HWW_LOAD(&hww_work.release))
        HWW_RAW(SYS_futex, &hww_work.release, FUTEX_WAIT, 0, 0, 0, 0);
    int still = !fresh && count < HWW_MAX_TRACED;
    for (uint32_t i = 0; i < count; i++)
        still &= threads[i].now == ASLEEP ? runs(threads[i].tid) == threads[i].runs : threads[i].now != RUNS;
    for (uint32_t i = 0; i < count; i++)
        if (threads[i].now == STOPPED)
            let_go(threads[i].tid, threads[i].status);
    HWW_STORE(&hww_work.errand->still, (uint32_t)still);
}

/* Calls act(argument); whether no other thread of this process has run meanwhile. Where they cannot be held
 * (no right to trace, somebody traces them, no helper), it is called all the same. */
int hww_while_held(void (*act)(void *), void *argument)
{
    struct hww_errand errand = {.only = (int32_t)HWW_RAW(SYS_gettid), .meanwhile = act, .argument = argument};
    hww_tracer_lock();
    int error = hww_tracer_send(&errand);
    hww_tracer_unlock();
    if (!errand.done)
        act(argument);
    return !error && errand.done && errand.still;
}
