/* Waking Python for a hit, from the handler. */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"

static uint32_t number; /* of the signal that hwwatch/safepoints.py handles; 0: nobody listens */
static uint32_t sent;   /* one is on its way: real-time signals would queue up */

void hww_notify_configure(uint32_t signal_number)
{
    HWW_STORE(&sent, 0);
    HWW_STORE(&number, signal_number);
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
    uint32_t signal_number = HWW_LOAD(&number);
    struct sigaction found;
    if (!signal_number)
        return;
    /* The program may have taken the signal for itself; where it now has its default action, it would kill.
     */
    if (sigaction((int)signal_number, NULL, &found) < 0 || found.sa_handler == SIG_DFL)
        return;
    if (!__atomic_exchange_n(&sent, 1, __ATOMIC_ACQ_REL))
        syscall(SYS_tgkill, self->pid, self->pid, signal_number);
}
