/* The helper that sets debug registers: no thread can set its own, a tracer can set those of others.
 *
 * For each errand a child is born, does it, and is gone: it seizes each thread, stops it for a moment, writes
 * DR0 to DR3 and DR7 and lets go; the registers stay. So there is no process to be found, traced or killed in
 * between, and none that outlives its parent.
 *   1. It shares our memory (CLONE_VM): nothing is copied, and it can be made in a signal handler. It has no
 *      thread-local data of its own: no C library in it, only hww_raw.
 *   2. It blocks all signals and is in a session of its own: neither Ctrl-C nor a stop reaches it.
 *   3. It raises no SIGCHLD (exit signal 0), and wait() does not see it (__WCLONE).
 *   4. When it is killed, the kernel lets its tracees go on (exit_ptrace), and clears and wakes the word that
 *      its parent waits at (CLONE_CHILD_CLEARTID). When its parent thread dies, it dies (PR_SET_PDEATHSIG).
 *   5. Under Yama it may trace us only while its parent says so (PR_SET_PTRACER), which ends with the errand.
 *   6. A thread that blocks SIGTRAP is left without registers: a hit would kill the process (force_sig). */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <linux/ptrace.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>

#include "raw.h"
#include "tracer.h"

#ifndef PR_SET_PTRACER
#define PR_SET_PTRACER 0x59616d61
#endif

struct hww_traced hww_traced[HWW_MAX_TRACED];
uint32_t hww_traced_count;
uint16_t hww_traps_begun[HWW_TRAP_COUNTERS], hww_traps_done[HWW_TRAP_COUNTERS];

/* How long one thread is waited for: it may be in a system call that cannot be interrupted. In several steps,
 * since the whole machine may have stood still during one. */
#define PATIENCE 400000000 /* ns */
#define STEPS 3
/* A helper that was killed is replaced so often. */
#define HELPERS 50
#define ENABLED(i) (3ull << 2 * (i))
#define FIELDS(i) (0xfull << (16 + 4 * (i)))

static struct {
    int32_t owner;    /* thread id; 0: free */
    int32_t alive;    /* the helper's thread id; the kernel clears it */
    int32_t go;       /* the helper may begin */
    int32_t at;       /* the thread it is at */
    int32_t finished; /* it came to its end */
    uint32_t progress;
    struct hww_errand *errand;
    uint64_t number; /* of the errand */
    int32_t pid;
    unsigned char names[4096];          /* of a directory */
    uint64_t seen[HWW_MAX_TRACED / 64]; /* table entries met in this errand */
} work;
static unsigned char stack[32768] __attribute__((aligned(16)));

static int32_t own_tid(void)
{
    return (int32_t)HWW_RAW(SYS_gettid);
}

/* ---- the lock: not a mutex, since a handler takes it, too ---- */

void hww_tracer_lock(void)
{
    const struct timespec moment = {0, 50000};
    int32_t self = own_tid();
    for (int32_t nobody = 0;
         !__atomic_compare_exchange_n(&work.owner, &nobody, self, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
         nobody = 0)
        HWW_RAW(SYS_nanosleep, &moment, 0);
}

int hww_tracer_locked_here(void)
{
    return HWW_LOAD(&work.owner) == own_tid();
}

void hww_tracer_unlock(void)
{
    HWW_STORE(&work.owner, 0);
}

/* In a forked child. */
void hww_tracer_reset(void)
{
    work.owner = work.alive = 0;
    hww_traced_count = 0;
    memset(hww_traps_begun, 0, sizeof hww_traps_begun);
    memset(hww_traps_done, 0, sizeof hww_traps_done);
}

struct hww_traced *hww_traced_find(int32_t tid)
{
    for (uint32_t i = 0; i < hww_traced_count; i++)
        if (hww_traced[i].tid == tid)
            return &hww_traced[i];
    return NULL;
}

/* ---- what the helper runs ---- */

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

static char *put_task(char *at, int32_t tid)
{
    at = put_number(put(at, "/proc/"), (uint32_t)work.pid);
    at = put(at, "/task");
    return tid ? put_number(put(at, "/"), (uint32_t)tid) : at;
}

/* A thread that ends refuses to be traced like a forbidden one. */
static int ended(int32_t tid)
{
    char path[64], text[256];
    put(put_task(path, tid), "/stat");
    long fd = HWW_RAW(SYS_openat, -100, path, 0);
    if (fd < 0)
        return 1;
    long got = HWW_RAW(SYS_read, fd, text, sizeof text - 1), at = got - 1;
    HWW_RAW(SYS_close, fd);
    while (at > 0 && text[at] != ')')
        at--;
    return got <= 0 || at + 2 >= got || text[at + 2] == 'Z' || text[at + 2] == 'X';
}

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
 * one that waits without end is begun again. Not where a signal is pending, whose handler may want the EINTR.
 */
static void restart_call(int32_t tid)
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
    int endless = 0;
    switch ((long)registers.orig_rax) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
        endless = (int)registers.r10 == -1;
        break;
    case 441: /* epoll_pwait2 */
    case SYS_semtimedop:
        endless = registers.r10 == 0;
        break;
    case SYS_semop:
        endless = 1;
        break;
    case SYS_rt_sigtimedwait:
        endless = registers.rdx == 0;
        break;
    case SYS_io_getevents:
        endless = registers.r8 == 0;
        break;
    }
    if (!endless)
        return;
    registers.rax = registers.orig_rax;
    registers.rip -= 2; /* syscall: 0f 05 */
    HWW_RAW(SYS_ptrace, PTRACE_SETREGS, tid, 0, &registers);
}

