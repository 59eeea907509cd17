"""A model of 60,000 parameters, rows for it, and what the tests of training share."""

import io
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer, PreTrainedTokenizerFast

from ccrk import CCRKConfig, CCRKForPreTraining
from ccrk.encoders import load_encoder
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.collator import CCRKCollator
from ccrk.training.losses import OneToKLoss
from ccrk.training.trainer import CCRKTrainer
from data_scripts.rows import row_features

WORDS = "star circle square red blue green small large left right above below".split()


def make_rows(captions_per_row: list[list[int]], languages=("en",), ids=None) -> datasets.Dataset:
    """Noise pictures with captions of the given numbers of words."""
    generator = np.random.default_rng(0)
    rows = []
    for row, lengths in enumerate(captions_per_row):
        pixels = np.random.default_rng((ids or range(99))[row]).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        captions = {lang: [" ".join(generator.choice(WORDS, n)) for n in lengths] for lang in languages}
        image_id = str((ids or range(99))[row])
        rows.append({"image": Image.fromarray(pixels), "image_id": image_id, "captions": captions})
    return datasets.Dataset.from_list(rows, features=row_features(languages))


def make_spread_model(vocab_size: int, **config) -> CCRKForPreTraining:
    """Untrained embeddings all point the same way; larger weights make cosines and match logits differ."""
    torch.manual_seed(0)
    model = CCRKForPreTraining(tiny_config(vocab_size, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model.eval()


def tiny_config(vocab_size: int = 400, **overrides) -> CCRKConfig:
    """A model of 60,000 parameters without dropout."""
    fields = {
        "vision_config": {
            "model_type": "swin",
            "image_size": 64,
            "embed_dim": 8,
            "depths": [1, 1, 1],
            "num_heads": [1, 2, 4],
            "window_size": 4,
            "drop_path_rate": 0.0,
        },
        "text_config": {
            "model_type": "xlm-roberta",
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 66,
            "type_vocab_size": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "num_fusion_layers": 1,
        "projection_dim": 16,
    }
    return CCRKConfig(**(fields | overrides))


def make_trainer(
    model, processor, rows, output_dir, languages=("en", "de", "zh"), loss=OneToKLoss, **arguments
) -> CCRKTrainer:
    arguments = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    } | arguments
    return CCRKTrainer(
        model=model,
        args=CCRKTrainingArguments(**arguments),
        data_collator=CCRKCollator(processor, languages),
        train_dataset=rows,
        eval_dataset=rows.select(range(min(6, len(rows)))),
        processing_class=processor,
        loss=loss,
    )


def loss_and_gradients(trainer, rows) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of a step on eight rows, one caption missing."""
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator([rows[index] for index in range(8)])
    batch["caption_mask"][2, 1] = False
    loss = trainer.training_step(trainer.model, batch)
    return loss, {name: parameter.grad for name, parameter in trainer.model.named_parameters()}


def assert_same_gradients(found, expected, relative: float, absolute: float) -> None:
    """Of two `loss_and_gradients`."""
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    for name, gradient in expected[1].items():
        if not name.endswith(("k_proj.bias", "key.bias")):  # 0 but for rounding
            assert (found[1][name] - gradient).norm() <= relative * gradient.norm() + absolute, name


def tokenizer(processor):
    """That of the tests' captions, of transformers itself."""
    words = Tokenizer.from_str(processor.tokenizer.backend_tokenizer.to_str())
    words.no_truncation()  # of whatever another test has asked the shared one for last
    words.no_padding()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=16,
    )


RECIPE = {
    "dataset": "shapes",
    "dataset_config": {"num_train": 40, "num_validation": 6, "num_test": 12},
    "languages": ["en", "de", "zh"],
    "image_size": 64,
    "config": {
        "vision_config": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        "text_config": {
            "vocab_size": 400,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 48,
            "type_vocab_size": 1,
        },
        "num_fusion_layers": 1,
        "projection_dim": 8,
    },
    "per_device_train_batch_size": 8,
    "max_steps": 2,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}


def call(script, *arguments, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def tiny_translator(folder: Path, sentences: list[str]) -> Path:
    """A random M2M100 of some 20,000 parameters, with a tokenizer for sentences, written to a folder."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=file, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    (folder / "sentencepiece.bpe.model").write_bytes(file.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    names = ["<s>", "<pad>", "</s>", "<unk>", *(pieces.id_to_piece(i) for i in range(3, pieces.get_piece_size()))]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "init_std": 1.0, "max_position_embeddings": 128}
    sizes |= {
        f"{part}_{size}": n for part in ("encoder", "decoder") for size, n in (("attention_heads", 2), ("ffn_dim", 8))
    }
    network = M2M100ForConditionalGeneration(
        M2M100Config(vocab_size=len(names) + len(tokenizer.lang_code_to_id), **sizes)
    )
    network.generation_config.update(max_length=12, num_beams=2, forced_eos_token_id=2)
    network.save_pretrained(folder)
    return folder


def assert_known_wherever_it_lies(folder, monkeypatch) -> None:
    """What an index and cached features know a saved model by: not its folder, nor the working directory."""

    def fingerprints(name) -> list[str]:
        encoder = load_encoder(str(name), 0, False)
        return [encoder.fingerprint, *map(encoder.features_fingerprint, ("image", "text"))]

    found = fingerprints(folder)
    monkeypatch.chdir(folder.parent)
    assert fingerprints(folder.name) == found
    assert fingerprints(folder.rename(folder.parent / "moved")) == found
