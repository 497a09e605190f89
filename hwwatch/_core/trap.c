/* The SIGTRAP handler.
 *
 * Runs on the thread that touched the watched bytes, perhaps inside malloc() or holding the GIL.
 *   1. No allocation, no locks, no stdio, no Python call, no reference count.
 *   2. Only these foreign functions: clock_gettime (vDSO); process_vm_readv, process_vm_writev, read, madvise
 *      for the spill file, and at a limit ioctl and close (system calls); memcmp/memcpy (pure);
 *      PyGILState_GetThisThreadState (a pthread_getspecific); sigaction and tgkill, to wake Python;
 *      _PyEval_SignalReceived of Python up to 3.12 (sets flags).
 *   3. errno is saved on entry and restored on exit.
 *   4. A trap inside a trap returns at once (thread-local flag); it is counted in hww_watch.nested.
 *   5. A trap that is not ours goes to the handler that was there before. One without a cause is ours.
 *   6. In a forked child all private state is the parent's copy: what it says of the parent's events is
 *      not believed; ring, arena and watch table are shared.
 *   7. A watch that another thread disarms meanwhile keeps its entry until its generation is used again:
 *      a hit in flight is still recorded, a stale one is only counted.
 */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>

#include "arch_x86_64.h"
#include "hits.h"
#include "raw.h"
#include "tracer.h"

volatile uint64_t hww_canary_seen;

static struct hww_signal trap_signal, segv_signal, bus_signal;

static void read_icebp(void *argument)
{
    ucontext_t **context = argument;
    if (hww_arch_is_icebp(hww_arch_pc(*context)))
        *context = NULL;
}

/* A debug exception of which neither kernel nor CPU can tell the cause, in a program that uses breakpoints of
 * ours: it would kill the program, or surprise whoever had SIGTRAP before us. */
static int unexplained(struct hww_thread *self, const siginfo_t *info, ucontext_t *context)
{
    if (!HWW_LOAD(&hww_region.shared->watches[0].generation)) /* nothing has been armed yet */
        return 0;
    if (info->si_code == HWW_TRAP_HWBKPT)
        return !hww_signal_handled(&trap_signal);
    return info->si_code == HWW_TRAP_BRKPT && hww_guarded(self, read_icebp, &context) == 0 && context;
}

static void on_trap(int number, siginfo_t *info, void *context)
{
    (void)number;
    int saved = errno;
    struct hww_thread *self = &hww_thread;
    uint64_t cookie;
    uint32_t flags;
    memcpy(&cookie, (const char *)info + HWW_SIGINFO_DATA, sizeof cookie);
    memcpy(&flags, (const char *)info + HWW_SIGINFO_FLAGS, sizeof flags);
    uint32_t watch = cookie >> 8 & 0xff, piece = cookie & 0xff;
    int ours = info->si_code == HWW_TRAP_PERF && cookie >> 48 == HWW_COOKIE_MAGIC;
    int poked = info->si_code == HWW_TRAP_HWBKPT && hww_registers_poked();
    if (poked || (!ours && unexplained(self, info, context))) {
        ours = 1;
        watch = HWW_NO_WATCH;
        piece = 0;
        flags = 0;
    }
    if (!ours) {
        HWW_ADD(&hww_region.shared->forwarded, 1);
        hww_signal_forward(&trap_signal, info, context);
    } else if (watch == HWW_COOKIE_CANARY || (poked && self->canary)) {
        __atomic_fetch_add(&hww_canary_seen, 1, __ATOMIC_RELAXED);
    } else if (watch > HWW_NO_WATCH || piece >= HWW_MAX_PIECES) {
        HWW_ADD(&hww_region.shared->stale, 1);
    } else if (self->in_handler) {
        self->nested = watch << 8 | piece;
        if (watch != HWW_NO_WATCH)
            HWW_ADD(&hww_region.shared->watches[watch].nested[piece], 1);
    } else {
        self->in_handler = 1;
        HWW_FENCE();
        struct hww_trap trap;
        trap.watch = watch;
        trap.piece = piece;
        trap.generation = cookie >> 16 & 0xffffffff;
        trap.flags = flags & HWW_SIGINFO_ASYNC ? HWW_HIT_LATE : 0;
        trap.context = context;
        trap.stack_flags = 0;
        trap.current = trap.looked = trap.after_syscall = trap.known_writer = 0;
        trap.poked = poked;
        trap.certain = HWW_CERTAIN;
        trap.assumed = 0;
        trap.registers = 0;
        hww_thread_identify(self);
        if (poked)
            HWW_ADD(&hww_traps_begun[(uint32_t)self->tid % HWW_TRAP_COUNTERS], 1);
        hww_hits_take(self, &trap);
        hww_signals_look(self);
        if (poked)
            HWW_ADD(&hww_traps_done[(uint32_t)self->tid % HWW_TRAP_COUNTERS], 1);
        HWW_FENCE();
        self->in_handler = 0;
    }
    errno = saved;
}

