/* What the tracer's helper does with each thread: sets its debug registers, and lets it go on.
 *
 * It shares our memory and has no thread-local data: no C library in here, only hww_raw (tracer.c, 1). */
#define _GNU_SOURCE
#include <linux/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

#include "helper.h"

#define ENABLED(i) (3ull << 2 * (i))
#define FIELDS(i) (0xfull << (16 + 4 * (i)))

static unsigned char names[4096];          /* of a directory */
static uint64_t seen[HWW_MAX_TRACED / 64]; /* table entries met in this errand */

/* ---- /proc ---- */

/* The helper has a copy of the program's descriptors, and needs none of them: where all are taken, the lowest
 * ones make room. */
static int spare;

static char *put(char *at, const char *text)
{
    while (*text)
        *at++ = *text++;
    *at = 0;
    return at;
}

static char *put_number(char *at, uint32_t number)
{
    char digits[12];
    int n = 0;
    do
        digits[n++] = (char)('0' + number % 10);
    while (number /= 10);
    while (n)
        *at++ = digits[--n];
    *at = 0;
    return at;
}

/* /proc/<pid>/task/<tid>/<file>; without a file, the directory of all threads. */
int hww_task_open(int32_t tid, const char *file)
{
    char path[64], *at = put_number(put(path, "/proc/"), (uint32_t)hww_work.pid);
    at = put(at, "/task");
    if (file)
        put(put(put_number(put(at, "/"), (uint32_t)tid), "/"), file);
    long fd;
    do
        fd = HWW_RAW(SYS_openat, -100 /* AT_FDCWD */, path, file ? 0 : 0200000 /* O_DIRECTORY */);
    while (fd == -EMFILE && spare < 64 && HWW_RAW(SYS_close, spare++) != -EIO);
    return (int)fd;
}

/* The beginning of such a file, as text; its length, or -errno. */
long hww_task_read(int32_t tid, const char *file, char *text, long size)
{
    long fd = hww_task_open(tid, file);
    if (fd < 0)
        return fd;
    long got = HWW_RAW(SYS_read, fd, text, size - 1);
    HWW_RAW(SYS_close, fd);
    text[got > 0 ? got : 0] = 0;
    return got;
}

/* A thread that ends refuses to be traced like a forbidden one. */
int hww_task_ended(int32_t tid)
{
    char text[256];
    long got = hww_task_read(tid, "stat", text, sizeof text), at = got - 1;
    while (at > 0 && text[at] != ')')
        at--;
    return got <= 0 || at + 2 >= got || text[at + 2] == 'Z' || text[at + 2] == 'X';
}

/* Calls each(tid) for the threads of a listing; the sum of what it returns, or -errno. */
int hww_tasks_each(int (*each)(int32_t tid))
{
    int sum = 0, fd = hww_task_open(0, NULL);
    long got;
    if (fd < 0)
        return fd;
    while ((got = HWW_RAW(SYS_getdents64, fd, names, sizeof names)) > 0) {
        for (long at = 0; at < got;) {
            unsigned char *entry = names + at; /* d_ino, d_off, d_reclen, d_type, d_name */
            int32_t tid = 0;
            for (unsigned char *digit = entry + 19; *digit >= '0' && *digit <= '9'; digit++)
                tid = tid * 10 + (*digit - '0');
            sum += tid ? each(tid) : 0;
            at += *(uint16_t *)(entry + 16);
        }
    }
    HWW_RAW(SYS_close, fd);
    return sum;
}

/* ---- one thread ---- */

static long peek_register(int32_t tid, int number, uint64_t *value)
{
    return HWW_RAW(SYS_ptrace, PTRACE_PEEKUSR, tid, offsetof(struct user, u_debugreg) + 8 * (size_t)number,
                   value);
}

static long poke_register(int32_t tid, int number, uint64_t value)
{
    return HWW_RAW(SYS_ptrace, PTRACE_POKEUSR, tid, offsetof(struct user, u_debugreg) + 8 * (size_t)number,
                   value);
}

/* Registers that somebody else has enabled stay as they are. DR7 is cleared first: the kernel checks a new
 * address against the length that is in force (hw_breakpoint_arch_parse), and DR7 of 0 means one byte. */
