"""As for all of training: where torch is not installed (`make test-light`), these tests are not there."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]
