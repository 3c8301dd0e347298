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


@pytest.mark.parametrize(
    ("act", "named"),
    [
        ("pathlib.Path('big').write_bytes(bytes(9000))", "File too large"),
        ("save_weights(torch.nn.Linear(60, 60), 'big.pt')", "File too large"),
        ("pathlib.Path('file/inside').write_text('')", "Not a directory"),
        ("os.chmod('.', 0o500); os.geteuid() or os.seteuid(65534); os.mkdir('new')", "Permission denied"),
        ("list(DataLoader(Dying(), num_workers=1))", "--num_workers 0"),
    ],
)
def test_a_full_disk_and_other_faults_of_the_machine_are_one_sentence(tmp_path, act, named):
    (tmp_path / "file").touch()
    program = f"""
import os, pathlib, resource, signal, torch
from torch.utils.data import DataLoader
from common.errors import end_with_user_errors
from common.networks.weights import save_weights
class Dying:
    def __len__(self): return 1
    def __getitem__(self, key): os.kill(os.getpid(), signal.SIGBUS)  # as the kernel does where shared memory is full
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
end_with_user_errors()
{act}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and named in done.stderr and len(done.stderr) < 700
    assert [path.name for path in tmp_path.glob(".*.partial")] == []


def test_our_errors_are_user_errors():
    assert issubclass(DatasetError, UserError) and issubclass(DatasetError, ValueError)