static long set_registers(int32_t tid, const struct hww_errand *errand, const struct hww_debug *want)
{
    uint64_t before, control = want->control, kept = 0;
    long error = peek_register(tid, 7, &before);
    for (int i = 0; i < HWW_MAX_PIECES && !error; i++) {
        if (!(before & ENABLED(i)) || errand->ours >> i & 1)
            continue;
        if (control & ENABLED(i))
            return -EBUSY;
        kept |= before & (ENABLED(i) | FIELDS(i));
    }
    if (!error && before != kept)
        error = poke_register(tid, 7, kept);
    for (int i = 0; i < HWW_MAX_PIECES && !error; i++) {
        uint64_t there;
        if (kept & ENABLED(i))
            continue;
        error = peek_register(tid, i, &there);
        if (!error && there != want->address[i])
            error = poke_register(tid, i, want->address[i]);
    }
    if (!error && (control | kept) != kept)
        error = poke_register(tid, 7, control | kept);
    return error;
}

/* Whether a thread holds what it was given; a debugger may have put something else there. */
static int holds(int32_t tid, uint64_t control, const struct hww_debug *given)
{
    for (int i = 0; i < HWW_MAX_PIECES; i++) {
        uint64_t there = 0, bits = ENABLED(i) | FIELDS(i);
        if (!(given->control & ENABLED(i)))
            continue;
        if ((control & bits) != (given->control & bits) || peek_register(tid, i, &there) ||
            there != given->address[i])
            return 0;
    }
    return 1;
}

/* Whether a hit has been signalled that the thread has not handled. */
static int trap_pending(int32_t tid)
{
    static siginfo_t found[8];
    struct ptrace_peeksiginfo_args which = {0, 0, 8};
    long count = HWW_RAW(SYS_ptrace, PTRACE_PEEKSIGINFO, tid, &which, found);
    for (long i = 0; i < count; i++)
        if (found[i].si_signo == SIGTRAP)
            return 1;
    return 0;
}

/* Some system calls end with EINTR when their thread is stopped, though no handler runs (signal(7)): such a
 * one that waits without end, or has begun a moment ago, is begun again. Not where a signal is pending, whose
 * handler may want the EINTR. */
void hww_restart_call(int32_t tid, int begun_now)
{
    static siginfo_t found;
    struct user_regs_struct registers;
    for (uint32_t shared = 0; shared < 2; shared++) {
        struct ptrace_peeksiginfo_args which = {0, shared ? PTRACE_PEEKSIGINFO_SHARED : 0, 1};
        if (HWW_RAW(SYS_ptrace, PTRACE_PEEKSIGINFO, tid, &which, &found) != 0)
            return;
    }
    if (HWW_RAW(SYS_ptrace, PTRACE_GETREGS, tid, 0, &registers) || (long)registers.rax != -EINTR)
        return;
    int again = 0;
    switch ((long)registers.orig_rax) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
        again = begun_now || (int)registers.r10 == -1;
        break;
    case 441: /* epoll_pwait2 */
    case SYS_semtimedop:
        again = begun_now || registers.r10 == 0;
        break;
    case SYS_semop:
        again = 1;
        break;
    case SYS_rt_sigtimedwait:
        again = begun_now || registers.rdx == 0;
        break;
    case SYS_io_getevents:
        again = begun_now || registers.r8 == 0;
        break;
    }
    if (!again)
        return;
    registers.rax = registers.orig_rax;
    registers.rip -= 2; /* syscall: 0f 05 */
    HWW_RAW(SYS_ptrace, PTRACE_SETREGS, tid, 0, &registers);
}

