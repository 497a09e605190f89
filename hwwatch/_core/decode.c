/* Which bytes did the instruction before a pc touch? Enough of x86-64 for the handler to tell watches apart
 * when a trap names none. Timelines are made with a full decoder (hwwatch/code); what is unknown here is left
 * to it.
 *
 * Instructions have no marks at their end: each of the 15 places where the one before pc may begin is tried.
 * Those count whose bytes end exactly at pc, and whose operand, by the registers as they are now, touches
 * what is watched. Pure; reads the code under a guard of its caller's (hww_guarded). */
#include "core.h"
#include "opcodes.h"

static int access_size(int flags, const struct hww_instruction *self)
{
    if (flags & OP_BYTE)
        return 1;
    if (flags & OP_WORD)
        return 2;
    if (flags & OP_DOUBLE)
        return 4;
    if (flags & OP_QUAD)
        return 8;
    if (flags & OP_SCALAR)
        return self->prefixF3 ? 4 : self->prefixF2 ? 8 : self->vex ? self->length : 16;
    if (flags & OP_VECTOR)
        return self->vex                                                              ? self->length
               : self->prefix66 || self->prefixF3 || self->prefixF2 || self->map != 1 ? 16
                                                                                      : 0;
    return self->rex_w ? 8 : self->prefix66 ? 2 : 4;
}

/* Prefixes and opcode; 0 where there is no instruction that could be meant. */
static int read_opcode(struct hww_instruction *self, const uint8_t *end, uint8_t *op)
{
    int rex = 0;
    for (; self->at < end; self->at++) {
        uint8_t byte = *self->at;
        if (byte == 0x66)
            self->prefix66 = 1;
        else if (byte == 0xf2)
            self->prefixF2 = 1;
        else if (byte == 0xf3)
            self->prefixF3 = 1;
        else if (byte == 0x64 || byte == 0x65)
            self->segment = 1;
        else if (byte == 0x67)
            self->short_address = 1;
        else if (byte != 0xf0 && byte != 0x2e && byte != 0x36 && byte != 0x3e && byte != 0x26)
            break;
    }
    if (self->at < end && (*self->at & 0xf0) == 0x40) {
        rex = *self->at++;
        self->rex_w = rex >> 3 & 1;
        self->rex_r = rex >> 2 & 1;
        self->rex_x = rex >> 1 & 1;
        self->rex_b = rex & 1;
    }
    if (end - self->at < 2)
        return 0;
    uint8_t byte = *self->at++;
    int pp = 0;
    if (!rex && (byte == 0xc5 || byte == 0xc4 || byte == 0x62)) {
        int rest = byte == 0xc5 ? 1 : byte == 0xc4 ? 2 : 3;
        if (end - self->at < rest + 2)
            return 0;
        uint8_t first = self->at[0], last = byte == 0xc4 ? self->at[1] : byte == 0x62 ? self->at[1] : first;
        self->rex_r = !(first >> 7);
        self->map = 1;
        if (byte != 0xc5) {
            self->rex_x = !(first >> 6 & 1);
            self->rex_b = !(first >> 5 & 1);
            self->map = first & (byte == 0xc4 ? 0x1f : 7);
            self->rex_w = last >> 7;
        }
        pp = last & 3;
        self->length = last >> 2 & 1 ? 32 : 16;
        self->vex = 1;
        if (byte == 0x62) {
            uint8_t third = self->at[2];
            self->vex = 2;
            self->length = 16 << (third >> 5 & 3);
            self->broadcast = third >> 4 & 1;
            if (third & 7) /* masked: what it touches is not told here */
                return 0;
        }
        self->at += rest;
        self->prefix66 |= pp == 1;
        self->prefixF3 |= pp == 2;
        self->prefixF2 |= pp == 3;
        *op = *self->at++;
        return self->map >= 1 && self->map <= 3 && self->length <= 64;
    }
    *op = byte;
    if (byte != 0x0f)
        return 1;
    *op = *self->at++;
    self->map = 1;
    if (*op == 0x38 || *op == 0x3a) {
        self->map = *op == 0x38 ? 2 : 3;
        if (self->at >= end)
            return 0;
        *op = *self->at++;
    }
    return 1;
}

