"""engine: its objects, its id, its counts."""

from __future__ import annotations

import engine
from container_help import bare_box  # noqa: F401


def test_counts(bare_box):  # noqa: F811
    bare_box.create("sh")
    made = bare_box.engine.info()
    assert (made["Containers"], made["ContainersStopped"], made["Images"]) == (1, 1, 2)


def test_the_id_stays(bare_box):  # noqa: F811
    one = bare_box.engine.info()["ID"]
    again = engine.Engine(engine.Store(bare_box.store.data, bare_box.store.run)).info()["ID"]
    assert one == again and one.count("-") == 4


def test_objects_are_made_once(bare_box):  # noqa: F811
    assert bare_box.engine.containers is bare_box.engine.containers
