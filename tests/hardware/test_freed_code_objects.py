"""Code that is freed, and whose memory becomes other code, never gives its name or line to the other."""

from __future__ import annotations

from typing import Any

import numpy as np

ROUNDS = 3000


def test_three_thousand_executed_and_freed_functions(session: Any) -> None:
    array = np.full(1, -1.0)
    addresses = set()
    with session.watching(array) as watch:
        for i in range(ROUNDS):
            blank = i * 7 % 50
            source = "\n" * blank + f"def name_{i}(a):\n    a[0] = {i}\nname_{i}(a)\n"
            names: dict[str, Any] = {"a": array}
            exec(compile(source, f"<cell {i % 100}>", "exec"), names)
            addresses.add(id(names[f"name_{i}"].__code__))
            names.clear()  # ends the cycle through the globals: freed at once
    assert len(addresses) < ROUNDS / 2  # else nothing was reused, and nothing tested
    rows = watch.timeline(stack=True)
    assert rows.new.tolist() == list(range(ROUNDS))
    assert rows.function.tolist() == [f"name_{i}" for i in range(ROUNDS)]
    assert rows.file.tolist() == [f"<cell {i % 100}>" for i in range(ROUNDS)]
    assert rows.line.tolist() == [i * 7 % 50 + 2 for i in range(ROUNDS)]
    for i, stack in enumerate(rows["stack"]):
        assert stack[1] == f"<module> (<cell {i % 100}>:{i * 7 % 50 + 3})"