/* The register that hww_moment keeps at a place, by its number in machine code. */
static uint64_t value_of(int number, const uint64_t registers[HWW_REGISTERS])
{
    static const uint8_t place[16] = {0, 2, 3, 1, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15};
    return registers[place[number]];
}

/* EVEX counts an 8-bit displacement in units of the access, for the plain moves that are known here. */
static int displacement_unit(const struct hww_instruction *self, int size)
{
    return self->vex == 2 ? size : 1;
}

/* ModRM, SIB, displacement. 1: a memory operand, 0: none, or not this one. */
static int read_operand(struct hww_instruction *self, const uint8_t *end, int *flags, uint8_t op,
                        const uint64_t registers[HWW_REGISTERS], struct hww_reach *out)
{
    if (self->at >= end)
        return 0;
    uint8_t modrm = *self->at++;
    int mod = modrm >> 6, reg = modrm >> 3 & 7, rm = modrm & 7, clobbered = 0;
    if (mod == 3 || self->short_address || self->segment)
        return 0;
    *flags = hww_opcode_flags(self, op, reg);
    int size = *flags ? access_size(*flags, self) : 0;
    if (!size || (self->vex == 2 && (self->broadcast || self->map != 1)))
        return 0;
    int target = *flags & OP_LOADS ? reg | self->rex_r << 3 : -1, relative = 0;
    uint64_t address = 0;
    if (rm == 4) {
        if (self->at >= end)
            return 0;
        uint8_t sib = *self->at++;
        int base = (sib & 7) | self->rex_b << 3, index = (sib >> 3 & 7) | self->rex_x << 3;
        if (index != 4) {
            address += value_of(index, registers) << (sib >> 6);
            clobbered |= index == target;
        }
        if ((sib & 7) == 5 && mod == 0) {
            mod = 4; /* 32-bit displacement, no base */
        } else {
            address += value_of(base, registers);
            clobbered |= base == target;
        }
    } else if (rm == 5 && mod == 0) {
        mod = 4;
        relative = 1;
    } else {
        address += value_of(rm | self->rex_b << 3, registers);
        clobbered |= (rm | self->rex_b << 3) == target;
    }
    if (mod == 1) {
        if (end - self->at < 1)
            return 0;
        address += (uint64_t)((int64_t)(int8_t)*self->at * displacement_unit(self, size));
        self->at += 1;
    } else if (mod == 2 || mod == 4) {
        int32_t displacement;
        if (end - self->at < 4)
            return 0;
        memcpy(&displacement, self->at, sizeof displacement);
        address += (uint64_t)(int64_t)displacement;
        self->at += 4;
    }
    if (relative)
        address += (uint64_t)end;
    out->address = address;
    out->nbytes = (uint32_t)size;
    out->access = (uint32_t)(*flags & OP_BOTH);
    out->vague = (uint32_t)clobbered;
    return 1;
}

/* An instruction from `start` that ends exactly at `end`. */
static int decode_at(const uint8_t *start, const uint8_t *end, const uint64_t registers[HWW_REGISTERS],
                     struct hww_reach *out)
{
    struct hww_instruction self = {.at = start};
    uint8_t op;
    int flags = 0;
    if (!read_opcode(&self, end, &op) || !read_operand(&self, end, &flags, op, registers, out))
        return 0;
    if (flags & OP_IMM8 || (self.map == 3 && !(flags & OP_IMM8)))
        self.at += 1;
    if (flags & OP_IMM)
        self.at += self.prefix66 && !self.rex_w ? 2 : 4;
    out->length = (uint32_t)(end - start);
    return self.at == end;
}

/* All that the instruction before `pc` may have been, shortest first; how many. */
int hww_decode_before(uint64_t pc, const uint64_t registers[HWW_REGISTERS], struct hww_reach out[HWW_LONGEST])
{
    const uint8_t *end = (const uint8_t *)pc;
    int count = 0;
    for (int length = 2; length <= HWW_LONGEST; length++)
        count += decode_at(end - length, end, registers, &out[count]);
    return count;
}
