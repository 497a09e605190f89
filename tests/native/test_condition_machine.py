"""The machine in condition.c survives programs that the compiler would never make."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "hwwatch" / "_core"
DRIVER = """
#include <stdio.h>
#include <stdlib.h>
#include "core.h"

static uint64_t state = 88172645463325252u;

static uint64_t word(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static uint64_t operand(void)
{
    static const uint64_t special[] = {0, 1, -1ull, 1ull << 63, 0x7ff0000000000000, 0xfff0000000000000,
                                       0x7ff8000000000001, 0x47dfffffffffffff, 0x47e0000000000000,
                                       0xc7e0000000000000, 0xc7e0000000000001};
    return word() % 2 ? word() : special[word() % 11];
}

int main(void)
{
    uint64_t true_ones = 0;
    for (int n = 0; n < 300000; n++) {
        /* On the heap and of the exact size, so that a byte too far is noticed. */
        struct hww_settings *program = calloc(1, sizeof *program);
        unsigned char *old = malloc(HWW_SNAPSHOT), *new = malloc(HWW_SNAPSHOT);
        int wild = n % 8 == 0;
        for (int i = 0; i < HWW_SNAPSHOT; i++) {
            old[i] = word() % 3 ? 0xff : word();
            new[i] = word() % 3 ? old[i] : word();
        }
        program->value_kind = word() % (wild ? 9 : 5);
        program->swapped = word() % 2;
        program->nleaves = wild ? word() : word() % 4;
        for (int i = 0; i < HWW_MAX_LEAVES; i++) {
            program->leaves[i].offset = wild ? word() : word() % 24;
            program->leaves[i].size = wild ? word() : 1 << word() % 4;
        }
        program->noperations = wild ? word() : 1 + word() % HWW_MAX_OPERATIONS;
        int depth = 0;
        for (int i = 0; i < HWW_MAX_OPERATIONS; i++) {
            /* Mostly programs that go on to the end, with types as they come. */
            uint32_t push = depth < 2 || (depth < HWW_STACK_DEPTH && word() % 3 == 0);
            uint32_t code = push ? word() % (HWW_OP_THREAD + 1)
                                 : HWW_OP_TO_FLOAT + word() % (HWW_OP_NOT - HWW_OP_TO_FLOAT + 1);
            program->operations[i].code = wild ? word() % (HWW_OP_NOT + 4) : code;
            program->operations[i].operand = operand();
            switch (code) {
            case HWW_OP_TO_FLOAT: case HWW_OP_NEG_I: case HWW_OP_ABS_I: case HWW_OP_NEG_F: case HWW_OP_ABS_F:
            case HWW_OP_ISNAN: case HWW_OP_ISINF: case HWW_OP_NOT: case HWW_OP_SWAP:
                break;
            default:
                depth += push ? 1 : -1;
            }
        }
        int answer = hww_condition_true(program, old, new, UINT32_MAX, word(), word());
        if (answer != 0 && answer != 1)
            return 1;
        true_ones += answer;
        free(program);
        free(old);
        free(new);
    }
    printf("%llu\\n", (unsigned long long)true_ones);
    return 0;
}
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], subprocess.CompletedProcess[str]]:
    """The machine with a driver that feeds it random programs, stopping at undefined behaviour."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    (folder / "driver.c").write_text(DRIVER)
    compiler = ["cc", "-std=gnu11", "-O1", "-g", "-fsanitize=undefined,address", "-fno-sanitize-recover=all"]
    if subprocess.run([*compiler, "empty.c", "-o", "empty"], cwd=folder, capture_output=True).returncode:
        pytest.skip("cc has no sanitizers")
    command = [*compiler, f"-I{CORE}", "driver.c", str(CORE / "condition.c"), "-o", "driver"]
    subprocess.run(command, cwd=folder, check=True, timeout=60)
    return lambda: subprocess.run([folder / "driver"], capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_wrong_programs_do_no_harm(sanitized: Callable[[], subprocess.CompletedProcess[str]]) -> None:
    done = sanitized()
    assert (done.returncode, done.stderr) == (0, "")
    assert 0 < int(done.stdout) < 300000
