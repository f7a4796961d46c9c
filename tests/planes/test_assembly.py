"""What a worker does once its plane is made."""

from __future__ import annotations

import subprocess
import sys


def test_a_worker_collects_garbage_seldom_and_nothing_that_lives_as_long_as_it() -> None:
    """In a process of its own, because it is for the whole process. What is made later is still collected."""
    program = """
import gc, weakref
from keyman.planes import assembly

class Node:
    pass

kept = [Node() for _ in range(1000)]
assembly._collect_seldom()
assert gc.get_freeze_count() > 1000
assert not any(one in kept for one in gc.get_objects() if isinstance(one, Node))
node = Node()
node.itself = node
gone = weakref.ref(node)
del node
made = [[] for _ in range(assembly.COLLECT_AFTER[0] + 1)]
assert gone() is None
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
