"""What `freeze` takes out of training in a SentenceTransformer with towers."""

import families
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling

from ccrk.towers import SentenceTransformerEncoder, SentenceTransformerPair, join_towers, open_pair
from ccrk.training.trainable import add_adapters, freeze

CAPTIONS = ["ein hund", "un café am strand"]


@pytest.fixture
def towers(tmp_path) -> tuple[str, str]:
    """An image encoder, and a SentenceTransformer of text with a Dropout between two Dense."""
    torch.manual_seed(0)
    words = families.xlmr_words()
    own = transformers.XLMRobertaConfig(**families.text(words, max_position_embeddings=families.POSITIONS + 2))
    for part in (transformers.XLMRobertaModel(own, add_pooling_layer=False), words):
        part.save_pretrained(tmp_path / "encoder")
    vision = transformers.ViTModel(transformers.ViTConfig(**families.VISION))
    for part in (vision, transformers.ViTImageProcessor(**families.SQUARE)):
        part.save_pretrained(tmp_path / "image")
    modules = [Transformer(str(tmp_path / "encoder")), Pooling(32, "cls")]
    modules += [Dense(32, 12), Dropout(0.5), Dense(12, 12), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "text"))
    return str(tmp_path / "image"), str(tmp_path / "text")


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5, "residual": True}])
@pytest.mark.parametrize("use_peft", [False, True])
@pytest.mark.parametrize("is_saved", [False, True])
def test_a_frozen_tower_keeps_the_dense_that_came_with_it(is_saved, use_peft, options, towers, tmp_path):
    pair = SentenceTransformerPair(join_towers(*towers, **options))
    if is_saved:
        pair.save(tmp_path / "pair")
        pair = open_pair(tmp_path / "pair")
    encoder = SentenceTransformerEncoder(pair.eval())
    alone = torch.from_numpy(SentenceTransformer(towers[1], device="cpu").encode(CAPTIONS))
    torch.testing.assert_close(encoder.features("text", CAPTIONS), alone, atol=1e-6, rtol=0)

    model = add_adapters(pair, 2) if use_peft else pair
    freeze(model, ["text"])
    route = pair.path("text")
    trained = [any(parameter.requires_grad for parameter in module.parameters()) for module in route]
    assert trained == [place > 5 and isinstance(module, Dense) for place, module in enumerate(route)]
    model.train()
    features = pair.features("text", encoder.inputs.captions(CAPTIONS))
    torch.testing.assert_close(features, alone, atol=1e-6, rtol=0)


def test_features_of_an_encoder_of_both_end_before_what_is_trained_behind_it(tmp_path):
    modules = [Transformer(families.saved(families.clip, tmp_path)), Dense(8, 8), Dense(8, 8)]
    pair = SentenceTransformerPair(SentenceTransformer(modules=modules, device="cpu"))
    freeze(pair, ["image"])
    assert all(parameter.requires_grad for module in modules[1:] for parameter in module.parameters())
    assert pair.tower("image") == modules[:1]
