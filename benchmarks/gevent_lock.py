"""Does a patched lock that is free wake whoever waits for it, across native threads?

    python -m benchmarks.gevent_lock

gevent #2013, without uBatch: the script below needs gevent alone and can be handed on, with `pass` for PREPARE. A
native thread takes a patched lock, releases it while somebody waits, and does something else; who waits is never told.
That is so where the thread has a hub (a patched wait of a millisecond has made one), and where it has none and takes
the lock twice. Then once more in a thread of uBatch's handlers, which has a hub of its own kind
(`ubatch/_runtime/_gevent_locks.py`).
"""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
from gevent import monkey; monkey.patch_all()
import sys, threading, time, gevent
start = monkey.get_original("_thread", "start_new_thread")
allocate = monkey.get_original("_thread", "allocate_lock")
lock, gates = threading.RLock(), [allocate() for _ in range(5)]
for gate in gates: gate.acquire()
taken, go_on, again, end, never = gates
answer, main_hub = [], gevent.get_hub()

def hold():
    PREPARE
    if "a hub" in sys.argv: time.sleep(0.001)    # this thread has a hub now, and the lock will be its hub's
    lock.acquire(); taken.release()
    go_on.acquire(); lock.release()              # the lock is free: a callback on this hub's loop shall tell
    if "twice" in sys.argv:                      # ... or, without a hub, on the main one's, which finds it taken again
        lock.acquire(); again.release(); end.acquire(); lock.release()
    never.acquire()                              # ... and nobody runs that loop

def wait(prepare=False):
    if prepare: PREPARE
    lock.acquire(); lock.release(); answer.append(True)

start(hold, ()); taken.acquire()
if "a greenlet" in sys.argv: gevent.spawn(wait)  # of the main thread's hub, which turns
else: start(wait, (True,))                       # another native thread
gevent.sleep(0.2); go_on.release()
if "twice" in sys.argv: again.acquire(); gevent.sleep(0.2); end.release()
gevent.sleep(1.0)
print("goes on" if answer else "waits for ever for a free lock", flush=True)
"""
OURS = "from ubatch._runtime._gevent_locks import prepare_thread; prepare_thread(main_hub)"


def main(arguments: list[str] | None = None) -> int:
    """Print what becomes of who waits; 0 where none waits for ever beside a thread of uBatch's."""
    stuck = 0
    for holder in ("no hub", "a hub"):
        for times in ("once", "twice"):
            for waiter in ("a greenlet", "a thread"):
                became = run("pass", holder, times, waiter)
                print(f"a native thread with {holder:6} takes it {times:5}, {waiter:10} {became}", flush=True)
    for times in ("once", "twice"):
        for waiter in ("a greenlet", "a thread"):
            became = run(OURS, "a hub", times, waiter)
            stuck += became != "goes on"
            print(f"a thread of uBatch's handlers takes it {times:5}, {waiter:10} {became}", flush=True)
    return int(stuck > 0)


def run(prepare: str, *words: str) -> str:
    """What the script prints in a process of its own, whose threads first do this."""
    script = SCRIPT.replace("PREPARE", prepare)
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
