"""Steps in chunks: gradients, logs, dropout and precision as without."""

import pytest
import torch
from tiny import assert_same_gradients, loss_and_gradients, make_trainer, tiny_config

from ccrk import CCRKForPreTraining
from ccrk.training.losses import OneToKLoss


@pytest.mark.parametrize("chunk_size", [1, 3, 8])
@pytest.mark.parametrize(("checkpointing", "agreement_only"), [(False, 0), (True, 1)])
def test_chunked_contrastive_gradients_equal_those_of_the_whole_batch(
    chunk_size, checkpointing, agreement_only, processor, shapes, tmp_path
):
    class ContrastiveAlone(OneToKLoss):
        def shares(self, found):
            return {name: part * 0 for name, part in super().shares(found).items()}

    def gradients(chunk_size):
        torch.manual_seed(0)
        model = CCRKForPreTraining(tiny_config(len(processor.tokenizer)))
        if checkpointing:
            model.activation_checkpointing_enable()
        options = {"contrastive_chunk_size": chunk_size, "agreement_weight": 10.0, "agreement_start": 0.0}
        trainer = make_trainer(model, processor, shapes, tmp_path, loss=ContrastiveAlone, **options)
        trainer.agreement_only = agreement_only
        return loss_and_gradients(trainer, shapes)

    assert_same_gradients(gradients(chunk_size), gradients(None), 1e-5, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_both_passes_over_a_chunk_meet_the_same_dropout_and_precision(bf16, processor, shapes, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(len(processor.tokenizer))
    config.text_config.hidden_dropout_prob = 0.3
    first, second = [], []

    class Listening(OneToKLoss):
        def contrastive(self, found, inputs):
            first.append(found.text.detach())
            return super().contrastive(found, inputs)

        def shares(self, found):
            second.append(found.text.detach())
            return super().shares(found)

    model = CCRKForPreTraining(config)
    options = {"max_steps": 1, "contrastive_chunk_size": 3, "bf16": bf16}
    trainer = make_trainer(model, processor, shapes, tmp_path, loss=Listening, **options)
    trainer.train()
    assert len(second) == 3 and torch.equal(first[0], torch.cat(second))


@pytest.mark.slow
def test_chunked_training_logs_every_part(tiny_model, processor, shapes, tmp_path):
    options = {"contrastive_chunk_size": 4, "agreement_weight": 1000.0, "agreement_start": 0.5}
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, **options)
    trainer.train()
    logs = trainer.state.log_history[:-1]
    assert ["agreement_loss" in log for log in logs] == [False, False, True, True] and logs[-1]["agreement_loss"] > 0
    for log in logs:
        agreement = log.get("agreement_loss", 0.0)
        parts = log["contrastive_loss"] + agreement + log["matching_loss"] + log["mlm_loss"]
        assert parts == pytest.approx(log["loss"], abs=1e-3)
