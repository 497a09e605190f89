/* Names of threads and processes that made hits, kept for when they are gone. */
#define _GNU_SOURCE
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"

/* Put a name on the list, newest first. A process that dies here costs its own name and stops nobody. */
int hww_name_note(int32_t tid, int32_t pid, const char *name, uint32_t given)
{
    struct hww_shared *shared = hww_region.shared;
    uint32_t id;
    struct hww_name *entry = shared ? hww_intern_reserve(sizeof *entry, &id) : NULL;
    if (!entry)
        return -ENOSPC;
    memset(entry->name, 0, sizeof entry->name);
    for (size_t i = 0; i < sizeof entry->name - 1 && name[i]; i++)
        entry->name[i] = name[i];
    entry->tid = tid;
    entry->pid = pid;
    entry->given = given;
    uint32_t newest = HWW_LOAD(&shared->names);
    do
        entry->before = newest;
    while (!__atomic_compare_exchange_n(&shared->names, &newest, id, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return 0;
}

/* In the handler, at a thread's first hit: what the kernel calls it (proc(5), comm). */
void hww_name_thread(const struct hww_thread *self)
{
    char name[16] = "";
    if (syscall(SYS_prctl, PR_GET_NAME, name) == 0)
        hww_name_note(self->tid, self->pid, name, 0);
}
