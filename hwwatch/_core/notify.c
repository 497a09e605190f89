/* Waking Python, from the handler: for a hit, and for signals that a hit has kept from it. */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

static uint32_t number;  /* of the signal that hwwatch/safepoints.py handles; 0: nobody listens */
static uint32_t sent;    /* one is on its way: real-time signals would queue up */
static uint32_t senders; /* handlers that are about to send one */

static timer_t timer;
static pid_t timer_of; /* process that has made the timer; children have none */

/* _PyEval_SignalReceived, and what it is called with; NULL where Python needs no help. */
static void (*signal_received)(void *interpreter);
static void *main_interpreter;

void hww_signals_configure(uint64_t function, uint64_t interpreter)
{
    main_interpreter = (void *)interpreter;
    HWW_STORE(&signal_received, (void (*)(void *))function);
}

/* While a hit waits in a thread that does not run, the kernel gives the process' signals to other threads
 * (wants_signal in kernel/signal.c); Python up to 3.12 notes them there, and its main thread does not look
 * before it lets go of the GIL (COMPUTE_EVAL_BREAKER in Python/ceval_gil.c). Have it look at its next safe
 * point: two flags are set, as Python's own signal handler does. */
void hww_signals_look(const struct hww_thread *self)
{
    void (*look)(void *) = HWW_LOAD(&signal_received);
    if (look && self->tid == self->pid)
        look(main_interpreter);
}

/* In a forked child: what its parent had sent, Python has dropped there. */
void hww_notify_forked(void)
{
    sent = senders = 0;
}

/* 0 ends it, and returns when no signal can come any more: its default action would kill. */
void hww_notify_configure(uint32_t signal_number)
{
    const struct timespec moment = {0, 100000};
    HWW_STORE(&sent, 0);
    __atomic_store_n(&number, signal_number, __ATOMIC_SEQ_CST);
    if (signal_number)
        return;
    if (timer_of == getpid())
        timer_delete(timer);
    timer_of = 0;
    /* Bounded: a child made by a raw clone() has its parent's count, not its threads. */
    for (int tries = 0; tries < 1000 && __atomic_load_n(&senders, __ATOMIC_SEQ_CST); tries++)
        nanosleep(&moment, NULL);
}

/* One to the main thread in a millisecond, so that it goes on meanwhile. Not for the handler. */
int hww_notify_later(void)
{
    uint32_t signal_number = HWW_LOAD(&number);
    if (!signal_number)
        return 0;
    if (timer_of != getpid()) {
        struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = (int)signal_number};
        event._sigev_un._tid = getpid();
        if (timer_create(CLOCK_MONOTONIC, &event, &timer) < 0)
            return -errno;
        timer_of = getpid();
    }
    const struct itimerspec soon = {{0, 0}, {0, 1000000}};
    return timer_settime(timer, 0, &soon, NULL) < 0 ? -errno : 0;
}

/* The listener is about to look: what comes from now on needs another signal. */
void hww_notify_taken(void)
{
    HWW_STORE(&sent, 0);
}

/* A real signal to the main thread, whose Python handler runs at the next safe point. PyErr_SetInterruptEx
 * will not do: in 3.11 it compares objects (compare_handler in Modules/signalmodule.c), which needs a thread
 * state, and a thread that traps may have none. */
void hww_notify(struct hww_thread *self)
{
    struct sigaction found;
    __atomic_fetch_add(&senders, 1, __ATOMIC_SEQ_CST);
    uint32_t signal_number = __atomic_load_n(&number, __ATOMIC_SEQ_CST);
    /* The program may have taken the signal for itself; where it now has its default action, it would kill.
     */
    if (signal_number && sigaction((int)signal_number, NULL, &found) == 0 && found.sa_handler != SIG_DFL &&
        !__atomic_exchange_n(&sent, 1, __ATOMIC_ACQ_REL))
        syscall(SYS_tgkill, self->pid, self->pid, signal_number);
    __atomic_fetch_sub(&senders, 1, __ATOMIC_SEQ_CST);
}
