#!/bin/sh
# The tests of walls around containers (tests/test_*_escapes.py and others, named by $TESTS), run by
# pytest on this host: ./pytest has it, ./source the tests.
export PYTHONPATH="$PWD/pytest" PATH="$PATH:/vm" SLOWNESS=10
cd source || exit 125
# shellcheck disable=SC2086
exec python3 -m pytest -q --color=no -o cache_dir=/tmp/pytest -c tests/pytest.ini --rootdir=. $TESTS
