"""
Runs a script under FSDP2 on CPUs, as `accelerate launch --config_file configs/accelerate/fsdp2.yaml` does on GPUs:

    PYTHONPATH=. torchrun --nproc_per_node 2 tests/fsdp_worker.py train_pretrain.py RECIPE.yaml
"""

import os
import runpy
import sys
from pathlib import Path

from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

ROOT = Path(__file__).parent.parent

make_state = AcceleratorState.__init__


def make_state_of_accelerators(self, *args, **kwargs) -> None:
    if not AcceleratorState._shared_state:
        PartialState(cpu=True)
        # accelerate heeds FSDP on accelerators alone: to it these CPUs are some.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_HPU
    make_state(self, *args, **kwargs)


def main() -> None:
    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / "fsdp2.yaml")).fsdp_config
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    os.environ |= {name.upper(): str(value) for name, value in config.items()}
    AcceleratorState.__init__ = make_state_of_accelerators
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
