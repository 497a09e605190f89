"""`perf_begin.py perf record …`: runs it with its events off, switches them on, then prints READY."""

import os
import subprocess
import sys

told, tell = os.pipe()
hear, answer = os.pipe()
perf = subprocess.Popen(
    [*sys.argv[1:], "--delay", "-1", "--control", f"fd:{told},{answer}"], pass_fds=(told, answer)
)
os.close(told)
os.close(answer)
os.write(tell, b"enable\n")
print("READY" if os.read(hear, 4) == b"ack\n" else "perf did not begin", flush=True)
perf.wait()
