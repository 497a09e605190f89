/* Functions of the program that go through us: shared by hooks.c, which has ours, and modules.c, which puts
 * them into the program's modules. */
#ifndef HWW_HOOKS_H
#define HWW_HOOKS_H

#include <stdint.h>

struct hww_hook {
    const char *name;
    void *ours;
    void **real;
    uint32_t groups; /* those that it belongs to, as bits */
};
/* The last has no name. */
extern const struct hww_hook hww_hooks[];
/* The groups that are to be in place. */
extern uint32_t hww_hooks_placed;

/* modules.c */
void hww_modules_look(int all);

#endif
