/* A signal that belonged to somebody before us: take it, hand on what is not ours, give it back. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "core.h"

/* Where Python is, whose own handlers only take note. */
static struct {
    uint64_t first, end;
} python;

static int find_python(struct dl_phdr_info *info, size_t size, void *symbol)
{
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        uint64_t first = info->dlpi_addr + part->p_vaddr;
        if (part->p_type == PT_LOAD && (uint64_t)symbol - first < part->p_memsz) {
            python.first = first;
            python.end = first + part->p_memsz;
            return 1;
        }
    }
    return 0;
}

/* Whether a signal waits while ours is handled: no foreign handler shall run, and store, between a trap and
 * its record, or jump out. Python's may, and must: the kernel gives a signal to another thread where the main
 * one blocks it, and up to 3.12 that thread's note is not seen by the main one (COMPUTE_EVAL_BREAKER in
 * Python/ceval_gil.c), so that Ctrl-C and timers would be lost in a loop that hits. */
static int must_wait(int number)
{
    struct sigaction found;
    if (number == SIGTRAP || number == SIGSEGV || number == SIGBUS || number == SIGILL || number == SIGFPE ||
        sigaction(number, NULL, &found) < 0)
        return 0;
    if (!(found.sa_flags & SA_SIGINFO) && (found.sa_handler == SIG_DFL || found.sa_handler == SIG_IGN))
        return 0;
    uint64_t handler = (uint64_t)found.sa_handler;
    return !(handler >= python.first && handler < python.end);
}

/* Somebody has set the handler of another signal. */
void hww_signal_others(struct hww_signal *self, int number)
{
    struct sigaction own;
    int waits = must_wait(number);
    if (!self->installed || sigaction(self->number, NULL, &own) < 0 || own.sa_sigaction != self->handler ||
        sigismember(&own.sa_mask, number) == waits)
        return;
    if (waits)
        sigaddset(&own.sa_mask, number);
    else
        sigdelset(&own.sa_mask, number);
    sigaction(self->number, &own, NULL);
}

/* SA_NODEFER: a trap inside the handler comes back to it and returns at once; were the signal deferred
 * instead, the handler would run again for ever. SA_ONSTACK: where the program has an alternate stack,
 * the signal frame is not written over stack bytes that may be watched. */
int hww_signal_open(struct hww_signal *self, int number, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK | SA_RESTART;
    struct sigaction found;
    if (sigaction(number, NULL, &found) < 0)
        return -errno;
    if ((found.sa_flags & SA_SIGINFO) && found.sa_sigaction == handler)
        return 0;
    if (!python.end)
        dl_iterate_phdr(find_python, dlsym(RTLD_DEFAULT, "PyErr_SetInterrupt"));
    for (int other = 1; other < 65; other++)
        if (must_wait(other))
            sigaddset(&action.sa_mask, other);
    self->number = number;
    self->handler = handler;
    self->previous = found; /* before ours is in place: forwarding may be needed at once */
    if (!self->installed)
        self->original = found;
    self->installed = 1;
    if (sigaction(number, &action, NULL) < 0) {
        self->installed = 0;
        return -errno;
    }
    return 0;
}

/* Give the signal back, unless somebody else took it meanwhile: then theirs stays. */
int hww_signal_close(struct hww_signal *self)
{
    if (!self->installed)
        return 0;
    if (hww_signal_owner(self) == HWW_OWNER_US && sigaction(self->number, &self->previous, NULL) < 0)
        return -errno;
    self->installed = 0;
    return 0;
}

int hww_signal_owner(const struct hww_signal *self)
{
    struct sigaction found;
    if (!self->installed || sigaction(self->number, NULL, &found) < 0)
        return HWW_OWNER_NONE;
    if ((found.sa_flags & SA_SIGINFO) && found.sa_sigaction == self->handler)
        return HWW_OWNER_US;
    return HWW_OWNER_OTHER;
}

/* Somebody sets a handler, or asks for it, while ours is in place: theirs stands behind ours. 0: ours is not.
 */
int hww_signal_chain(struct hww_signal *self, const struct sigaction *action, struct sigaction *before)
{
    if (hww_thread_in_vfork() || hww_signal_owner(self) != HWW_OWNER_US)
        return 0;
    struct sigaction found = self->previous;
    if (action)
        self->previous = *action;
    if (before)
        *before = found;
    return 1;
}

/* Whether somebody else wants such signals: else they would be ignored, or kill. */
int hww_signal_handled(const struct hww_signal *self)
{
    return self->previous.sa_flags & SA_SIGINFO ||
           (self->previous.sa_handler != SIG_DFL && self->previous.sa_handler != SIG_IGN);
}

