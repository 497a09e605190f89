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
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

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
static uint32_t placed;
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

static const struct hook {
    const char *name;
    void *ours;
    void **real;
    uint32_t groups;
} hooks[] = {
    {"pthread_create", (void *)our_create, (void **)&real_create, THREADS},
    {"pthread_sigmask", (void *)our_pthread_sigmask, (void **)&real_pthread_sigmask, THREADS},
    {"sigprocmask", (void *)our_sigprocmask, (void **)&real_sigprocmask, THREADS},
    {"sigaction", (void *)our_sigaction, (void **)&real_sigaction, GUARD | THREADS},
    {"signal", (void *)our_signal, (void **)&real_signal, GUARD | THREADS},
    {"dlopen", (void *)hww_our_dlopen, (void **)&hww_real_dlopen, GUARD | THREADS},
};
#define HOOKS (sizeof hooks / sizeof *hooks)

/* What dl_iterate_phdr tells of a module's relocations. */
struct relocations {
    const ElfW(Rela) * first;
    size_t count;
};

/* A table that was made read-only after start (RELRO) is opened for the moment. */
static void write_entry(void **entry, void *value, int read_only)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)entry & ~(page - 1);
    if (read_only && mprotect((void *)at, page, PROT_READ | PROT_WRITE) < 0)
        return;
    HWW_STORE(entry, value);
    if (read_only)
        mprotect((void *)at, page, PROT_READ);
}

/* Where this module lies: its own calls stay as they are. */
static uintptr_t own_base;

/* The modules that are in the loader's list: how many, and how many were unloaded so far. */
struct modules {
    unsigned long long count, unloaded;
};

/* One pass over the modules: which hooks, how many modules need no look, and which may be looked at. */
struct pass {
    uint32_t groups;
    unsigned long long skip;
    struct modules loaded;
    int stale; /* modules were unloaded meanwhile: the first ones are others now */
};

static int change_module(struct dl_phdr_info *module, size_t size, void *argument)
{
    (void)size;
    struct pass *pass = argument;
    if (module->dlpi_subs != pass->loaded.unloaded)
        pass->stale = 1;
    if (pass->stale || !pass->loaded.count)
        return 1;
    pass->loaded.count--;
    if (pass->skip) {
        pass->skip--;
        return 0;
    }
    const ElfW(Dyn) *dynamic = NULL;
    uintptr_t guarded = 0, guarded_end = 0;
    for (int i = 0; i < module->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &module->dlpi_phdr[i];
        if (header->p_type == PT_DYNAMIC)
            dynamic = (const ElfW(Dyn) *)(module->dlpi_addr + header->p_vaddr);
        if (header->p_type == PT_GNU_RELRO) {
            guarded = module->dlpi_addr + header->p_vaddr;
            guarded_end = (guarded + header->p_memsz) & ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
        }
    }
    if (!dynamic || module->dlpi_addr == own_base)
        return 0;
    struct relocations lists[2] = {{NULL, 0}, {NULL, 0}};
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    for (; dynamic->d_tag != DT_NULL; dynamic++) {
        uintptr_t value = dynamic->d_un.d_ptr;
        /* The loader has made most of these absolute; not those of the vDSO. */
        uintptr_t address = value < module->dlpi_addr ? value + module->dlpi_addr : value;
        switch (dynamic->d_tag) {
        case DT_JMPREL:
            lists[0].first = (const ElfW(Rela) *)address;
            break;
        case DT_PLTRELSZ:
            lists[0].count = dynamic->d_un.d_val / sizeof(ElfW(Rela));
            break;
        case DT_RELA:
            lists[1].first = (const ElfW(Rela) *)address;
            break;
        case DT_RELASZ:
            lists[1].count = dynamic->d_un.d_val / sizeof(ElfW(Rela));
            break;
        case DT_SYMTAB:
            symbols = (const ElfW(Sym) *)address;
            break;
        case DT_STRTAB:
            strings = (const char *)address;
            break;
        }
    }
    for (int list = 0; list < 2 && symbols && strings; list++)
        for (size_t i = 0; lists[list].first && i < lists[list].count; i++) {
            const ElfW(Rela) *relocation = &lists[list].first[i];
            uint32_t type = (uint32_t)ELF64_R_TYPE(relocation->r_info);
            if (type != R_X86_64_JUMP_SLOT && type != R_X86_64_GLOB_DAT)
                continue;
            const char *name = strings + symbols[ELF64_R_SYM(relocation->r_info)].st_name;
            void **entry = (void **)(module->dlpi_addr + relocation->r_offset);
            for (size_t hook = 0; hook < HOOKS; hook++) {
                int on = (hooks[hook].groups & pass->groups) != 0, is_on = *entry == hooks[hook].ours;
                if (on != is_on && !strcmp(name, hooks[hook].name))
                    write_entry(entry, on ? hooks[hook].ours : *hooks[hook].real,
                                (uintptr_t)entry >= guarded && (uintptr_t)entry < guarded_end);
            }
        }
    return 0;
}

