"""module_order.py DIR PATTERN...: files of kernel modules and of what they need, in load order.

DIR is lib/modules/VERSION. What is built into the kernel is left out by itself.
"""

from __future__ import annotations

import fnmatch
import os
import sys


def module_name(path):
    return os.path.basename(path).split(".")[0].replace("-", "_")


def modules_order(lines, patterns):
    """Paths, those that others need first; `lines` are those of modules.dep."""
    needs = {}
    for line in lines:
        path, _, others = line.partition(":")
        needs[module_name(path)] = (path, [module_name(other) for other in others.split()])
    order = {}
    for pattern in patterns:
        for name in fnmatch.filter(sorted(needs), pattern.replace("-", "_")):
            path, others = needs[name]
            for other in reversed(others):
                order[needs[other][0]] = True
            order[path] = True
    return list(order)


if __name__ == "__main__":
    with open(sys.argv[1] + "/modules.dep") as dep:
        print("\n".join(modules_order(dep, sys.argv[2:])))
