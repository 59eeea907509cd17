"""
What test_distributed.py runs in several processes. By itself, the longer form of its test of the trajectory:

    PYTHONPATH=.:tests python tests/distributed_worker.py 20    # steps; prints the largest relative difference
"""

import os
import socket
import sys
import tempfile
from collections.abc import Callable

import torch
from safetensors.torch import load_file
from tiny import tiny_config
from torch.nn.parallel import DistributedDataParallel

from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.losses import OneToKLoss
from ccrk.training.trainer import CCRKTrainer
from modeling_ccrk import CCRKForPreTraining


def make_batch(ragged: bool, doubled: bool, seed: int = 5) -> dict[str, torch.Tensor]:
    """8 images with 3 captions each."""
    generator = torch.Generator().manual_seed(seed)
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


def contrastive_gradients(
    output_dir: str, ragged: bool, doubled: bool, alone: bool = False, sigmoid: bool = False
) -> dict:
    """
    The losses of the whole batch's embeddings, and each parameter's gradient as the optimizer would see it.

    Args:
        alone: every fourth row has no picture.
        sigmoid: by this loss, and not by softmax.
    """
    torch.manual_seed(0)
    model = CCRKForPreTraining(tiny_config())
    arguments = CCRKTrainingArguments(output_dir=output_dir, use_cpu=True, report_to="none", agreement_weight=3.0)
    trainer = CCRKTrainer(model=model, args=arguments)
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    share = 8 // world
    inputs = {name: value[rank * share : (rank + 1) * share] for name, value in make_batch(ragged, doubled).items()}
    # The other losses are left out here: what they leave without a gradient is not an error.
    wrapped = DistributedDataParallel(model, find_unused_parameters=True) if world > 1 else model
    found = trainer.encoder.embed(wrapped, inputs)
    if alone:
        paired = [row for row in range(share) if row % 4 != 3]
        order = [*paired, *range(3, share, 4)]
        found = found._replace(image=found.image[paired], text=found.text[order])
        inputs |= {"caption_mask": inputs["caption_mask"][order], "image_ids": inputs["image_ids"][paired]}
    if sigmoid:
        trainer.loss.kind, found = "sigmoid", found._replace(bias=torch.tensor(-2.0))
    loss = sum(trainer.loss.of_embeddings(found, inputs).values())
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "world": world, "gradients": gradients}


def save_contrastive_gradients(output_dir: str, *what: bool) -> None:
    result = contrastive_gradients(output_dir, *what)
    if torch.distributed.get_rank() == 0:
        torch.save(result, f"{output_dir}/result.pt")


class PartialLoss(OneToKLoss):
    """Some of the parts left out."""

    left_out: tuple[str, ...] = ()

    def shares(self, found):
        # Times 0: all parameters keep a gradient.
        return {name: part * (name not in self.left_out) for name, part in super().shares(found).items()}


class TracedTrainer(CCRKTrainer):
    """Puts down every step's losses and temperature, some of the losses left out."""

    def __init__(self, *args, left_out: tuple[str, ...], **kwargs):
        super().__init__(*args, loss=PartialLoss, **kwargs)
        self.trajectory = []
        self.loss.left_out = left_out

    def _record(self, values, inputs):
        super()._record(values, inputs)
        self.trajectory.append(self.accelerator.reduce(torch.stack(list(values.values())).detach(), reduction="mean"))


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def train(output_dir: str, processes: int, steps: int, left_out: tuple[str, ...], chunk_size: int | None) -> None:
    """Trains on batches of 8 images over all processes, with captions of unequal length and number."""
    torch.manual_seed(0)
    # Uniform: how well a caption is aligned is judged within the local batch.
    model = CCRKForPreTraining(tiny_config(matching_positive_sampling=0))
    batches = [make_batch(ragged=True, doubled=False, seed=seed) for seed in range(4)]
    rows = [{name: value[row] for name, value in batch.items()} for batch in batches for row in range(8)]
    for index, row in enumerate(rows):
        row["image_ids"] = torch.tensor(index)
        row["attention_mask"][:, 3 + index % 6 :] = 0
    arguments = CCRKTrainingArguments(
        output_dir=output_dir,
        per_device_train_batch_size=8 // processes,
        max_steps=steps,
        learning_rate=1e-3,
        contrastive_chunk_size=chunk_size,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = TracedTrainer(model, arguments, data_collator=collate, train_dataset=rows, left_out=left_out)
    trainer.train()
    trainer.save_model()
    if trainer.is_world_process_zero():
        torch.save(torch.stack(trainer.trajectory), f"{output_dir}/trajectory.pt")


def trajectory_difference(folder: str, steps: int) -> float:
    """
    The largest relative difference in losses, temperature and parameters from the run of one process.

    Contrastive and masked LM: 2 × 4 and 4 × 2 from 1 × 8 images; matching draws from the local batch, which differs.
    Contrastive alone: 2 × 4 images in chunks of 3 and 1 from 1 × 8 without chunks. Both without the bias of attention
    keys: it shifts all scores of a row alike, its gradient is 0 but for rounding, and AdamW makes whole steps of that.
    """

    def run(processes: int, *arguments) -> dict[str, torch.Tensor]:
        output = tempfile.mkdtemp(dir=folder)
        in_processes(processes, train, output, processes, steps, *arguments)
        values = torch.load(f"{output}/trajectory.pt", weights_only=True)
        assert len(values) == steps
        return {"trajectory": values} | load_file(f"{output}/model.safetensors")

    matching, both = ("matching_loss",), ("matching_loss", "mlm_loss")
    one, one_contrastive = run(1, matching, None), run(1, both, None)
    compared = [(run(2, matching, None), one), (run(4, matching, None), one), (run(2, both, 3), one_contrastive)]
    return max(
        ((tensor - expected[name]).norm() / expected[name].norm().clamp(min=1e-6)).item()
        for others, expected in compared
        for name, tensor in others.items()
        if not name.endswith(("k_proj.bias", "key.bias"))
    )


def in_processes(count: int, function: Callable, *arguments) -> None:
    """
    Calls the function in `count` processes that see each other through gloo.

    They are forks of this one, whose imports they need not repeat; it must not have started any process group.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _in_process, (count, port, function, arguments), nprocs=count, start_method="fork"
    )


def _in_process(rank: int, count: int, port: int, function: Callable, arguments: tuple) -> None:
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    function(*arguments)
    if count > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1] == "gradients":
        what = [name in sys.argv[3:] for name in ("ragged", "doubled", "alone", "sigmoid")]
        in_processes(2, save_contrastive_gradients, sys.argv[2], *what)
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(trajectory_difference(folder, steps=int(sys.argv[1])))
