"""Many machines: two workers of a Ray cluster on this one make the index that one process makes."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from builders import write
from search_builders import Colors, bring_up_to_date, contents, photographs

from ccrk.search.machines import ManyMachines, stored_side

ray = pytest.importorskip("ray", reason="ray is not installed; pip install -e '.[ray]'")
pytestmark = pytest.mark.slow


class Mortal(Colors):
    """The first to encode a second batch is killed."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.batches = folder, 0

    def encode_images(self, images: list) -> dict:
        self.batches += 1
        (self.folder / f"{os.getpid()}-{self.batches}").touch()
        if self.batches == 2:
            try:
                (self.folder / "killed").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_images(images)


@pytest.fixture(scope="module")
def cluster():
    # More cores than there may be: with two alone there is none left to read by.
    os.environ.setdefault("RAY_worker_niceness", "0")
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    ray.init(
        "local",
        num_cpus=3,
        object_store_memory=100_000_000,
        log_to_driver=False,
        include_dashboard=False,
        runtime_env={"env_vars": environment},
    )
    yield
    ray.shutdown()


def test_two_workers_of_which_one_is_killed_make_the_index_of_one_process(cluster, tmp_path):
    folder = photographs(tmp_path / "photos", 40)
    write(folder / "half.jpg", b"no picture")
    (deaths := tmp_path / "deaths").mkdir()
    machines = ManyMachines("local", partial(Mortal, deaths), stored_side(Colors()), batch_size=4, encoders=2)
    changes = bring_up_to_date(folder, tmp_path / "many", machines=machines)
    assert (changes.new, changes.damaged.total()) == (40, 1)
    assert (deaths / "killed").exists()
    assert len({path.name.split("-")[0] for path in deaths.glob("*-1")}) >= 2  # encoders
    bring_up_to_date(folder, tmp_path / "one")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")

    (folder / "a").rename(folder / "renamed")
    assert bring_up_to_date(folder, tmp_path / "many", machines=machines).copied == 20
