/* The floor under every figure: the kernel's breakpoint with the smallest handler there can be, and the
 * loop that makes the hits. Built by benchmarks/floors.py. */
#define _GNU_SOURCE
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t hits;
static int event = -1;

/* sigaction(2) itself: hwwatch sees to it that handlers set through libc come behind its own. */
struct kernel_action {
    void (*handler)(int, siginfo_t *, void *);
    unsigned long flags;
    void (*restorer)(void);
    uint64_t mask;
};
#define RESTORER 0x04000000ul

void floor_return(void);
__asm__(".globl floor_return\nfloor_return: mov $15, %eax\n syscall\n"); /* rt_sigreturn */

static struct kernel_action before, inner;

static int set_action(const struct kernel_action *new, struct kernel_action *old)
{
    return (int)syscall(SYS_rt_sigaction, SIGTRAP, new, old, sizeof(uint64_t));
}

static void count(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info, (void)context;
    hits++;
}

static const struct kernel_action counting = {count, SA_SIGINFO | SA_NODEFER | RESTORER, floor_return, 0};

/* mode: 'w' writes, 'b' reads and writes, 'x' execution; signal: 0 the kernel only counts */
int floor_open(void *address, int nbytes, int mode, int signal)
{
    if (set_action(&counting, &before) < 0)
        return -1;
    struct perf_event_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.size = sizeof attr;
    attr.type = PERF_TYPE_BREAKPOINT;
    attr.bp_type = mode == 'x' ? HW_BREAKPOINT_X : mode == 'b' ? HW_BREAKPOINT_RW : HW_BREAKPOINT_W;
    attr.bp_addr = (uintptr_t)address;
    attr.bp_len = mode == 'x' ? sizeof(long) : (uint64_t)nbytes;
    attr.exclude_kernel = attr.exclude_hv = 1;
    if (signal) {
        attr.sample_period = 1;
        attr.sigtrap = attr.remove_on_exec = 1;
    }
    event = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    return event < 0 ? -1 : 0;
}

uint64_t floor_close(void)
{
    uint64_t seen = hits;
    ioctl(event, PERF_EVENT_IOC_DISABLE, 0);
    close(event);
    set_action(&before, NULL);
    hits = 0;
    return seen;
}

static uint64_t cookie;

/* An int3 made to look like the trap of a breakpoint, for the handler that was there. */
static void dress(int number, siginfo_t *info, void *context)
{
    info->si_code = 6;                                  /* TRAP_PERF */
    memcpy((char *)info + 24, &cookie, sizeof cookie);  /* si_perf_data */
    memset((char *)info + 32, 0, 2 * sizeof(uint32_t)); /* si_perf_type, si_perf_flags */
    inner.handler(number, info, context);
}

/* From here on int3 enters the present handler of SIGTRAP as a breakpoint would that has this sig_data. */
int floor_dress(uint64_t sig_data)
{
    if (set_action(NULL, &inner) < 0)
        return -1;
    struct kernel_action action = inner;
    action.handler = dress;
    cookie = sig_data;
    return set_action(&action, NULL);
}

int floor_undress(void)
{
    return set_action(&inner, NULL);
}

/* The counting handler, with no breakpoint. */
int floor_bare(void)
{
    return set_action(&counting, &before);
}

uint64_t floor_bare_close(void)
{
    uint64_t seen = hits;
    set_action(&before, NULL);
    hits = 0;
    return seen;
}

#define MOST 256
static int events[MOST];
static int count_events;

static void describe(struct perf_event_attr *attr, void *address, int readwrite)
{
    memset(attr, 0, sizeof *attr);
    attr->size = sizeof *attr;
    attr->type = PERF_TYPE_BREAKPOINT;
    attr->bp_type = readwrite ? HW_BREAKPOINT_RW : HW_BREAKPOINT_W;
    attr->bp_addr = (uintptr_t)address;
    attr->bp_len = 8;
    attr->exclude_kernel = attr->exclude_hv = 1;
    attr->sample_period = 1;
    attr->sigtrap = attr->remove_on_exec = attr->inherit = 1;
}

/* The system calls alone, with all that is known beforehand: an event on each of these threads. */
int floor_arm(void *address, const int *threads, int count)
{
    struct perf_event_attr attr;
    describe(&attr, address, 0);
    for (count_events = 0; count_events < count && count_events < MOST; count_events++) {
        int fd =
            (int)syscall(SYS_perf_event_open, &attr, threads[count_events], -1, -1, PERF_FLAG_FD_CLOEXEC);
        if (fd < 0)
            return -1;
        events[count_events] = fd;
    }
    return 0;
}

int floor_switch(void *address, int readwrite)
{
    struct perf_event_attr attr;
    describe(&attr, address, readwrite);
    for (int i = 0; i < count_events; i++)
        if (ioctl(events[i], PERF_EVENT_IOC_MODIFY_ATTRIBUTES, &attr) < 0)
            return -1;
    return 0;
}

void floor_disarm(void)
{
    for (int i = 0; i < count_events; i++) {
        ioctl(events[i], PERF_EVENT_IOC_DISABLE, 0);
        close(events[i]);
    }
    count_events = 0;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

/* ns a store */
double floor_store(volatile uint64_t *address, long count)
{
    double start = now();
    for (long i = 0; i < count; i++)
        *address = (uint64_t)i;
    return (now() - start) / (double)count;
}

void floor_set(volatile uint64_t *address, uint64_t value)
{
    *address = value;
}

/* ns a store with an int3 behind it */
double floor_int3(volatile uint64_t *address, long count)
{
    double start = now();
    for (long i = 0; i < count; i++) {
        *address = (uint64_t)i;
        __asm__ volatile("int3" ::: "memory");
    }
    return (now() - start) / (double)count;
}

/* ns a load */
double floor_load(volatile uint64_t *address, long count)
{
    double start = now();
    for (long i = 0; i < count; i++)
        (void)*address;
    return (now() - start) / (double)count;
}

/* A function whose first instruction may be left out, and one to go to in its stead. */
__asm__(".globl floor_function\n.type floor_function, @function\n"
        "floor_function: nopl 0(%rax)\n ret\n.size floor_function, .-floor_function\n"
        ".globl floor_landing\n.type floor_landing, @function\n"
        "floor_landing: ret\n.size floor_landing, .-floor_landing\n");
void floor_function(void);

/* ns a call */
double floor_call(volatile uint64_t *unused, long count)
{
    (void)unused;
    void (*volatile call)(void) = floor_function;
    double start = now();
    for (long i = 0; i < count; i++)
        call();
    return (now() - start) / (double)count;
}

/* The smallest native policy: an int f(hwwatch_hit *, ucontext_t *) that goes on. */
int floor_policy(void *hit, void *context)
{
    (void)hit, (void)context;
    return 0;
}
