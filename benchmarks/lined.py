"""A pure Python program that watches itself, by one of several ways; serves batches on its input.

`lined.py WAY`, then on each line `hit N` or `idle N`: N times round a loop of two lines, of which one writes
to the watched place, or none does. Answers seconds a round, and how many hits have been recorded so far.
"""

import ctypes
import json
import sys
import time

place = (ctypes.c_uint64 * 16)()
hits = []
last = 0


def hit(count):
    start = time.perf_counter()
    for i in range(count):
        place[3] = i + 1
    return (time.perf_counter() - start) / count


def idle(count):
    other = [0] * 16
    start = time.perf_counter()
    for i in range(count):
        other[3] = i + 1
    return (time.perf_counter() - start) / count


def compare(file, line):
    global last
    now = place[3]
    if now != last:
        hits.append((last, now, file, line))
        last = now


def settrace():
    previous = ["", 0]

    def local(frame, event, argument):
        if event == "line":
            compare(*previous)
            previous[:] = frame.f_code.co_filename, frame.f_lineno
        return local

    sys.settrace(lambda frame, event, argument: local)


def monitoring():
    previous = ["", 0]

    def line(code, number):
        compare(*previous)
        previous[:] = code.co_filename, number

    tool = sys.monitoring.DEBUGGER_ID
    sys.monitoring.use_tool_id(tool, "benchmark")
    sys.monitoring.register_callback(tool, sys.monitoring.events.LINE, line)
    sys.monitoring.set_events(tool, sys.monitoring.events.LINE)


def watchpoints():
    import watchpoints

    def changed(frame, element, where):
        hits.append((element.prev_obj, element.obj, where))

    watchpoints.watch(place[3], callback=changed)


watching = None


def hwwatch():
    global watching
    import hwwatch

    address = ctypes.addressof(place) + 3 * 8
    watching = hwwatch.watch(address, nbytes=8, kernel=False, name="place")


def recorded():
    return watching.hits if watching else len(hits)


def clear():
    if watching:
        sys.modules["hwwatch"].clear()
    hits.clear()


def serve(work):
    for request in sys.stdin:
        kind, count = request.split()
        clear()
        spent = work[kind](int(count))
        print(json.dumps([spent, recorded()]), flush=True)


if __name__ == "__main__":
    ways = (settrace, monitoring, watchpoints, hwwatch)
    way = next((way for way in ways if way.__name__ == sys.argv[1]), None)
    print("START", flush=True)
    if way:
        way()
    print("READY", flush=True)
    serve({"hit": hit, "idle": idle})
