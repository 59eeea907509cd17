"""Operations by count and bytes by formula, against a step that is taken."""

import socket
import sys

import pytest
import torch
from conftest import ROOT
from processes import CONTEXT
from torch.utils.flop_counter import FlopCounterMode

from ccrk import CCRKConfig, CCRKForPreTraining

sys.path.insert(0, str(ROOT / "benchmarks"))
import cost


def test_operations_are_those_of_a_step():
    step = cost.count_step(CCRKConfig(**cost.SMALL), cost.CAPTIONS)
    model = CCRKForPreTraining(CCRKConfig(**cost.SMALL)).train()
    model.set_attn_implementation("eager")
    shape = (cost.BATCH, cost.CAPTIONS, cost.CAPTION)
    with FlopCounterMode(display=False) as counter:
        outputs = model(
            torch.randint(4, 700, shape), torch.randn(cost.BATCH, 3, 64, 64), torch.ones(shape, dtype=torch.long)
        )
        outputs.loss.backward()
    counted = counter.get_total_flops() - step.contrastive(cost.BATCH, 1)
    assert cost.BATCH * step.operations == pytest.approx(counted, rel=0.2)


@pytest.mark.slow
def test_a_process_sends_what_the_formula_says():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    found = CONTEXT.SimpleQueue()
    processes = [CONTEXT.Process(target=cost.measure_process, args=(rank, 2, port, 3, found)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    expected = cost.count_step(CCRKConfig(**cost.SMALL), cost.CAPTIONS).sent(cost.BATCH, 2)
    assert [found.get()[1] for _ in processes] == pytest.approx([expected] * 2, rel=0.2)


@pytest.mark.slow
def test_the_document_is_what_the_script_prints():
    assert (ROOT / "docs" / "scale.md").read_text().startswith(cost.document())
