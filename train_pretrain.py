"""Pre-trains CCRK: 1-to-K contrastive learning, matching and masked language modelling.

    accelerate launch train_pretrain.py                                      the embedded data, from scratch
    accelerate launch train_pretrain.py configs/shapes_pretrain.yaml --max_steps 100
    torchrun --nproc_per_node 2 train_pretrain.py …                          two processes

A recipe is a YAML file with the arguments below; those on the command line come last.
"""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve other processes

from ccrk import CCRKForPreTraining
from errors_ccrk import one_line_errors
from recipe_ccrk import build_trainer, parse_recipe, run, set_up_logging


def main() -> None:
    set_up_logging()
    with one_line_errors():
        recipe = Path(__file__).parent / "configs" / "shapes_pretrain.yaml"
        data, model, arguments = parse_recipe(__doc__, recipe)
        trainer = build_trainer(data, model, arguments, CCRKForPreTraining, one_language=False)
    run(trainer)


if __name__ == "__main__":
    main()
