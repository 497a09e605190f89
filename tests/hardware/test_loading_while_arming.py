"""Modules are loaded while others are armed and threads begin: the loader's locks and ours in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SOURCE = """
#include <dlfcn.h>
#include <pthread.h>
static volatile int stop;
static volatile long loads, births;
static const char *paths[2];
static pthread_t threads[4];
static void *load(void *path)
{
    while (!stop) {
        void *handle = dlopen(path, RTLD_NOW);
        if (handle)
            dlclose(handle);
        loads++;
    }
    return 0;
}
static void *nothing(void *given) { return given; }
static void *create(void *given)
{
    while (!stop) {
        pthread_t thread;
        if (!pthread_create(&thread, 0, nothing, 0))
            pthread_join(thread, 0);
        births++;
    }
    return given;
}
void begin(const char *one, const char *other)
{
    paths[0] = one;
    paths[1] = other;
    for (int i = 0; i < 2; i++) {
        pthread_create(&threads[i], 0, load, (void *)paths[i]);
        pthread_create(&threads[2 + i], 0, create, 0);
    }
}
long end(void)
{
    stop = 1;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], 0);
    return loads < births ? loads : births;
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", [pytest.param("perf", marks=pytest.mark.perf), "ptrace"])
def test_no_deadlock(in_child: Callable[..., Any], build: Callable[..., str], backend: str) -> None:
    def work(backend, path, one, other):
        library, array = ctypes.CDLL(path), np.zeros(8)
        one, other = one.encode(), other.encode()
        library.begin(one, other)
        rounds, end = 0, time.monotonic() + 4
        while time.monotonic() < end:
            with hwwatch.watching(array[4:5], backend=backend) as w:
                array[4] = rounds
            rounds += 1
        return rounds, w.hits, w.lost, library.end()

    import shutil

    empty = build("int nothing(void) { return 0; }")
    copies = [shutil.copy(empty, f"{empty}.{n}.so") for n in range(2)]
    rounds, hits, lost, crowd = in_child(work, backend, build(SOURCE, "-ldl"), *map(str, copies), timeout=60)
    assert rounds > 3
    assert crowd > 10
    assert (hits, lost) == (1, 0)


FORKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile int stop;
static volatile long loads;
/* One that is loaded already: the loader itself changes no list. */
static void *load(void *path)
{
    for (; !stop; loads++)
        dlclose(dlopen(path, RTLD_NOW));
    return 0;
}
static int nothing(struct dl_phdr_info *module, size_t size, void *given) { return 1; }
/* How many of the children hung as they went through the modules. */
int forks(const char *path, int count)
{
    pthread_t thread;
    int hung = 0, status;
    dlopen(path, RTLD_NOW);
    pthread_create(&thread, 0, load, (void *)path);
    while (!loads)
        ;
    for (int i = 0; i < count && hung < 2; i++) {
        pid_t child = fork();
        if (!child) {
            alarm(5);
            dl_iterate_phdr(nothing, 0);
            _exit(0);
        }
        waitpid(child, &status, 0);
        hung += status != 0;
    }
    stop = 1;
    pthread_join(thread, 0);
    return hung;
}
"""


@pytest.mark.slow
def test_children_find_the_loaders_lock_free(in_child: Callable[..., Any], build: Callable[..., str]) -> None:
    """A fork while another thread looks for modules."""

    def work(path, module):
        library, array = ctypes.CDLL(path), np.zeros(8)
        w = hwwatch.watch(array[4:5])
        return library.forks(module.encode(), 500), w.armed

    assert in_child(work, build(FORKS, "-ldl"), build("int nothing(void) { return 0; }")) == [0, True]
