/* Calls of the loaded modules that go through us: entries of their global offset tables (hooks.c has what
 * is put there). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core.h"
#include "hooks.h"

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
            for (const struct hww_hook *hook = hww_hooks; hook->name; hook++) {
                int on = (hook->groups & pass->groups) != 0, is_on = *entry == hook->ours;
                if (on != is_on && !strcmp(name, hook->name))
                    write_entry(entry, on ? hook->ours : *hook->real,
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
void hww_modules_look(int all)
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
        if (dladdr((void *)hww_modules_look, &here))
            own_base = (uintptr_t)here.dli_fbase;
        pthread_mutex_lock(&looking);
        struct pass pass = {HWW_LOAD(&hww_hooks_placed),
                            all || now.unloaded != known.unloaded ? 0 : known.count, now, 0};
        dl_iterate_phdr(change_module, &pass);
        if (!pass.stale)
            known = now;
        pthread_mutex_unlock(&looking);
        if (!pass.stale)
            return;
    }
}

/* A fork while another thread holds the lock would leave it locked in the child. */
void hww_modules_fork(int stage)
{
    if (stage == 0)
        pthread_mutex_lock(&looking);
    else
        pthread_mutex_unlock(&looking);
}
