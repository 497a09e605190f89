"""Runs inside gdb: a hardware watchpoint whose Python stop() keeps a record of each hit and goes on.

The environment says what to do: HWWATCH_BENCH is JSON with "address", "way", "helper", "thread_state",
"layout". Ways: "values" keeps old, new and pc; "offsets" also the Python file and line, read from memory
where this version of CPython keeps them; "stack" those of 16 frames; "helper" file and line by CPython's own
gdb helper.
"""

import json
import os
import struct

import gdb

task = json.loads(os.environ["HWWATCH_BENCH"])
address, way, layout = task["address"], task["way"], task["layout"]
memory = gdb.selected_inferior()
hits = []


def word(at):
    return struct.unpack("Q", memory.read_memory(at, 8))[0]


def text(at):
    size = word(at + 16)
    return bytes(memory.read_memory(at + layout["str_ascii_data"], size)).decode()


def lines(table, first):
    """Line by code unit, of a location table (CPython Objects/locations.md)."""
    found, line, at = [], first, 0
    while at < len(table):
        kind, units = table[at] >> 3 & 15, (table[at] & 7) + 1
        at += 1
        delta, here = 0, True
        if kind == 15:
            here = False
        elif kind >= 13:
            value, shift = 0, 0
            while True:
                value |= (table[at] & 63) << shift
                shift += 6
                at += 1
                if not table[at - 1] & 64:
                    break
            delta = -(value >> 1) if value & 1 else value >> 1
        elif kind >= 10:
            delta = kind - 10
        line += delta
        found += [line if here else None] * units
        while at < len(table) and not table[at] & 128:
            at += 1
    return found


codes = {}
FRAMES = {"offsets": 1, "stack": 16}


def python_lines(most):
    """File and line of the innermost Python frames, at most `most`, of the thread of `thread_state`."""
    frame = word(task["thread_state"] + layout["tstate_frame"])
    if layout["has_cframe"]:
        frame = word(frame + layout["cframe_frame"])
    found = []
    while frame and len(found) < most:
        code = word(frame + layout["frame_code"])
        at = word(frame + layout["frame_instruction"]) - code - layout["code_bytecode"]
        if code not in codes:
            table = word(code + layout["code_linetable"])
            size = word(table + 16)
            first = struct.unpack("i", memory.read_memory(code + layout["code_firstlineno"], 4))[0]
            raw = bytes(memory.read_memory(table + 32, size))
            codes[code] = text(word(code + layout["code_filename"])), lines(raw, first)
        file, units = codes[code]
        found.append((file, units[at // 2]))
        frame = word(frame + layout["frame_previous"]) if len(found) < most else 0
    return found


def helper_line():
    frame = Frame.get_selected_python_frame()  # noqa: F821  # the helper's
    operation = frame and frame.get_pyop()
    return (operation.filename(), operation.current_line_num()) if operation else ("", None)


class Watchpoint(gdb.Breakpoint):
    old = 0

    def stop(self):
        new = struct.unpack("Q", memory.read_memory(address, 8))[0]
        where = helper_line() if way == "helper" else python_lines(FRAMES[way]) if way in FRAMES else ()
        hits.append((self.old, new, gdb.newest_frame().pc(), where))
        self.old = new
        return False


if way == "helper":
    gdb.execute("source " + task["helper"])
Watchpoint(f"*(unsigned long *) {address}", gdb.BP_WATCHPOINT, gdb.WP_WRITE).silent = True
print("READY", flush=True)
try:
    while memory.pid:  # gdb stops of itself now and then: what it cannot explain
        said = gdb.execute("continue", to_string=True)
        if memory.pid:
            print("STOPPED", said.strip().splitlines()[-1:], flush=True)
except gdb.error as error:
    print("ERROR", error, flush=True)
if "out" in task:
    with open(task["out"], "w") as out:
        json.dump(hits, out)
print("HITS", json.dumps([len(hits), hits[-1] if hits else None]), flush=True)
