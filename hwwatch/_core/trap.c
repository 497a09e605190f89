/* The SIGTRAP handler.
 *
 * Runs on the thread that touched the watched bytes, perhaps inside malloc() or holding the GIL.
 *   1. No allocation, no locks, no stdio, no Python call, no reference count.
 *   2. Only these foreign functions: clock_gettime (vDSO); process_vm_readv, process_vm_writev, read, madvise
 *      for the spill file, and at a limit ioctl and close (system calls); memcmp/memcpy (pure);
 *      PyGILState_GetThisThreadState (a pthread_getspecific); sigaction and tgkill, to wake Python.
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
#include <time.h>
#include <unistd.h>

#include "arch_x86_64.h"
#include "core.h"
#include "raw.h"
#include "tracer.h"

uint64_t hww_active, hww_readers;
volatile uint64_t hww_canary_seen;

static struct hww_signal trap_signal, segv_signal, bus_signal;

/* The snapshot is the pieces' bytes one after the other. */
static void pack(const struct hww_watch *watch, const uint64_t pieces[4], uint64_t out[4])
{
    unsigned char *bytes = (unsigned char *)out;
    memset(out, 0, HWW_SNAPSHOT);
    for (uint32_t p = 0; p < watch->npieces; p++) {
        memcpy(bytes, &pieces[p], watch->pieces[p].nbytes);
        bytes += watch->pieces[p].nbytes;
    }
}

/* Bytes of the snapshot that are those of some pieces. */
static uint32_t bytes_of(const struct hww_watch *watch, uint32_t pieces)
{
    uint32_t bytes = 0, at = 0;
    for (uint32_t p = 0; p < watch->npieces; at += watch->pieces[p++].nbytes)
        if (pieces >> p & 1)
            bytes |= (uint32_t)(((1ull << watch->pieces[p].nbytes) - 1) << at);
    return bytes;
}

/* In place of a watch: the trap names none. */
#define NO_WATCH HWW_MAX_WATCHES

struct trap {
    uint32_t watch, piece, generation;
    uint32_t flags;
    int current; /* the watch is still the one that was named */
    ucontext_t *context;
    struct hww_moment moment;
    uint32_t stack_flags;
    int looked, after_syscall, known_writer;
    int poked;          /* by a register that a tracer has set: the signal names nobody */
    uint32_t registers; /* those that it may stand for */
    enum hww_certainty certain;
    int assumed; /* each of them gets a record */
};

/* One record stands for one kernel count of each piece in mask; but a copy by the kernel counts a byte or
 * a word at a time and is delivered once, when the system call returns. */
static void account(struct hww_thread *self, const struct trap *trap, struct hww_watch *watch, uint32_t index,
                    uint32_t mask, int kernel)
{
    if (watch->mode == HWW_EXECUTE && (uint32_t)self->pid != watch->owner)
        return; /* a forked child's own event, which the parent's counters do not include */
    for (uint32_t p = 0; p < watch->npieces; p++) {
        if (!(mask >> p & 1))
            continue;
        if (trap->watch == NO_WATCH) { /* the kernel did not count it either */
            HWW_ADD(&watch->accounted[p], 1);
            HWW_ADD(&watch->retired[p], 1);
            continue;
        }
        uint64_t known = HWW_ADD(&watch->accounted[p], 1) + 1 + HWW_LOAD(&watch->nested[p]);
        int64_t counted = kernel ? hww_watch_counted(index, p) : -1;
        if (counted < 0 || (uint64_t)counted <= known)
            continue;
        uint64_t excess = hww_copy_excess(watch->pieces[p].nbytes), missing = (uint64_t)counted - known;
        HWW_ADD(&watch->accounted[p], missing < excess ? missing : excess);
    }
}

static void read_behind(void *argument)
{
    struct trap *trap = argument;
    trap->after_syscall = hww_arch_after_syscall(trap->moment.pc);
    trap->known_writer = hww_writer_known(trap->moment.pc);
}

/* What the instruction before the pc is, for the watches that ask. */
static void look_behind(struct hww_thread *self, struct trap *trap, const struct hww_watch *watch)
{
    if (!trap->looked && (watch->kernel || watch->mode == HWW_READ)) {
        trap->looked = 1;
        hww_guarded(self, read_behind, trap);
    }
}