static int count_module(struct dl_phdr_info *module, size_t size, void *argument)
{
    (void)size;
    struct modules *modules = argument;
    modules->count++;
    modules->unloaded = module->dlpi_subs;
    return 0;
}

/* What has been looked at, under the lock. It is held during each pass over the modules, so that no child is
 * born with the lock that dl_iterate_phdr takes; not during dladdr, since one that holds the loader's lock
 * may come for ours, from a constructor that creates a thread. */
static struct modules known;
static pthread_mutex_t looking = PTHREAD_MUTEX_INITIALIZER;

/* Put the hooks that are to be there into modules that have come meanwhile, or into all. A module is in the
 * list before it is relocated, and its tables are written, then made read-only, by the thread that loads it:
 * only those are touched whose loading has ended. The loader's lock, which dladdr takes, tells that. */
static void look(int all)
{
    for (int tries = 0; tries < 20; tries++) {
        Dl_info here;
        struct modules now = {0, 0};
        pthread_mutex_lock(&looking);
        dl_iterate_phdr(count_module, &now);
        int same = now.count == known.count && now.unloaded == known.unloaded;
        pthread_mutex_unlock(&looking);
        if (!all && same)
            return;
        if (dladdr((void *)our_create, &here))
            own_base = (uintptr_t)here.dli_fbase;
        pthread_mutex_lock(&looking);
        struct pass pass = {HWW_LOAD(&placed), all || now.unloaded != known.unloaded ? 0 : known.count, now,
                            0};
        dl_iterate_phdr(change_module, &pass);
        if (!pass.stale)
            known = now;
        pthread_mutex_unlock(&looking);
        if (!pass.stale)
            return;
    }
}

static void look_for_modules(void)
{
    if (HWW_LOAD(&placed))
        look(0);
}

static int place(uint32_t groups)
{
    for (size_t hook = 0; hook < HOOKS && !*hooks[HOOKS - 1].real; hook++)
        *hooks[hook].real = dlsym(RTLD_DEFAULT, hooks[hook].name);
    for (size_t hook = 0; hook < HOOKS; hook++)
        if (!*hooks[hook].real)
            return -ENOSYS;
    int changed = __atomic_exchange_n(&placed, groups, __ATOMIC_ACQ_REL) != groups;
    if (changed || groups)
        look(changed);
    return 0;
}

/* A fork while another thread holds the lock would leave it locked in the child. */
void hww_hooks_fork(int stage)
{
    if (stage == 0)
        pthread_mutex_lock(&looking);
    else
        pthread_mutex_unlock(&looking);
}

/* Threads are to tell us, in all modules that are loaded by now, or no longer. 1: they did not before; 0:
 * they did; or -errno. */
int hww_hooks_set(int on)
{
    int first = on && !(placed & THREADS);
    if (!on && !(placed & THREADS))
        return 0;
    int error = place(on ? placed | THREADS : placed & ~THREADS);
    if (!error && (first || !on))
        relieve_handlers(on);
    return error ? error : first;
}

/* Our signals are to stay ours, or no longer; where that is impossible, it is told who took them. */
void hww_hooks_guard(int on)
{
    place(on ? placed | GUARD : placed & ~GUARD);
}