static void deliver(int number, struct sigaction *previous, siginfo_t *info, void *context)
{
    int siginfo = previous->sa_flags & SA_SIGINFO;
    int ignored = !siginfo && previous->sa_handler == SIG_IGN;
    int default_action = !siginfo && previous->sa_handler == SIG_DFL;
    /* The kernel kills a process that ignores a fault or trap of its own making (force_sig). */
    if (ignored && info->si_code > 0 && info->si_code != 6 /* TRAP_PERF is sent, not forced */)
        default_action = 1;
    else if (ignored)
        return;
    if (default_action) {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_handler = SIG_DFL;
        sigaction(number, &action, NULL);
        if (number != SIGTRAP && info->si_code > 0)
            return; /* the faulting instruction runs again and dies where it stands */
        sigset_t only;
        sigemptyset(&only);
        sigaddset(&only, number);
        syscall(SYS_tgkill, syscall(SYS_getpid), syscall(SYS_gettid), number);
        pthread_sigmask(SIG_UNBLOCK, &only, NULL);
        return;
    }
    sigset_t mask = ((const ucontext_t *)context)->uc_sigmask, added = previous->sa_mask, before;
    for (int other = 1; other < 65; other++)
        if (sigismember(&added, other) == 1)
            sigaddset(&mask, other);
    if (!(previous->sa_flags & SA_NODEFER))
        sigaddset(&mask, number);
    void (*plain)(int) = previous->sa_handler;
    void (*full)(int, siginfo_t *, void *) = previous->sa_sigaction;
    if (previous->sa_flags & SA_RESETHAND) {
        previous->sa_handler = SIG_DFL;
        previous->sa_flags &= ~(SA_SIGINFO | SA_RESETHAND);
    }
    pthread_sigmask(SIG_SETMASK, &mask, &before);
    if (siginfo)
        full(number, info, context);
    else
        plain(number);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* A signal that is being handed on, on the stack of whoever hands it on. */
struct hww_delivery {
    uint64_t mark;
    void *context;
    void (*receiver)(int);
};

static uint64_t mark_of(const struct hww_delivery *self)
{
    return (uintptr_t)self ^ 0x9e3779b97f4a7c15ull;
}

/* Reads what may be another frame's by now, or gone with its stack. */
HWW_FOREIGN static void read_delivery(void *argument)
{
    struct hww_delivery *copy = *(struct hww_delivery **)argument, *from = copy->context;
    *copy = *(volatile struct hww_delivery *)from;
}

/* Whether a delivery is still under way, so that this one happened in it; a receiver may have jumped out of
 * it instead (siglongjmp). Then its frame lies where this one's does, or above, or others have been written
 * over it. The receiver may have called us with what it was given, or caused another signal: that began below
 * the frame. Out: a copy. */
static int under_way(struct hww_thread *thread, const struct hww_delivery *outer,
                     const struct hww_delivery *own, void *context, struct hww_delivery *copy)
{
    uintptr_t from = (uintptr_t)((const ucontext_t *)context)->uc_mcontext.gregs[REG_RSP];
    copy->context = (void *)outer;
    return (uintptr_t)own < (uintptr_t)outer && hww_guarded(thread, read_delivery, &copy) == 0 &&
           copy->mark == mark_of(outer) && (copy->context == context || from < (uintptr_t)outer);
}

/* Let the signal do what it would have done without us: die, be ignored, or run the earlier handler with
 * the mask it asked for. One that took the signal from us and hands it on brings it back here: then it
 * goes to who had it first, else the two would call each other for ever; unless that one has set another in
 * its own place meanwhile, as faulthandler does to chain. */
void hww_signal_forward(struct hww_signal *self, siginfo_t *info, void *context)
{
    struct hww_thread *thread = &hww_thread;
    struct hww_delivery **place = &thread->deliveries[self->number == SIGTRAP   ? 0
                                                      : self->number == SIGSEGV ? 1
                                                                                : 2];
    struct hww_delivery *outer = *place, found, own;
    if (outer && !under_way(thread, outer, &own, context, &found))
        outer = NULL;
    own = (struct hww_delivery){mark_of(&own), context, self->previous.sa_handler};
    if (outer && found.receiver == own.receiver) {
        deliver(self->number, &self->original, info, context);
        return;
    }
    *place = &own;
    HWW_FENCE();
    deliver(self->number, &self->previous, info, context);
    HWW_FENCE();
    *place = outer;
    HWW_STORE(&own.mark, 0);
}

/* With the kernel's accesses included, a signal frame written over watched bytes of a thread's own stack,
 * below its stack pointer, and read again by sigreturn would trap for ever under a read-write breakpoint.
 * The main thread, where such a watch is most likely, gets an alternate stack if it has none. */
static unsigned char main_stack[65536];

void hww_signal_stack(int on)
{
    stack_t found,
        ours = {.ss_sp = main_stack, .ss_flags = on ? 0 : SS_DISABLE, .ss_size = sizeof main_stack};
    if (syscall(SYS_gettid) != syscall(SYS_getpid) || sigaltstack(NULL, &found) < 0)
        return;
    if (on ? found.ss_flags & SS_DISABLE : found.ss_sp == main_stack && !(found.ss_flags & SS_ONSTACK))
        sigaltstack(&ours, NULL);
}
