"""Run a function in a process of its own, so that what it does to its namespaces ends with it."""

import os
import pickle
import traceback


def in_child(function, *args):
    """What `function(*args)` returns in a forked process; its exception, raised here."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            try:
                answer = (True, function(*args))
            except BaseException as failure:
                answer = (False, (type(failure).__name__, traceback.format_exc()))
            with open(writer, "wb") as file:
                pickle.dump(answer, file)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as file:
        content = file.read()
    _, status = os.waitpid(pid, 0)
    assert content, f"the child left with status {status}"
    fine, value = pickle.loads(content)
    assert fine, value[1]
    return value
