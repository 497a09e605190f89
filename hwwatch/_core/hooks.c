/* The program's own calls that would make us miss hits, or kill it, go through us while something is armed.
 *
 * Whoever sets a handler for SIGTRAP, SIGSEGV or SIGBUS has it behind ours: what is not ours goes on to it,
 * and it is what stands there when nothing is armed any more. Without that the next hit would meet the new
 * handler, or with SIG_DFL kill the process.
 *
 * With registers that a tracer has set, threads also tell us when they begin, and when they change what they
 * do about SIGTRAP. The kernel clears a new thread's debug registers (flush_ptrace_hw_breakpoint in
 * copy_thread), and kills a process at a hit in a thread that blocks SIGTRAP. So while debug registers are
 * set, calls of pthread_create, pthread_sigmask and sigprocmask go through us: a new thread is armed before
 * its first own instruction, one that blocks SIGTRAP is disarmed before it does, and armed again afterwards;
 * a signal handler that would block it is kept from that. What is changed is the global offset table of each
 * module that calls these functions, and of those that dlopen brings; calls inside the C library, and bare
 * system calls, are not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>

#include "hooks.h"
#include "raw.h"
#include "tracer.h"

typedef int create_function(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
typedef int mask_function(int, const sigset_t *, sigset_t *);
typedef int action_function(int, const struct sigaction *, struct sigaction *);
typedef void (*plain_handler)(int);
typedef plain_handler signal_function(int, plain_handler);
typedef void *open_function(const char *, int);

static create_function *real_create;
static mask_function *real_pthread_sigmask, *real_sigprocmask;
static action_function *real_sigaction;
static signal_function *real_signal;
open_function *hww_real_dlopen __attribute__((visibility("hidden")));

/* Which hooks are in place. */
#define GUARD 1u   /* of our signals, whenever something is armed */
#define THREADS 2u /* for registers that a tracer has set */
uint32_t hww_hooks_placed;
static void look_for_modules(void);

struct start {
    void *(*function)(void *);
    void *argument;
};

static void *begin(void *argument)
{
    struct start *given = argument, start = *given;
    free(given);
    if (hww_registers_wanted())
        hww_registers_begin();
    return start.function(start.argument);
}

static int our_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*function)(void *),
                      void *argument)
{
    struct start *start = malloc(sizeof *start);
    if (!start)
        return EAGAIN;
    *start = (struct start){function, argument};
    look_for_modules();
    int error = real_create(thread, attributes, begin, start);
    if (error)
        free(start);
    return error;
}

static int blocks_trap(void)
{
    uint64_t mask = 0;
    HWW_RAW(SYS_rt_sigprocmask, SIG_BLOCK, 0, &mask, 8);
    return mask >> (SIGTRAP - 1) & 1;
}

static int change_mask(mask_function *real, int how, const sigset_t *set, sigset_t *before)
{
    if (!set || !hww_registers_wanted())
        return real(how, set, before);
    int blocked = blocks_trap(), names = sigismember(set, SIGTRAP) == 1;
    int blocks = how == SIG_BLOCK ? blocked || names : how == SIG_UNBLOCK ? blocked && !names : names;
    sigset_t changed = *set;
    if (blocks && !blocked && hww_registers_leave_here() < 0) {
        sigdelset(&changed, SIGTRAP); /* its registers are still set: it must go on hearing of them */
        return real(how, &changed, before);
    }
    int result = real(how, set, before);
    if (blocked != blocks && !blocks_trap())
        hww_registers_here();
    return result;
}

static int our_pthread_sigmask(int how, const sigset_t *set, sigset_t *before)
{
    return change_mask(real_pthread_sigmask, how, set, before);
}

static int our_sigprocmask(int how, const sigset_t *set, sigset_t *before)
{
    return change_mask(real_sigprocmask, how, set, before);
}

/* ---- handlers that would run with SIGTRAP blocked ---- */

/* Bit n - 1: the handler of signal n was set to block SIGTRAP. */
static uint64_t relieved;

static int our_sigaction(int number, const struct sigaction *action, struct sigaction *before)
{
    struct sigaction changed;
    if (hww_trap_chain(number, action, before))
        return 0;
    int relieve = action && hww_registers_wanted() && sigismember(&action->sa_mask, SIGTRAP) == 1;
    if (relieve) {
        changed = *action;
        sigdelset(&changed.sa_mask, SIGTRAP);
    }
    int result = real_sigaction(number, relieve ? &changed : action, before);
    if (result == 0 && relieve)
        __atomic_fetch_or(&relieved, 1ull << (number - 1), __ATOMIC_RELAXED);
    if (result == 0 && action)
        hww_trap_others(number);
    return result;
}

