"""Runs inside lldb: a watchpoint, and a loop that keeps a record of each hit and goes on."""

import json
import os
import struct

import lldb

task = json.loads(os.environ["HWWATCH_BENCH"])


def serve():
    lldb.debugger.SetAsync(False)
    error = lldb.SBError()
    target = lldb.debugger.GetSelectedTarget()
    process = target.GetProcess()
    thread = process.GetThreadAtIndex(0)
    target.WatchAddress(task["address"], 8, False, True, error)
    if error.Fail():
        print("lldb:", error, flush=True)
        return
    hits = []
    print("READY", flush=True)
    while process.Continue().Success() and process.GetState() == lldb.eStateStopped:
        if thread.GetStopReason() == lldb.eStopReasonWatchpoint:
            value = struct.unpack("Q", process.ReadMemory(task["address"], 8, error))[0]
            hits.append((value, thread.GetFrameAtIndex(0).GetPC()))
    print("HITS", json.dumps([len(hits), hits[-1] if hits else None]), flush=True)