/* A fault under hww_guarded is ours; all others go where they would have gone. */
static void on_fault(int number, siginfo_t *info, void *context)
{
    if (hww_thread.recover)
        __builtin_longjmp(hww_thread.recover, 1);
    int saved = errno;
    hww_signal_forward(number == SIGSEGV ? &segv_signal : &bus_signal, info, context);
    errno = saved;
}

/* Safe to call again: it takes back a signal that somebody else took meanwhile. */
int hww_trap_open(void)
{
    if (!hww_region.shared)
        return -ENXIO;
    hww_signal_stack(1);
    int error = hww_signal_open(&segv_signal, SIGSEGV, on_fault);
    if (!error)
        error = hww_signal_open(&bus_signal, SIGBUS, on_fault);
    if (!error)
        error = hww_signal_open(&trap_signal, SIGTRAP, on_trap);
    if (!error)
        hww_hooks_guard(1);
    return error;
}

/* The program has set the handler of another signal. */
void hww_trap_others(int number)
{
    hww_signal_others(&trap_signal, number);
    hww_signal_others(&segv_signal, number);
    hww_signal_others(&bus_signal, number);
}

/* Signals that wait while one is handled: bit n - 1 for signal n. Asked where SIGTRAP is blocked: the C
 * library's sigaction may be watched. */
uint64_t hww_trap_waiting(void)
{
    struct {
        void (*handler)(int, siginfo_t *, void *);
        uint64_t flags, restorer, mask;
    } found = {0};
    return HWW_RAW(SYS_rt_sigaction, SIGTRAP, 0, &found, 8) == 0 && found.handler == on_trap ? found.mask
                                                                                             : ~0ull;
}

int hww_trap_chain(int number, const struct sigaction *action, struct sigaction *before)
{
    struct hww_signal *own = number == SIGTRAP   ? &trap_signal
                             : number == SIGSEGV ? &segv_signal
                             : number == SIGBUS  ? &bus_signal
                                                 : NULL;
    return own && hww_signal_chain(own, action, before);
}

/* Give the signals back. Not in a forked child that its parent's watches still reach: the next hit would meet
 * the default action, and kill. */
int hww_trap_close(void)
{
    uint32_t self = (uint32_t)getpid();
    for (uint64_t left = HWW_LOAD(&hww_active); left; left &= left - 1) {
        const struct hww_watch *watch = &hww_region.shared->watches[__builtin_ctzll(left)];
        if (watch->owner != self && !hww_watch_over(watch))
            return 0;
    }
    hww_hooks_guard(0);
    int trap = hww_signal_close(&trap_signal);
    int segv = hww_signal_close(&segv_signal);
    int bus = hww_signal_close(&bus_signal);
    hww_signal_stack(0);
    return trap ? trap : segv ? segv : bus;
}

int hww_trap_owner(void)
{
    return hww_signal_owner(&trap_signal);
}

uint64_t hww_trap_cookie(uint32_t watch, uint32_t piece)
{
    return hww_cookie(hww_region.shared->watches[watch].generation, watch, piece);
}

/* A scripted hit for tests without hardware: everything but the CPU's part. */
int hww_trap_simulate(uint64_t cookie, uint32_t flags, uint64_t pc, const uint64_t registers[16])
{
    sigset_t mask;
    union {
        siginfo_t info;
        char bytes[128];
    } signal;
    static_assert(sizeof(siginfo_t) == 128, "siginfo_t is 128 bytes");
    ucontext_t context;
    memset(&signal, 0, sizeof signal);
    memset(&context, 0, sizeof context);
    signal.info.si_signo = SIGTRAP;
    signal.info.si_code = HWW_TRAP_PERF;
    memcpy(signal.bytes + HWW_SIGINFO_DATA, &cookie, sizeof cookie);
    memcpy(signal.bytes + HWW_SIGINFO_FLAGS, &flags, sizeof flags);
    hww_arch_context(&context, pc, registers);
    /* A guarded fault leaves its handler by a jump; a real trap's return would give the mask back. */
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    on_trap(SIGTRAP, &signal.info, &context);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    return 0;
}