static void visit_stopped(struct hww_traced *thread, int status)
{
    struct hww_errand *errand = hww_work.errand;
    static const struct hww_debug none;
    uint64_t blocked = 0, control = 0;
    int event = status >> 16, signal = event ? 0 : status >> 8 & 0xff;
    HWW_RAW(SYS_ptrace, PTRACE_GETSIGMASK, thread->tid, 8, &blocked);
    int deaf = blocked >> (SIGTRAP - 1) & 1;
    peek_register(thread->tid, 7, &control);
    errand->found |= control;
    if (errand->set) {
        uint32_t counter = (uint32_t)thread->tid % HWW_TRAP_COUNTERS;
        errand->taken += thread->state == HWW_THREAD_ARMED && !holds(thread->tid, control, &errand->before);
        long error = set_registers(thread->tid, errand, deaf ? &none : &errand->want);
        thread->seen = HWW_LOAD(&hww_traps_done[counter]);
        thread->in_flight = signal == SIGTRAP || trap_pending(thread->tid) ||
                            HWW_LOAD(&hww_traps_begun[counter]) != thread->seen;
        if (error && error != -ESRCH && !errand->error) {
            errand->error = (int32_t)error;
            errand->error_tid = thread->tid;
        }
        thread->state = error == -ESRCH ? HWW_THREAD_ENDED
                        : error         ? HWW_THREAD_REFUSED
                        : deaf          ? HWW_THREAD_DEAF
                                        : HWW_THREAD_ARMED;
        thread->errand = hww_work.number;
        errand->armed += thread->state == HWW_THREAD_ARMED;
    }
    if (event)
        hww_restart_call(thread->tid, 0);
    HWW_RAW(SYS_ptrace, PTRACE_DETACH, thread->tid, 0, signal);
}

static void visit(struct hww_traced *thread)
{
    int status = 0;
    HWW_STORE(&hww_work.at, thread->tid);
    HWW_ADD(&hww_work.progress, 1);
    long error = HWW_RAW(SYS_ptrace, PTRACE_SEIZE, thread->tid, 0, 0);
    if (error) {
        int gone = error == -ESRCH || hww_task_ended(thread->tid);
        thread->state = gone ? HWW_THREAD_ENDED : HWW_THREAD_REFUSED;
        if (!gone && !hww_work.errand->error) {
            hww_work.errand->error = (int32_t)error;
            hww_work.errand->error_tid = thread->tid;
        }
        return;
    }
    HWW_RAW(SYS_ptrace, PTRACE_INTERRUPT, thread->tid, 0, 0);
    long got = HWW_RAW(SYS_wait4, thread->tid, &status, __WALL, 0);
    if (got == thread->tid && (status & 0xff) == 0x7f)
        visit_stopped(thread, status);
    else
        thread->state = HWW_THREAD_ENDED;
}

/* The table's entry of a thread, made where there is none; NULL: it has been visited, or there is no room. */
static struct hww_traced *to_visit(int32_t tid)
{
    struct hww_traced *entry = hww_traced_find(tid);
    uint32_t index = entry ? (uint32_t)(entry - hww_traced) : hww_traced_count;
    if (index >= HWW_MAX_TRACED) {
        hww_work.errand->error = -E2BIG;
        return NULL;
    }
    if (seen[index / 64] >> index % 64 & 1)
        return NULL;
    seen[index / 64] |= 1ull << index % 64;
    if (entry &&
        (entry->state == HWW_THREAD_STUCK || (hww_work.errand->fresh && entry->state == HWW_THREAD_ARMED)))
        return NULL;
    if (!entry) {
        entry = &hww_traced[index];
        *entry = (struct hww_traced){.tid = tid};
        HWW_STORE(&hww_traced_count, index + 1);
    }
    return entry;
}

static int visit_if_new(int32_t tid)
{
    struct hww_traced *thread = to_visit(tid);
    if (thread)
        visit(thread);
    return thread != NULL;
}

/* For a helper that is about to be born. */
void hww_visits_begin(void)
{
    memset(seen, 0, sizeof seen);
    spare = 0;
}

void hww_visit(int32_t tid)
{
    visit_if_new(tid);
}

/* A listing may leave out a thread that lives (threads.c), and threads are born meanwhile. */
void hww_visit_all(void)
{
    for (int clean = 0, rounds = 0; clean < 2 && rounds < 1000 && !hww_work.errand->error; rounds++) {
        int fresh = hww_tasks_each(visit_if_new);
        if (fresh < 0)
            hww_work.errand->error = fresh;
        clean = fresh ? 0 : clean + 1;
    }
}
