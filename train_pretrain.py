"""Pre-trains CCRK: 1-to-K contrastive learning, matching and masked language modelling.

    accelerate launch train_pretrain.py                                      the embedded data, from scratch
    accelerate launch train_pretrain.py configs/shapes_pretrain.yaml --max_steps 100
    torchrun --nproc_per_node 2 train_pretrain.py …                          two processes

A recipe is a YAML file with the arguments below; those on the command line come last.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve other processes

from ccrk import CCRKForPreTraining
from ccrk.arguments import parse_recipe, recipe_file
from ccrk.build import build_trainer, run
from data_scripts.cli import one_line_errors, set_up_logging


def main() -> None:
    set_up_logging()
    with one_line_errors():
        recipe = recipe_file("shapes_pretrain.yaml")
        data, model, arguments = parse_recipe(__doc__, recipe)
        trainer = build_trainer(data, model, arguments, CCRKForPreTraining)
    run(trainer)


if __name__ == "__main__":
    main()