/* When it was: one time for all watches of a trap. A hit that is left out needs none. */
static void tell_time(struct trap *trap)
{
    struct timespec now;
    if (trap->moment.time)
        return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    trap->moment.time = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void walk_frames(struct hww_thread *self, struct trap *trap, uint32_t nframes)
{
    if (trap->moment.nframes == nframes)
        return;
    trap->stack_flags = 0;
    trap->moment.stack = hww_frames_walk(self, nframes, &trap->stack_flags);
    trap->moment.nframes = nframes;
}

/* Left out on purpose: no record, but accounted for. */
static void filter(struct hww_thread *self, const struct trap *trap, struct hww_watch *watch, uint32_t index,
                   uint32_t hit, int kernel)
{
    account(self, trap, watch, index, hit, kernel);
    HWW_ADD(&watch->filtered, 1);
}

/* Policy, limit and record of a hit that passed the condition. */
static void take(struct hww_thread *self, struct trap *trap, struct hww_watch *watch, uint32_t index,
                 const struct hww_settings *settings, struct hww_finding *finding,
                 const struct hww_change *change)
{
    int kernel = finding->flags & HWW_HIT_KERNEL, drop = 0;
    uint64_t limit = settings ? settings->limit : 0;
    /* A watch for reads records a write only until its instruction is known for one: no hit of its limit. */
    int counts = watch->mode != HWW_READ || !change->mask;
    uint64_t ticket = counts ? HWW_ADD(&watch->tickets, 1) + 1 : 0;
    if (limit && ticket > limit) {
        filter(self, trap, watch, index, finding->hit, kernel);
        /* The limit was lowered below what there is, or a child has reached it, which cannot reach our
         * events. */
        if (hww_watch_stop_once(index) && (uint32_t)self->pid == watch->owner)
            hww_notify(self);
        return;
    }
    tell_time(trap);
    /* A late hit's thread is elsewhere by now: nothing is done to it. */
    if (settings && settings->policy != HWW_CONTINUE && !(finding->flags & HWW_HIT_LATE)) {
        /* Another watch on this instruction may have sent the thread elsewhere. */
        if (watch->mode == HWW_EXECUTE && hww_arch_pc(trap->context) != trap->moment.pc)
            finding->flags |= HWW_HIT_REFUSED;
        else
            hww_action(self, watch, index, settings, &trap->moment, finding, change, trap->context, &drop);
        if (finding->flags & HWW_HIT_REFUSED)
            HWW_ADD(&watch->refused, 1);
    }
    if (drop) {
        filter(self, trap, watch, index, finding->hit, kernel);
    } else {
        walk_frames(self, trap, watch->nframes);
        finding->flags |= trap->stack_flags;
        if (hww_record_write(watch, index, &trap->moment, finding) == 0) {
            account(self, trap, watch, index, finding->hit, kernel);
            for (uint32_t p = 0; p < watch->npieces; p++)
                if (finding->hit >> p & 1 && p != finding->named && trap->watch != NO_WATCH)
                    HWW_ADD(&watch->guessed[p], 1);
        }
    }
    int last = limit && ticket == limit;
    if (last)
        hww_watch_stop((int)index);
    /* A read watch asks for its unknown writers to be decoded, so that they cost no record from then on. A
     * forked child has no listener: on_hit is its parent's. */
    int wanted = last || (settings && settings->notify) || (watch->mode == HWW_READ && change->mask);
    if (wanted && (uint32_t)self->pid == watch->owner)
        hww_notify(self);
}

/* Two watches on one instruction raise one signal, too, which names one of them. */
static int same_instruction(const struct trap *trap, const struct hww_watch *watch, uint32_t index,
                            int foreign)
{
    return trap->watch != NO_WATCH && hww_region.shared->watches[trap->watch].mode == HWW_EXECUTE &&
           !(trap->flags & HWW_HIT_LATE) && watch->pieces[0].address == trap->moment.pc &&
           (!foreign || hww_watch_counted(index, 0) >= 0); /* a child need not have armed all */
}

/* Nor does it name another watch on the same bytes: pieces that contain the named one were hit as well, but
 * for a read, which a watch for writes does not see. */
static uint32_t pieces_around(const struct trap *trap, const struct hww_watch *watch)
{
    if (!trap->current || trap->flags & HWW_HIT_LATE || watch->mode == HWW_EXECUTE)
        return 0;
    const struct hww_watch *hit = &hww_region.shared->watches[trap->watch];
    if (hit->mode == HWW_EXECUTE || (hit->mode != HWW_WRITE && watch->mode == HWW_WRITE))
        return 0;
    uint64_t first = hit->pieces[trap->piece].address, end = first + hit->pieces[trap->piece].nbytes;
    uint32_t mask = 0;
    for (uint32_t p = 0; p < watch->npieces; p++)
        mask |= (uint32_t)(watch->pieces[p].address <= first &&
                           end <= watch->pieces[p].address + watch->pieces[p].nbytes)
                << p;
    return mask;
}

/* What a trap did to one watch. */
struct sight {
    uint32_t index;
    uint32_t sure; /* pieces that were hit for certain */
    struct hww_change change;
    struct hww_finding finding;
};

/* Whether the trap was a hit of this watch, and what it did. */
static int look_at(struct hww_thread *self, struct trap *trap, uint32_t index, struct sight *out)
{
    struct hww_watch *watch = &hww_region.shared->watches[index];
    int named = index == trap->watch;
    uint32_t generation = HWW_LOAD(&watch->generation), first = HWW_LOAD(&watch->first);
    /* A live change of mode begins a new generation; hits of those before it may still be on their way. */
    if (named && trap->generation - first > generation - first) {
        HWW_ADD(&hww_region.shared->stale, 1);
        if ((uint32_t)self->pid != watch->owner)
            hww_watch_orphaned(index);
        return 0;
    }
    int foreign = watch->mode == HWW_EXECUTE && (uint32_t)self->pid != watch->owner;
    if (foreign && hww_watch_over(watch)) {
        hww_watch_orphaned(index);
        return 0;
    }
    if (hww_watch_over(watch))
        hww_watch_stop_once(index); /* a child may have reached its limit: it cannot reach our events */
    if (trap->poked && !hww_registers_pieces(UINT32_MAX, index))
        return 0; /* none of this process' */
    uint32_t mine = trap->poked ? hww_registers_pieces(trap->registers, index) : 0;
    int executed = watch->mode == HWW_EXECUTE &&
                   (trap->poked ? mine != 0 : same_instruction(trap, watch, index, foreign));
    if (!named && (HWW_LOAD(&watch->state) != HWW_ARMED || (watch->mode == HWW_EXECUTE && !executed)))
        return 0;
    out->index = index;
    out->change = (struct hww_change){{0}, {0}, 0, trap->flags | (trap->assumed ? HWW_HIT_AMBIGUOUS : 0)};
    /* A hit by the registers as they are is of the latest mode; one by those before a change, of the last
     * then. */
    uint32_t hardware = HWW_LOAD(&watch->hardware);
    int earlier = named && trap->generation - first < hardware - first;
    out->finding =
        (struct hww_finding){earlier ? hardware - 1 : generation, 0, 0, 0xff, HWW_CONTINUED, {0}, {0}};
    if (watch->mode == HWW_EXECUTE) {
        uint64_t arguments[8];
        out->change.flags |= HWW_HIT_EXECUTE;
        hww_arch_arguments(trap->context, arguments);
        memcpy(out->finding.old_bytes, arguments, sizeof out->finding.old_bytes);
        memcpy(out->finding.new_bytes, arguments + 4, sizeof out->finding.new_bytes);
    } else {
        hww_observe(self, index, watch, first, &out->change);
        pack(watch, out->change.before, out->finding.old_bytes);
        pack(watch, out->change.now, out->finding.new_bytes);
    }
    /* An execute watch has one piece, and is here only when it was hit. */
    out->sure = named                                         ? 1u << trap->piece
                : watch->mode == HWW_EXECUTE                  ? 1
                : trap->poked && trap->certain == HWW_CERTAIN ? mine
                                                              : pieces_around(trap, watch);
    out->finding.hit = out->change.mask | out->sure | (trap->assumed ? mine : 0);
    return out->finding.hit && HWW_LOAD(&watch->first) == first;
}

/* What is done about it. */
static void decide(struct hww_thread *self, struct trap *trap, struct sight *sight)
{
    uint32_t index = sight->index;
    struct hww_watch *watch = &hww_region.shared->watches[index];
    struct hww_finding *finding = &sight->finding;
    uint32_t flags = sight->change.flags;
    if (self->muted > 0 && watch->mode == HWW_EXECUTE) {
        filter(self, trap, watch, index, 1, 0);
        return;
    }
    if (sight->sure)
        finding->named = (uint32_t)__builtin_ctz(sight->sure);
    /* A late hit comes at the end of whatever system call unblocked the signal: it says nothing of origin. */
    look_behind(self, trap, watch);
    int kernel =
        watch->kernel && trap->after_syscall && watch->mode != HWW_EXECUTE && !(trap->flags & HWW_HIT_LATE);
    if (watch->mode == HWW_READ && trap->known_writer && !kernel) {
        filter(self, trap, watch, index, finding->hit, kernel);
        return;
    }
    if (finding->hit != (finding->named < HWW_MAX_PIECES ? 1u << finding->named : 0)) {
        flags |= HWW_HIT_INFERRED;
        HWW_ADD(&watch->inferred, 1);
    }
    if (flags & HWW_HIT_LATE)
        HWW_ADD(&watch->late, 1);
    finding->flags = flags | (kernel ? HWW_HIT_KERNEL : 0);
    uint64_t seen = HWW_ADD(&watch->seen, 1) + 1;
    uint32_t id = HWW_LOAD(&watch->settings);
    const struct hww_settings *settings =
        id ? (const struct hww_settings *)(hww_region.arena + (uint64_t)id * 8) : NULL;
    if (settings && !hww_condition_true(settings, (const unsigned char *)finding->old_bytes,
                                        (const unsigned char *)finding->new_bytes,
                                        bytes_of(watch, finding->hit), seen, trap->moment.tid))
        filter(self, trap, watch, index, finding->hit, kernel);
    else
        take(self, trap, watch, index, settings, finding, &sight->change);
}

static void act_on(struct hww_thread *self, struct trap *trap, struct sight *sight)
{
    decide(self, trap, sight);
    if (sight->change.mask && sight->finding.action != HWW_SKIPPED)
        hww_held_take(sight->index, &hww_region.shared->watches[sight->index], &sight->change);
}

/* One signal names one watch, though the instruction may have touched several: all are compared, before a
 * policy of one of them changes the bytes. More than four cannot be armed on one thread; in a child there may
 * be some that its parent has ended since. */
#define SIGHTS 8

static uint32_t look_around(struct hww_thread *self, struct trap *trap, uint64_t watches,
                            struct sight *sights, uint32_t count)
{
    for (; watches && count < SIGHTS; watches &= watches - 1)
        count += (uint32_t)look_at(self, trap, (uint32_t)__builtin_ctzll(watches), &sights[count]);
    return count;
}

static void handle(struct hww_thread *self, struct trap *trap)
{
    struct hww_moment *moment = &trap->moment;
    struct sight sights[SIGHTS];
    uint32_t count = 0;
    hww_arch_moment(moment, trap->context);
    moment->time = 0;
    moment->tid = (uint32_t)self->tid;
    moment->pid = (uint32_t)self->pid;
    moment->stack = 0;
    moment->nframes = UINT32_MAX;
    uint64_t others = HWW_LOAD(&hww_active);
    int nobody = !others;
    if (trap->watch != NO_WATCH) {
        hww_watch_doubt(self, trap->watch, trap->piece);
        trap->current = look_at(self, trap, trap->watch, &sights[0]);
        count = (uint32_t)trap->current;
        others &= ~(1ull << trap->watch);
    }
    if (trap->poked)
        trap->registers = hww_registers_candidates(self, moment, &trap->certain);
    /* Several watches may have been read, or written with what they held. Each gets a record that names
     * nobody; those that the instruction does not reach are left out when it is decoded. */
    trap->assumed = trap->poked && trap->certain == HWW_LIKELY;
    count = look_around(self, trap, others, sights, count);
    if (trap->poked && !count && trap->registers) {
        trap->assumed = 1;
        count = look_around(self, trap, others, sights, 0);
    }
    for (uint32_t i = 0; i < count; i++)
        act_on(self, trap, &sights[i]);
    if (!count && trap->poked)
        hww_registers_purge();
    else if (!count && !nobody && trap->watch == NO_WATCH)
        HWW_ADD(&hww_region.shared->unexplained, 1);
}

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
        watch = NO_WATCH;
        piece = 0;
        flags = 0;
    }
    if (!ours) {
        HWW_ADD(&hww_region.shared->forwarded, 1);
        hww_signal_forward(&trap_signal, info, context);
    } else if (watch == HWW_COOKIE_CANARY || (poked && self->canary)) {
        __atomic_fetch_add(&hww_canary_seen, 1, __ATOMIC_RELAXED);
    } else if (watch > NO_WATCH || piece >= HWW_MAX_PIECES) {
        HWW_ADD(&hww_region.shared->stale, 1);
    } else if (self->in_handler) {
        self->nested = watch << 8 | piece;
        if (watch != NO_WATCH)
            HWW_ADD(&hww_region.shared->watches[watch].nested[piece], 1);
    } else {
        self->in_handler = 1;
        HWW_FENCE();
        struct trap trap;
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
        handle(self, &trap);
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