static void visit_stopped(struct hww_traced *thread, int status)
{
    struct hww_errand *errand = work.errand;
    static const struct hww_debug none;
    uint64_t blocked = 0, control = 0;
    int event = status >> 16, signal = event ? 0 : status >> 8 & 0xff;
    HWW_RAW(SYS_ptrace, PTRACE_GETSIGMASK, thread->tid, 8, &blocked);
    int deaf = blocked >> (SIGTRAP - 1) & 1;
    peek_register(thread->tid, 7, &control);
    errand->found |= control;
    if (errand->set) {
        uint32_t counter = (uint32_t)thread->tid % HWW_TRAP_COUNTERS;
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
        thread->errand = work.number;
        errand->armed += thread->state == HWW_THREAD_ARMED;
    }
    if (event)
        restart_call(thread->tid);
    HWW_RAW(SYS_ptrace, PTRACE_DETACH, thread->tid, 0, signal);
}

static void visit(struct hww_traced *thread)
{
    int status = 0;
    HWW_STORE(&work.at, thread->tid);
    HWW_ADD(&work.progress, 1);
    long error = HWW_RAW(SYS_ptrace, PTRACE_SEIZE, thread->tid, 0, 0);
    if (error) {
        int gone = error == -ESRCH || ended(thread->tid);
        thread->state = gone ? HWW_THREAD_ENDED : HWW_THREAD_REFUSED;
        if (!gone && !work.errand->error) {
            work.errand->error = (int32_t)error;
            work.errand->error_tid = thread->tid;
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
        work.errand->error = -E2BIG;
        return NULL;
    }
    if (work.seen[index / 64] >> index % 64 & 1)
        return NULL;
    work.seen[index / 64] |= 1ull << index % 64;
    if (entry &&
        (entry->state == HWW_THREAD_STUCK || (work.errand->fresh && entry->state == HWW_THREAD_ARMED)))
        return NULL;
    if (!entry) {
        entry = &hww_traced[index];
        *entry = (struct hww_traced){.tid = tid};
        HWW_STORE(&hww_traced_count, index + 1);
    }
    return entry;
}

/* Visit the threads of a listing; how many had not been visited before. */
static int visit_listed(void)
{
    char path[64];
    int fresh = 0;
    put_task(path, 0);
    long fd = HWW_RAW(SYS_openat, -100, path, 0200000 /* O_DIRECTORY */), got;
    if (fd < 0) {
        work.errand->error = (int32_t)fd;
        return 0;
    }
    while ((got = HWW_RAW(SYS_getdents64, fd, work.names, sizeof work.names)) > 0) {
        for (long at = 0; at < got;) {
            unsigned char *entry = work.names + at; /* d_ino, d_off, d_reclen, d_type, d_name */
            int32_t tid = 0;
            for (unsigned char *digit = entry + 19; *digit >= '0' && *digit <= '9'; digit++)
                tid = tid * 10 + (*digit - '0');
            struct hww_traced *thread = tid ? to_visit(tid) : NULL;
            if (thread) {
                visit(thread);
                fresh++;
            }
            at += *(uint16_t *)(entry + 16);
        }
    }
    HWW_RAW(SYS_close, fd);
    return fresh;
}

static void helper(void *argument)
{
    (void)argument;
    HWW_RAW(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    HWW_RAW(SYS_setsid);
    while (!HWW_LOAD(&work.go))
        HWW_RAW(SYS_futex, &work.go, FUTEX_WAIT, 0, 0, 0, 0);
    if ((int32_t)HWW_RAW(SYS_getppid) == work.pid) {
        if (work.errand->only) {
            struct hww_traced *thread = to_visit(work.errand->only);
            if (thread)
                visit(thread);
        } else {
            /* A listing may leave out one that lives (threads.c), and threads are born meanwhile. */
            for (int clean = 0, rounds = 0; clean < 2 && rounds < 1000 && !work.errand->error; rounds++)
                clean = visit_listed() ? 0 : clean + 1;
        }
        HWW_STORE(&work.finished, 1);
    }
    for (;;)
        HWW_RAW(SYS_exit, 0);
}

/* ---- what its parent runs ---- */

/* Wait for the helper's end; one that makes no progress is ended. Whether it was. */
static int await_helper(int32_t pid)
{
    const struct timespec patience = {0, PATIENCE};
    int32_t alive, stuck = 0, idle = 0;
    while ((alive = HWW_LOAD(&work.alive))) {
        uint32_t progress = HWW_LOAD(&work.progress);
        long error = HWW_RAW(SYS_futex, &work.alive, FUTEX_WAIT, alive, &patience, 0, 0);
        idle = error == -ETIMEDOUT && progress == HWW_LOAD(&work.progress) ? idle + 1 : 0;
        if (idle == STEPS) {
            stuck = 1;
            HWW_RAW(SYS_kill, pid, SIGKILL);
        }
    }
    while (HWW_RAW(SYS_wait4, pid, 0, __WALL, 0) == -EINTR)
        ;
    return stuck;
}

enum outcome { FINISHED, KILLED, STUCK };

/* One helper, one errand; or -errno. */
static int send_helper(void)
{
    /* Hits are handled meanwhile: a SIGTRAP that is blocked would kill. */
    uint64_t most = ~(1ull << (SIGTRAP - 1) | 1ull << (SIGSEGV - 1) | 1ull << (SIGBUS - 1)), all = ~0ull,
             mask;
    work.go = work.finished = work.at = 0;
    work.alive = 1;
    memset(work.seen, 0, sizeof work.seen);
    HWW_RAW(SYS_rt_sigprocmask, SIG_SETMASK, &all, &mask, 8);
    int stuck = 0;
    long pid =
        hww_raw_clone(CLONE_VM | CLONE_CHILD_CLEARTID, stack + sizeof stack, &work.alive, helper, NULL);
    most &= all;
    most |= mask;
    HWW_RAW(SYS_rt_sigprocmask, SIG_SETMASK, &most, 0, 8);
    if (pid > 0) {
        HWW_RAW(SYS_prctl, PR_SET_PTRACER, pid, 0, 0, 0); /* EINVAL where there is no Yama */
        HWW_STORE(&work.go, 1);
        HWW_RAW(SYS_futex, &work.go, FUTEX_WAKE, 1, 0, 0, 0);
        stuck = await_helper((int32_t)pid);
        HWW_RAW(SYS_prctl, PR_SET_PTRACER, 0, 0, 0, 0);
    }
    HWW_RAW(SYS_rt_sigprocmask, SIG_SETMASK, &mask, 0, 8);
    return pid < 0 ? (int)pid : HWW_LOAD(&work.finished) ? FINISHED : stuck ? STUCK : KILLED;
}

/* Threads that are no more take no room. */
static void forget_ended(void)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < hww_traced_count; i++)
        if (hww_traced[i].state != HWW_THREAD_ENDED &&
            HWW_RAW(SYS_tgkill, work.pid, hww_traced[i].tid, 0) != -ESRCH)
            hww_traced[kept++] = hww_traced[i];
    hww_traced_count = kept;
}

