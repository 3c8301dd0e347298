import subprocess
import sys

import pytest

from common.errors import DatasetError, UserError, root_user_error


def chained(*errors):
    """Raise the first, each next one from the one before; return the last."""
    caught = None
    for error in errors:
        try:
            raise error from caught
        except Exception as raised:
            caught = raised
    return caught


def test_the_users_error_is_found_below_monais_wrappers():
    inner = DatasetError("no radiographs")
    assert root_user_error(chained(inner, KeyError("x"), RuntimeError("Failed to instantiate component"))) is inner
    assert root_user_error(chained(KeyError("x"), RuntimeError("y"))) is None
    assert root_user_error(None) is None


@pytest.mark.parametrize(("inner", "has_traceback"), [("UserError('mend this')", False), ("KeyError('a bug')", True)])
def test_a_process_ends_with_the_message_and_a_bug_with_its_traceback(inner, has_traceback):
    program = f"""
from common.errors import UserError, end_with_user_errors
end_with_user_errors()
try:
    raise {inner}
except Exception as error:
    raise RuntimeError("Failed to instantiate component") from error
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == has_traceback
    if not has_traceback:
        assert done.stderr == "UserError: mend this\n"


def test_our_errors_are_user_errors():
    assert issubclass(DatasetError, UserError) and issubclass(DatasetError, ValueError)
