"""A loss of one's own has every option of the trainer's, and what CONTRIBUTING.md says of it is so."""

import re

import pytest
import torch
from conftest import ROOT
from tiny import make_trainer

from ccrk import CCRKForPreTraining
from ccrk.training.losses import OneToKLoss

OPTIONS = {"agreement_weight": 3.0, "agreement_trust": 2.0, "agreement_start": 0.0, "negatives_queue": 12}


class MyLoss(OneToKLoss):
    def contrastive(self, found, inputs):
        return super().contrastive(found, inputs)


@pytest.mark.parametrize("reduction", ["published", "symmetric"])
def test_a_subclass_trains_as_the_loss_itself(reduction, tiny_model, processor, shapes, tmp_path):
    tiny_model.config.contrastive_reduction = reduction

    def losses(loss):
        torch.manual_seed(0)
        model = CCRKForPreTraining(tiny_model.config)
        trainer = make_trainer(model, processor, shapes, tmp_path, max_steps=3, loss=loss, **OPTIONS)
        assert type(trainer.loss) is loss and trainer.loss.reduction == reduction and trainer.loss.queue.size == 12
        trainer.train()
        return [log["loss"] for log in trainer.state.log_history if "loss" in log]

    assert losses(MyLoss) == losses(OneToKLoss)


def test_options_are_not_lost(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, **OPTIONS)
    message = (
        r"the arguments ask for reduction published, agreement_weight 3\.0, queue, agreement_trust 2\.0, which this "
        r"MyLoss was made without; use CCRKTrainer\(\.\.\., loss=MyLoss\)"
    )
    with pytest.raises(ValueError, match=message):
        trainer.loss = MyLoss(trainer.accelerator)
    trainer.loss = whole = MyLoss.from_arguments(trainer.accelerator, trainer.args, tiny_model)
    assert trainer.loss is whole
    tiny_model.config.contrastive_reduction = "symmetric"
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path)
    trainer.loss = MyLoss(trainer.accelerator)  # nothing was asked for
    with pytest.raises(ValueError, match="agreement_only is 1, but agreement_weight 0; set the weight"):
        MyLoss.from_arguments(trainer.accelerator, trainer.args, tiny_model, agreement_only=1)


def test_the_loss_of_the_document(tiny_model, processor, shapes, tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add a loss")[2]
    namespace = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], namespace)
    options = {name: value for name, value in OPTIONS.items() if name != "negatives_queue"}
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, loss=namespace["MyLoss"], **options)
    assert "loss=MyLoss" in text and trainer.loss.agreement_weight == 3.0
    trainer.train()
    assert all(log["contrastive_loss"] > 0 for log in trainer.state.log_history if "contrastive_loss" in log)