/* The number of the errand under way, or of the last one. */
uint64_t hww_tracer_errand(void)
{
    return HWW_LOAD(&work.number);
}

/* Run an errand, under the lock; errno of the first thread that refused, -ECHILD where each helper was
 * killed. A thread that does not stop is noted in the table, and is no error. */
int hww_tracer_run(struct hww_errand *errand)
{
    work.errand = errand;
    HWW_STORE(&work.number, work.number + 1);
    work.pid = (int32_t)HWW_RAW(SYS_getpid);
    forget_ended();
    for (uint32_t i = 0; i < hww_traced_count; i++)
        if (hww_traced[i].state == HWW_THREAD_STUCK)
            hww_traced[i].state = HWW_THREAD_UNSEEN;
    for (int killed = 0, sent = 0; killed < HELPERS && sent < 64; sent++) {
        errand->error = errand->error_tid = 0;
        errand->armed = 0;
        int result = send_helper();
        if (result <= 0)
            return result ? result : errand->error;
        killed += result == KILLED;
        struct hww_traced *at = result == STUCK ? hww_traced_find(work.at) : NULL;
        if (at)
            at->state = HWW_THREAD_STUCK;
    }
    struct hww_traced *at = hww_traced_find(HWW_LOAD(&work.at));
    if (at)
        at->state = HWW_THREAD_TORN;
    return -ECHILD;
}
