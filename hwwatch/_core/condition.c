/* `when`: a compiled condition, decided in the handler.
 *
 * hwwatch/conditions.py proves that no integer leaves 127 bits; the arithmetic wraps all the same, so that
 * even a wrong program has defined behaviour. No call leaves this file but for libgcc's 128-bit helpers,
 * which are pure. Doubles round to nearest here whatever the interrupted code had set, flush-to-zero
 * included: the kernel enters signal handlers with a fresh FPU state (arch/x86/kernel/signal.c,
 * fpu__clear_user_states). */
#define _GNU_SOURCE
#include <math.h>

#include "core.h"

typedef __int128 wide;
typedef unsigned __int128 uwide;

union value {
    wide i;
    double f;
};

static double half(uint16_t bits)
{
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = exponent == 31  ? (fraction ? __builtin_nan("") : __builtin_inf())
                  : exponent == 0 ? fraction * 0x1p-24
                                  : (1024 + fraction) * 0x1p-25 * (double)(1u << exponent);
    return bits >> 15 ? -size : size;
}

static union value load(const struct hww_settings *settings, const unsigned char *bytes, uint32_t size)
{
    unsigned char raw[8] = {0};
    if (size == 0 || size > 8) /* the compiler refuses `old` and `new` of such */
        return (union value){.i = 0};
    for (uint32_t i = 0; i < size; i++)
        raw[i] = bytes[settings->swapped ? size - 1 - i : i];
    uint64_t word;
    memcpy(&word, raw, 8);
    union value out = {.i = word};
    if (settings->value_kind == HWW_VALUE_BOOL) {
        out.i = word != 0;
    } else if (settings->value_kind == HWW_VALUE_SIGNED) {
        unsigned unused = 64 - 8 * size;
        out.i = (int64_t)(word << unused) >> unused;
    } else if (settings->value_kind == HWW_VALUE_FLOAT) {
        float single;
        memcpy(&single, raw, 4);
        if (size == 8)
            memcpy(&out.f, raw, 8);
        else
            out.f = size == 4 ? (double)single : half((uint16_t)word);
    }
    return out;
}

/* -1, 0, 1 as the integer is below, equal to, above the double; 2 where that is not a number. Exact: a double
 * holds every integer part below 2**127 that a 128-bit integer can meet. */
static int compare_mixed(wide left, double right)
{
    if (isnan(right))
        return 2;
    if (right >= 0x1p127)
        return -1;
    if (right < -0x1p127)
        return 1;
    wide whole = (wide)right;
    if (left != whole)
        return left < whole ? -1 : 1;
    double rest = right - (double)whole;
    return rest > 0 ? -1 : rest < 0 ? 1 : 0;
}

static wide negative(wide value)
{
    return (wide)(0 - (uwide)value);
}

static wide floor_div(wide left, wide right)
{
    if (right == -1) /* INT128_MIN / -1 is undefined */
        return negative(left);
    wide quotient = left / right;
    return quotient - (left % right != 0 && (left < 0) != (right < 0));
}

static int differ(const unsigned char *left, const unsigned char *right, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++)
        if (left[i] != right[i])
            return 1;
    return 0;
}

