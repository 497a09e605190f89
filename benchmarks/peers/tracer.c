/* A bare ptrace loop: sets a debug register of one thread, and at each trap takes old value, new value and
 * pc. `tracer PID ADDRESS`; prints READY, and when the program ends how many hits there were. */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

#define ROOM (1 << 20)

static struct {
    uint64_t old, new, pc;
} hits[ROOM];

static void *debug_register(int number)
{
    return (void *)(offsetof(struct user, u_debugreg) + (size_t)number * sizeof(long));
}

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    pid_t pid = atoi(arguments[1]);
    uint64_t address = strtoull(arguments[2], NULL, 0), old = 0, n = 0;
    int status;
    if (ptrace(PTRACE_SEIZE, pid, 0, 0) || ptrace(PTRACE_INTERRUPT, pid, 0, 0) ||
        waitpid(pid, &status, 0) < 0 || ptrace(PTRACE_POKEUSER, pid, debug_register(0), address) ||
        ptrace(PTRACE_POKEUSER, pid, debug_register(7), 1ul | 0xdul << 16)) { /* writes of 8 bytes */
        perror("ptrace");
        return 1;
    }
    ptrace(PTRACE_CONT, pid, 0, 0);
    puts("READY");
    fflush(stdout);
    while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
        int number = WSTOPSIG(status);
        if (number != SIGTRAP || status >> 16) {
            ptrace(PTRACE_CONT, pid, 0, status >> 16 ? 0 : number);
            continue;
        }
        struct iovec local = {&hits[n % ROOM].new, 8}, remote = {(void *)address, 8};
        process_vm_readv(pid, &local, 1, &remote, 1, 0);
        hits[n % ROOM].pc = (uint64_t)ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user, regs.rip), 0);
        hits[n % ROOM].old = old;
        old = hits[n % ROOM].new;
        n++;
        ptrace(PTRACE_CONT, pid, 0, 0);
    }
    printf("HITS [%lu, null]\n", n);
    return 0;
}
