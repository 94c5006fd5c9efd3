"""Section sharing: copied pages go back, changed ones stay; in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import TOP

START = """
import engine, gc, os, sys, _signal
engine.syscalls_bind()
things = [[number] for number in range(50_000)]
gc.collect(); gc.freeze(); gc.disable()
def own():
    image = engine.memory_image.made
    return sum(1 for _ in image.copied(list(image.pieces())))
def fork(work):
    pid = os.fork()
    if pid == 0:
        work()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", START + code], cwd=TOP, stdout=subprocess.PIPE,
                          check=True, text=True)
    return done.stdout


def test_what_was_only_looked_at_goes_back_and_what_was_changed_stays():
    out = run("""
engine.memory_image()
def work():
    kept = list(things)                 # counts a reference to each: hundreds of pages
    things[7].append("new")
    del kept
    before = own()
    engine.memory_return()
    print(before, own(), sum(len(thing) for thing in things), things[7], things[49_999])
fork(work)
fork(work)
print(len(things[7]))
""")
    first, second, parent = out.splitlines()
    assert parent == "1"
    for line in (first, second):
        before, after, *rest = line.split(maxsplit=3)
        assert int(before) > 500
        assert int(after) < int(before) / 3
        assert rest == ["50001", "[7, 'new'] [49999]"]


def test_memory_is_used_as_before():
    """New objects, freed ones, growth of the heap and collections, after many returns."""
    out = run("""
engine.memory_image()
def work():
    for turn in range(20):
        new = {str(number): [number] * 3 for number in range(turn * 500)}
        del things[turn * 100:turn * 100 + 50]
        big = bytearray(1 << 20)
        engine.memory_return()
        assert all(new[str(number)] == [number] * 3 for number in range(turn * 500))
    gc.unfreeze()
    gc.collect()
    print(len(things), sum(thing[0] for thing in things))
fork(work)
""")
    left = set(range(50_000))
    things = sorted(left)
    for turn in range(20):
        del things[turn * 100:turn * 100 + 50]
    assert out == f"{len(things)} {sum(things)}\n"


def test_calls_are_made_only_where_memory_is_the_same():
    out = run("""
image = engine.MemoryImage()
same = [engine.sys_buffer(b"x" * 64) for _ in range(3)]
same[2][63] = b"y"
read, write = os.pipe()
word = engine.sys_buffer(b"1234")
number = engine.RawCall("write", "ipL", 1, 64, 4, 64).number()
at = [engine.sys_address(each) for each in same]
def row(a, b, words, text):
    return (a, b, words, number, write, engine.sys_address(word) + text, 1, 0, 0, 0)
image.run([row(at[0], at[1], 8, 0), row(at[0], at[2], 8, 1), row(at[0], at[2], 7, 2),
           row(0, 0, 0, 3)] * 30, 50)
print(os.read(read, 1000).decode())
""")
    assert out == "134" * 30 + "\n"


def test_who_waits_after_it_wakes_at_an_event_a_signal_or_in_time():
    """Signals that were blocked stay so; the event is there for who asks next."""
    out = run("""
import select, time
engine.memory_image()
read, write = os.pipe()
poll = select.epoll()
poll.register(read, select.EPOLLIN)
came = []
_signal.signal(_signal.SIGALRM, lambda *_: came.append("alarm"))
_signal.signal(_signal.SIGUSR1, lambda *_: came.append("blocked"))
_signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGUSR1])
def work():
    began = time.monotonic()
    engine.memory_return(poll.fileno(), 0.3)
    print("in time", time.monotonic() - began >= 0.3, poll.poll(0), came)
    os.kill(os.getpid(), _signal.SIGUSR1)
    _signal.setitimer(_signal.ITIMER_REAL, 0.1)
    engine.memory_return(poll.fileno())
    print("signal", came)
    asleep = own()
    os.write(write, b"x")
    engine.memory_return(poll.fileno())
    print("event", poll.poll(0) == [(read, select.EPOLLIN)], asleep < 500)
    engine.memory_return()
fork(work)
""")
    assert out.splitlines() == ["in time True [] []", "signal ['alarm']", "event True True"]


def test_the_image_cannot_be_written():
    out = run("""
engine.memory_image()
view = engine.memory_image.made.view
mprotect = engine.Call("mprotect", "LLi")
try:
    mprotect(view, 4096, engine.PROT_READ | engine.PROT_WRITE)
except OSError as refused:
    print(refused.errno)
""")
    assert out == "13\n"


def test_memory_that_was_mapped_anew_is_left_alone():
    """It is not the image's any more, also where it looks the same."""
    out = run("""
import mmap
size = 1 << 20
kept = engine.sys_mmap(0, size, 3, 34, -1, 0)
engine.sys_memory(kept, size).raw = b"k" * size
late = engine.sys_mmap(0, size, 3, 34, -1, 0)
engine.sys_memory(late, size).raw = b"l" * size
engine.memory_image()
engine.sys_mmap(late, size, 3, 34 | 16, -1, 0)
engine.sys_memory(late, size).raw = b"l" * size
engine.sys_memory(kept, 5).raw = b"other"
engine.memory_return()
print(engine.sys_memory(late, size).raw == b"l" * size)
print(engine.sys_memory(kept, size).raw == b"other" + b"k" * (size - 5))
""")
    assert out == "True\nTrue\n"


@pytest.mark.parametrize("lack", [
    "engine.IF_SAME.clear()",
    "def refuse(*args): raise OSError(13, 'no')\nengine.sys_mmap = refuse"])
def test_without_machine_code_nothing_is_shared_and_all_works(lack):
    out = run(lack + """
engine.memory_image()
engine.memory_return()
print(hasattr(engine.memory_image, "made"), len(things))
""")
    assert out == "False 50000\n"
