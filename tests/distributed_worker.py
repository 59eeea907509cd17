"""Run by torchrun from test_distributed.py: this process's share of a batch, its loss and averaged gradients."""

import sys

import torch
from conftest import tiny_config
from torch.nn.parallel import DistributedDataParallel

from modeling_ccrk import CCRKForPreTraining
from trainer_ccrk import CCRKTrainer, CCRKTrainingArguments


def make_batch(ragged: bool, doubled: bool) -> dict[str, torch.Tensor]:
    """8 images with 3 captions each."""
    generator = torch.Generator().manual_seed(5)
    input_ids = torch.randint(4, 399, (8, 3, 8), generator=generator)
    input_ids[..., 0] = 0
    caption_mask = torch.ones(8, 3, dtype=torch.bool)
    image_ids = torch.arange(8)
    if ragged:
        caption_mask[0, 1] = caption_mask[5, 0] = caption_mask[5, 2] = caption_mask[6] = False
    if doubled:
        image_ids[6] = image_ids[1]  # on another process
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.randn(8, 3, 64, 64, generator=generator),
        "caption_mask": caption_mask,
        "image_ids": image_ids,
    }


def contrastive_gradients(output_dir: str, ragged: bool, doubled: bool) -> dict:
    """The contrastive loss of the whole batch, and every parameter's gradient as the optimizer would see it."""
    torch.manual_seed(0)
    model = CCRKForPreTraining(tiny_config())
    arguments = CCRKTrainingArguments(output_dir=output_dir, use_cpu=True, report_to="none")
    trainer = CCRKTrainer(model=model, args=arguments)
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    share = 8 // world
    inputs = {name: value[rank * share : (rank + 1) * share] for name, value in make_batch(ragged, doubled).items()}
    # The other losses are left out here: what they leave without a gradient is not an error.
    wrapped = DistributedDataParallel(model, find_unused_parameters=True) if world > 1 else model
    loss = trainer.contrastive_loss(wrapped(**inputs), inputs)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "world": world, "gradients": gradients}


if __name__ == "__main__":
    output, ragged, doubled = sys.argv[1], sys.argv[2] == "True", sys.argv[3] == "True"
    result = contrastive_gradients(output, ragged, doubled)
    if torch.distributed.get_rank() == 0:
        torch.save(result, f"{output}/result.pt")
    torch.distributed.destroy_process_group()