static int run(const struct hww_settings *settings, const unsigned char *old_bytes,
               const unsigned char *new_bytes, uint32_t size, uint64_t hits, uint64_t thread)
{
    union value stack[HWW_STACK_DEPTH + 2] = {{0}};
    int top = 1; /* two unused below, so that a wrong program cannot underflow the array */
    for (uint32_t n = 0; n < settings->noperations && n < HWW_MAX_OPERATIONS; n++) {
        const struct hww_operation *operation = &settings->operations[n];
        union value *a = &stack[top - 1], *b = &stack[top];
        switch (operation->code) {
        case HWW_OP_INT:
        case HWW_OP_UINT:
        case HWW_OP_FLOAT:
        case HWW_OP_OLD:
        case HWW_OP_NEW:
        case HWW_OP_CHANGED:
        case HWW_OP_HITS:
        case HWW_OP_THREAD:
            if (top == HWW_STACK_DEPTH + 1)
                return 1; /* the compiler refuses such; record rather than lose */
            b = &stack[++top];
            break;
        case HWW_OP_TO_FLOAT:
        case HWW_OP_NEG_I:
        case HWW_OP_ABS_I:
        case HWW_OP_NEG_F:
        case HWW_OP_ABS_F:
        case HWW_OP_ISNAN:
        case HWW_OP_ISINF:
        case HWW_OP_NOT:
            if (top < 2)
                return 1;
            break;
        default:
            if (top < 3)
                return 1;
            if (operation->code != HWW_OP_SWAP)
                top--;
        }
        switch (operation->code) {
        case HWW_OP_INT:
            b->i = (int64_t)operation->operand;
            break;
        case HWW_OP_UINT:
            b->i = operation->operand;
            break;
        case HWW_OP_FLOAT:
            memcpy(&b->f, &operation->operand, 8);
            break;
        case HWW_OP_OLD:
            *b = load(settings, old_bytes, size);
            break;
        case HWW_OP_NEW:
            *b = load(settings, new_bytes, size);
            break;
        case HWW_OP_CHANGED:
            b->i = differ(old_bytes, new_bytes, size);
            break;
        case HWW_OP_HITS:
            b->i = hits;
            break;
        case HWW_OP_THREAD:
            b->i = thread;
            break;
        case HWW_OP_TO_FLOAT:
            b->f = (double)b->i;
            break;
        case HWW_OP_ADD_I:
            a->i = (wide)((uwide)a->i + (uwide)b->i);
            break;
        case HWW_OP_SUB_I:
            a->i = (wide)((uwide)a->i - (uwide)b->i);
            break;
        case HWW_OP_MUL_I:
            a->i = (wide)((uwide)a->i * (uwide)b->i);
            break;
        case HWW_OP_DIV_I:
            a->i = b->i ? floor_div(a->i, b->i) : 0;
            break;
        case HWW_OP_MOD_I:
            a->i = b->i ? (wide)((uwide)a->i - (uwide)floor_div(a->i, b->i) * (uwide)b->i) : 0;
            break;
        case HWW_OP_NEG_I:
            b->i = negative(b->i);
            break;
        case HWW_OP_ABS_I:
            b->i = b->i < 0 ? negative(b->i) : b->i;
            break;
        case HWW_OP_ADD_F:
            a->f += b->f;
            break;
        case HWW_OP_SUB_F:
            a->f -= b->f;
            break;
        case HWW_OP_MUL_F:
            a->f *= b->f;
            break;
        case HWW_OP_DIV_F:
            a->f /= b->f;
            break;
        case HWW_OP_NEG_F:
            b->f = -b->f;
            break;
        case HWW_OP_ABS_F:
            b->f = __builtin_fabs(b->f);
            break;
        case HWW_OP_ISNAN:
            b->i = isnan(b->f) != 0;
            break;
        case HWW_OP_ISINF:
            b->i = isinf(b->f) != 0;
            break;
        case HWW_OP_LT_I:
            a->i = a->i < b->i;
            break;
        case HWW_OP_LE_I:
            a->i = a->i <= b->i;
            break;
        case HWW_OP_EQ_I:
            a->i = a->i == b->i;
            break;
        case HWW_OP_LT_F:
            a->i = a->f < b->f;
            break;
        case HWW_OP_LE_F:
            a->i = a->f <= b->f;
            break;
        case HWW_OP_EQ_F:
            a->i = a->f == b->f;
            break;
        case HWW_OP_LT_M:
            a->i = compare_mixed(a->i, b->f) == -1;
            break;
        case HWW_OP_GT_M:
            a->i = compare_mixed(a->i, b->f) == 1;
            break;
        case HWW_OP_EQ_M:
            a->i = compare_mixed(a->i, b->f) == 0;
            break;
        case HWW_OP_SWAP: {
            union value other = *a;
            *a = *b;
            *b = other;
            break;
        }
        case HWW_OP_AND:
            a->i = a->i && b->i;
            break;
        case HWW_OP_OR:
            a->i = a->i || b->i;
            break;
        case HWW_OP_NOT:
            b->i = !b->i;
            break;
        default:
            return 1;
        }
    }
    return top < 2 || stack[top].i != 0;
}

/* Whether a hit passes: true for at least one of the values that changed, or where none did of those that may
 * have been touched. The arguments are whole snapshots; bit b of `touched` stands for their byte b. Without
 * any value, as for code, nothing ever changes. */
int hww_condition_true(const struct hww_settings *settings, const unsigned char *old_bytes,
                       const unsigned char *new_bytes, uint32_t touched, uint64_t hits, uint64_t thread)
{
    if (!settings->noperations)
        return 1;
    int values = 0;
    for (int changed = 1; changed >= 0; changed--) {
        int any = 0;
        for (uint32_t i = 0; i < settings->nleaves && i < HWW_MAX_LEAVES; i++) {
            uint32_t offset = settings->leaves[i].offset, size = settings->leaves[i].size;
            if (offset + size > HWW_SNAPSHOT)
                continue;
            values = 1;
            uint32_t bytes = (uint32_t)(((1ull << size) - 1) << offset);
            if (changed ? !differ(old_bytes + offset, new_bytes + offset, size) : !(touched & bytes))
                continue;
            any = 1;
            if (run(settings, old_bytes + offset, new_bytes + offset, size, hits, thread))
                return 1;
        }
        if (any)
            return 0;
    }
    return values ? 0 : run(settings, old_bytes, new_bytes, 0, hits, thread);
}
