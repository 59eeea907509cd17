"""Fine-tunes for retrieval: CCRK as published, or any dual encoder of transformers by 1-to-K.

    accelerate launch train_retrieval.py                        English of the embedded data, after pre-training
    accelerate launch train_retrieval.py configs/shapes_finetune.yaml --languages en de
    accelerate launch train_retrieval.py configs/shapes_finetune.yaml --model_name_or_path DIR_OR_ID
    accelerate launch train_retrieval.py --model_name_or_path google/siglip2-base-patch16-224 --dataset FOLDER …

A recipe is a YAML file with the arguments below; those on the command line come last.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve other processes

from ccrk import CCRKForImageTextRetrieval
from ccrk.arguments import parse_recipe, recipe_file
from ccrk.build import build_trainer, run
from data_scripts.cli import one_line_errors, set_up_logging


def main() -> None:
    set_up_logging()
    with one_line_errors():
        recipe = recipe_file("shapes_finetune.yaml")
        published = {"learning_rate": 3e-5, "new_parameter_lr_scale": 1.0, "max_grad_norm": 0.0, "warmup_steps": 0.1}
        data, model, arguments = parse_recipe(__doc__, recipe, **published)
        trainer = build_trainer(data, model, arguments, CCRKForImageTextRetrieval)
    run(trainer)


if __name__ == "__main__":
    main()
