"""Checkpoints of a run: killed, damaged, on a full disk; resumed bit for bit."""

import os
import resource
import signal

import pytest
import torch
from processes import exit_code_of
from tiny import make_trainer, tiny_config
from transformers import TrainerCallback

from ccrk import CCRKForPreTraining
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.checkpoints import choose_checkpoint, what_is_wrong


@pytest.mark.slow
def test_resuming_continues_bit_for_bit(processor, shapes, tmp_path):
    """Model with the image encoder's weights, optimizer, schedule, random state and data position."""

    def run(folder, **arguments):
        torch.manual_seed(7)
        model = CCRKForPreTraining(tiny_config(len(processor.tokenizer)))
        trainer = make_trainer(model, processor, shapes, folder, save_strategy="steps", save_steps=2, **arguments)
        return trainer, model

    trainer, undisturbed = run(tmp_path / "a")
    trainer.train()
    trainer, resumed = run(tmp_path / "b")
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for (name, ours), theirs in zip(undisturbed.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(ours, theirs[1]), name


def train_and_save(folder, processor, rows, die_in_save: int | None = None, **arguments) -> None:
    """Six steps with dropout, a checkpoint after each; killed in the n-th call of torch.save, if told to."""
    torch.manual_seed(7)
    config = tiny_config(len(processor.tokenizer))
    config.text_config.hidden_dropout_prob = 0.1
    trainer = make_trainer(CCRKForPreTraining(config), processor, rows, folder, max_steps=6, save_steps=1, **arguments)
    save, calls = torch.save, iter(range(1000))

    def save_and_die(value, path):
        save(value, path)
        if next(calls) == die_in_save:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", save_and_die)
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    trainer.save_model()


# A checkpoint calls torch.save for the arguments, the optimizer, the schedule and the random state.
@pytest.mark.slow
@pytest.mark.parametrize("die_in_save", [1, 13, 15])
def test_killed_and_resumed_equals_undisturbed(die_in_save, processor, shapes, tmp_path):
    folder, arguments = tmp_path / "killed", {"save_strategy": "steps", "save_total_limit": 2}
    train_and_save(tmp_path / "undisturbed", processor, shapes, **arguments)
    assert exit_code_of(train_and_save, folder, processor, shapes, die_in_save, **arguments) == -signal.SIGKILL
    assert what_is_wrong(folder / f"checkpoint-{die_in_save // 4 + 1}")
    train_and_save(folder, processor, shapes, resume_from_checkpoint="auto", **arguments)
    for name in ("model.safetensors", "checkpoint-6/optimizer.pt", "checkpoint-6/rng_state.pth"):
        assert (folder / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name
    assert len(list(folder.glob("checkpoint-*"))) == 2


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(tiny_model, processor, shapes, tmp_path, caplog):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, save_strategy="steps", save_steps=1, max_steps=3)
    trainer.train()
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()
    weights = tmp_path / "checkpoint-2" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    assert choose_checkpoint(tmp_path, "auto") == str(tmp_path / "checkpoint-1")
    assert "checkpoint-3 passed over: trainer_state.json is missing" in caplog.text
    assert "checkpoint-2 passed over: model.safetensors is not as it was written" in caplog.text
    with pytest.raises(ValueError, match=r"checkpoint-2: model\.safetensors is not as it was written"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.slow
def test_resuming_without_an_optimizer_is_refused(tiny_model, processor, shapes, tmp_path):
    with pytest.raises(ValueError, match="save_only_model leaves nothing to resume from"):
        CCRKTrainingArguments(output_dir=str(tmp_path), save_only_model=True, resume_from_checkpoint="auto")
    trainer = make_trainer(
        tiny_model, processor, shapes, tmp_path, save_strategy="steps", save_steps=1, max_steps=1, save_only_model=True
    )
    trainer.train()
    with pytest.raises(ValueError, match="saved with save_only_model and holds no optimizer"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(
        tiny_model, processor, shapes, tmp_path, save_strategy="steps", save_steps=1, max_steps=2, save_total_limit=1
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class FillDisk(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))

    trainer.add_callback(FillDisk())
    try:
        with pytest.raises(OSError, match=r"checkpoint-2 could not be written .* make room"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert choose_checkpoint(tmp_path, "auto") == str(tmp_path / "checkpoint-1")