/* As signal(2) of the C library: BSD semantics. */
static plain_handler our_signal(int number, plain_handler handler)
{
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;
    sigaddset(&action.sa_mask, number);
    if (handler != SIG_ERR && hww_trap_chain(number, &action, &before))
        return before.sa_handler;
    plain_handler found = real_signal(number, handler);
    if (found != SIG_ERR)
        hww_trap_others(number);
    return found;
}

/* Those that are installed already; and back again. */
static void relieve_handlers(int on)
{
    for (int number = 1; number < 65; number++) {
        struct sigaction found;
        int ours = relieved >> (number - 1) & 1;
        if (number == SIGTRAP || (!on && !ours) || real_sigaction(number, NULL, &found) < 0 ||
            (!(found.sa_flags & SA_SIGINFO) &&
             (found.sa_handler == SIG_DFL || found.sa_handler == SIG_IGN)) ||
            sigismember(&found.sa_mask, SIGTRAP) != on)
            continue;
        if (on)
            sigdelset(&found.sa_mask, SIGTRAP);
        else
            sigaddset(&found.sa_mask, SIGTRAP);
        if (real_sigaction(number, &found, NULL) == 0)
            relieved |= 1ull << (number - 1);
    }
    if (!on)
        relieved = 0;
}

/* ---- modules that are loaded later ---- */

/* dlopen finds a name without a slash, and what $ stands for, by who calls it: those calls it gets as they
 * are. */
__attribute__((visibility("hidden"), used)) int hww_dlopen_is_plain(const char *file)
{
    int slash = 0;
    for (; file && *file; file++) {
        if (*file == '$')
            return 0;
        slash |= *file == '/';
    }
    return slash;
}

__attribute__((visibility("hidden"), used)) void *hww_dlopen_and_look(const char *file, int flags)
{
    void *handle = hww_real_dlopen(file, flags);
    look_for_modules();
    return handle;
}

void *hww_our_dlopen(const char *, int) __attribute__((visibility("hidden")));
__asm__(".text\n"
        ".hidden hww_our_dlopen\n"
        ".globl hww_our_dlopen\n"
        ".type hww_our_dlopen, @function\n"
        "hww_our_dlopen:\n\t"
        "endbr64\n\t"
        "push %rdi\n\t"
        "push %rsi\n\t"
        "sub $8, %rsp\n\t"
        "call hww_dlopen_is_plain\n\t"
        "add $8, %rsp\n\t"
        "pop %rsi\n\t"
        "pop %rdi\n\t"
        "test %eax, %eax\n\t"
        "jnz hww_dlopen_and_look\n\t"
        "jmp *hww_real_dlopen(%rip)\n"
        ".size hww_our_dlopen, . - hww_our_dlopen\n");

const struct hww_hook hww_hooks[] = {
    {"pthread_create", (void *)our_create, (void **)&real_create, THREADS},
    {"pthread_sigmask", (void *)our_pthread_sigmask, (void **)&real_pthread_sigmask, THREADS},
    {"sigprocmask", (void *)our_sigprocmask, (void **)&real_sigprocmask, THREADS},
    {"sigaction", (void *)our_sigaction, (void **)&real_sigaction, GUARD | THREADS},
    {"signal", (void *)our_signal, (void **)&real_signal, GUARD | THREADS},
    {"dlopen", (void *)hww_our_dlopen, (void **)&hww_real_dlopen, GUARD | THREADS},
    {NULL, NULL, NULL, 0},
};

static void look_for_modules(void)
{
    if (HWW_LOAD(&hww_hooks_placed))
        hww_modules_look(0);
}

static int place(uint32_t groups)
{
    static int resolved;
    for (const struct hww_hook *hook = hww_hooks; hook->name && !resolved; hook++)
        if (!(*hook->real = dlsym(RTLD_DEFAULT, hook->name)))
            return -ENOSYS;
    resolved = 1;
    int changed = __atomic_exchange_n(&hww_hooks_placed, groups, __ATOMIC_ACQ_REL) != groups;
    if (changed || groups)
        hww_modules_look(changed);
    return 0;
}

/* Threads are to tell us, in all modules that are loaded by now, or no longer. 1: they did not before; 0:
 * they did; or -errno. */
int hww_hooks_set(int on)
{
    int first = on && !(hww_hooks_placed & THREADS);
    if (!on && !(hww_hooks_placed & THREADS))
        return 0;
    int error = place(on ? hww_hooks_placed | THREADS : hww_hooks_placed & ~THREADS);
    if (!error && (first || !on))
        relieve_handlers(on);
    return error ? error : first;
}

/* Our signals are to stay ours, or no longer; where that is impossible, it is told who took them. */
void hww_hooks_guard(int on)
{
    place(on ? hww_hooks_placed | GUARD : hww_hooks_placed & ~GUARD);
}
