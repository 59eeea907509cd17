"""Models: attention implementations, checkpoints in and out, image encoders, and configurations that do not fit."""

import copy
import dataclasses
import inspect
import pickle

import pytest
import torch
from conftest import TINY_A
from peft import LoraConfig, get_peft_model
from processes import exit_code_of
from tiny import tiny_config
from torch.testing import assert_close
from transformers import (
    PreTrainedModel,
    SwinModel,
)

from ccrk import CCRKForImageTextRetrieval, CCRKForPreTraining, CCRKModel
from ccrk.resize import resize_image_encoder

CLASSES = [CCRKModel, CCRKForImageTextRetrieval, CCRKForPreTraining]


def batch(batch_size: int = 3, num_captions: int = 2, length: int = 8, vocab_size: int = 400) -> dict:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(4, vocab_size - 1, (batch_size, num_captions, length), generator=generator)
    input_ids[..., 0] = 0
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, -1, 5:] = 0
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": torch.randn(batch_size, 3, 64, 64, generator=generator),
        "caption_mask": torch.ones(batch_size, num_captions, dtype=torch.bool),
        "image_ids": torch.arange(batch_size),
    }


def test_one_forward_gives_every_loss_and_a_gradient_for_every_parameter(tiny_model):
    outputs = tiny_model(**batch(vocab_size=tiny_model.config.text_config.vocab_size))
    parts = outputs.contrastive_loss + outputs.matching_loss + outputs.mlm_loss
    assert_close(outputs.loss, parts)
    outputs.loss.backward()
    assert [name for name, parameter in tiny_model.named_parameters() if parameter.grad is None] == []
    assert tiny_model.lm_head.decoder.weight is tiny_model.ccrk.text_model.embeddings.word_embeddings.weight


def test_fine_tuning_head_has_no_masked_lm(tiny_model):
    model = CCRKForImageTextRetrieval(tiny_model.config)
    outputs = model(**batch(num_captions=1, vocab_size=100) | {"attention_mask": None})
    assert outputs.mlm_loss is None and torch.isfinite(outputs.loss)


def test_a_batch_of_one_image_trains(tiny_model):
    outputs = tiny_model(**{name: value[:1] for name, value in batch(vocab_size=100).items()})
    outputs.loss.backward()
    gradients = [parameter.grad for parameter in tiny_model.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_rows_without_captions_change_no_loss(tiny_model):
    """A row whose captions are all missing takes part as an image that other captions must not find, and no more."""
    inputs = batch(vocab_size=100)
    inputs["caption_mask"][2] = False
    torch.manual_seed(0)
    first = tiny_model.eval()(**inputs)
    inputs["input_ids"][2] = 50
    torch.manual_seed(0)
    second = tiny_model(**inputs)
    assert_close(first.loss, second.loss)


def test_encodes_only_what_it_is_given(tiny_model):
    model, inputs = tiny_model.ccrk.eval(), batch(vocab_size=100)
    images = model(pixel_values=inputs["pixel_values"])
    assert images.text_embeds is None and images.logits_per_image is None
    captions = model(input_ids=inputs["input_ids"][0])
    assert captions.image_embeds is None and captions.text_embeds.shape == (2, 16)
    both = model(**inputs)
    assert both.text_embeds.shape == (3, 2, 16) and both.logits_per_image.shape == (3, 6)
    assert_close(both.image_embeds, images.image_embeds)
    assert_close(both.text_embeds.norm(dim=-1), torch.ones(3, 2))
    with pytest.raises(ValueError, match="give input_ids, pixel_values or both"):
        model()


@pytest.mark.parametrize("head", CLASSES)
def test_outputs_keep_the_documented_order(head):
    model, inputs = head(tiny_config()).eval(), batch() | {"output_hidden_states": True}
    if head is not CCRKModel:
        inputs["sampling_keys"] = torch.arange(3)
    with torch.no_grad():
        outputs = model(**inputs)
        as_tuple = model(**inputs, return_dict=False)
    assert outputs[0] is (outputs.logits_per_image if head is CCRKModel else outputs.loss)
    present = [field.name for field in dataclasses.fields(outputs) if getattr(outputs, field.name) is not None]
    for same in (outputs, copy.deepcopy(outputs), pickle.loads(pickle.dumps(outputs))):
        assert list(same) == present
    assert isinstance(as_tuple, tuple)
    for ours, name in zip(as_tuple, present, strict=True):
        assert_close(ours, outputs[name])
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)


@pytest.mark.parametrize("head", CLASSES)
def test_unknown_arguments_are_refused_by_name(head):
    model = head(tiny_config())
    with pytest.raises(TypeError, match="unexpected argument labels, num_items_in_batch; beside inputs take output_"):
        model(**batch(), labels=torch.zeros(3), num_items_in_batch=3)
    base, inputs = model.base_model, batch()
    with pytest.raises(TypeError, match="unexpected argument position_ids"):
        base.get_text_features(inputs["input_ids"][:, 0], position_ids=torch.zeros(3, 8))
    with pytest.raises(TypeError, match="unexpected argument bool_masked_pos"):
        base.get_image_features(inputs["pixel_values"], bool_masked_pos=None)
    with pytest.raises(TypeError, match="unexpected argument captions"):
        base.fuse(torch.randn(1, 3, 32), torch.randn(1, 4, 32), captions=None)


def test_a_missing_caption_is_no_candidate(tiny_model):
    inputs = batch(vocab_size=100)
    everything = tiny_model.ccrk.eval()(**inputs).logits_per_image
    inputs["caption_mask"][1, 0] = False
    outputs = tiny_model.ccrk(**inputs)
    assert_close(outputs.logits_per_image.softmax(dim=1)[:, 2], torch.zeros(3))
    others = [0, 1, 3, 4, 5]
    assert_close(outputs.logits_per_image[:, others], everything[:, others])
    assert_close(outputs.logits_per_text, outputs.logits_per_image.t())


def test_captions_padded_on_the_left_are_refused(tiny_model):
    inputs = batch(vocab_size=100)
    for model in (tiny_model.ccrk, tiny_model):
        with pytest.raises(ValueError, match=r"captions are padded on the right: set tokenizer\.padding_side"):
            model(**inputs | {"attention_mask": inputs["attention_mask"].flip(-1)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pictures_are_cast_to_the_precision_of_the_model(tiny_model, processor, dtype):
    """README's snippet, with a model in 16 bits."""
    inputs = processor(images=[torch.rand(3, 64, 64).numpy()], text=["a red star", "ein blauer Kreis"])
    model = tiny_model.ccrk.eval()
    with torch.no_grad():
        expected = model(**inputs)
        outputs = model.to(dtype)(**inputs)
    assert outputs.image_states.dtype == dtype
    assert_close(outputs.image_embeds, expected.image_embeds, rtol=0.0, atol=0.03)
    assert_close(outputs.logits_per_image, expected.logits_per_image, rtol=0.0, atol=0.5)
    with pytest.raises(ValueError, match=r"pixel_values are of type torch\.uint8; give what the processor makes"):
        model(pixel_values=torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("training", [False, True])
def test_encoders_return_what_they_are_asked_for(training):
    config = tiny_config()
    config._attn_implementation = "eager"
    model = CCRKForPreTraining(config).train(training)
    inputs, keys = batch(), torch.arange(3)
    plain = model(**inputs, sampling_keys=keys)
    assert plain.hidden_states is None and plain.image_attentions is None
    outputs = model(**inputs, sampling_keys=keys, output_hidden_states=True, output_attentions=True)
    assert_close(outputs.loss, plain.loss)
    assert [states.shape for states in outputs.hidden_states] == [(6, 8, 32)] * 2
    assert [weights.shape for weights in outputs.attentions] == [(6, 2, 8, 8)]
    assert [states.shape[2] for states in outputs.image_hidden_states] == [8, 16, 32, 32]
    assert len(outputs.image_attentions) == 3
    image = model.ccrk.get_image_features(inputs["pixel_values"], output_hidden_states=True)
    assert_close(image.hidden_states[-1], outputs.image_hidden_states[-1])
    assert isinstance(model.ccrk.get_image_features(inputs["pixel_values"], return_dict=False), tuple)
    text = model.ccrk.get_text_features(inputs["input_ids"][:, 0], output_attentions=True)
    assert_close(text.attentions[0].sum(dim=-1), torch.ones(3, 2, 8))
    assert isinstance(model.ccrk.get_text_features(inputs["input_ids"][:, 0], return_dict=False), tuple)


def test_fusion_returns_its_cross_attention():
    config = tiny_config(num_fusion_layers=2)
    config._attn_implementation = "eager"
    model, inputs = CCRKModel(config).eval(), batch()
    outputs = model(**inputs)
    mask = inputs["attention_mask"].flatten(0, 1)
    pairs = outputs.image_states, outputs.text_states, mask, torch.tensor([0, 0, 1, 1, 2, 2])
    fused = model.fuse(*pairs, output_attentions=True, output_hidden_states=True)
    assert_close(fused.last_hidden_state, model.fusion_encoder(*pairs))
    assert [states.shape for states in fused.hidden_states] == [(6, 8, 32)] * 3
    assert fused.hidden_states[0] is outputs.text_states
    tokens = outputs.image_states.shape[1]
    assert [weights.shape for weights in fused.cross_attentions] == [(6, 2, 8, tokens)] * 2
    for weights in (*fused.attentions, *fused.cross_attentions):
        assert_close(weights.sum(dim=-1), torch.ones(6, 2, 8))
    assert_close(fused.attentions[0][1, :, :, 5:], torch.zeros(2, 8, 3))  # padding
    # The first layer's, written out.
    layer = model.fusion_encoder.layers[0]
    states, _ = layer.attention(outputs.text_states, torch.where(mask[:, None, None] > 0, 0.0, -1e9))
    query = layer.cross_attention.query(states).unflatten(-1, (2, 16))
    key = layer.cross_attention.key(outputs.image_states)[pairs[3]].unflatten(-1, (2, 16))
    scores = torch.einsum("plhd,pthd->phlt", query, key) / 16**0.5
    assert_close(fused.cross_attentions[0], scores.softmax(dim=-1))
    assert model.fuse(*pairs).cross_attentions is None
    assert isinstance(model.fuse(*pairs, return_dict=False), tuple)


@pytest.mark.slow
def test_the_vocabulary_grows_and_shrinks(tmp_path, caplog):
    model, inputs = CCRKForPreTraining(tiny_config()), batch(vocab_size=300)
    word = model.get_input_embeddings().weight[:300].detach().clone()
    for size, mask_token in ((410, 399), (301, 300)):
        model.resize_token_embeddings(size)
        assert (model.config.text_config.vocab_size, model.config.mask_token_id) == (size, mask_token)
        assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
        assert model.lm_head.bias.shape == (size,) and model.lm_head.bias is model.lm_head.decoder.bias
        model.zero_grad()
        model(**inputs).loss.backward()
    assert caplog.text.count("mask_token_id 399 is cut off, and 300, the last token left, takes its place") == 1
    assert torch.equal(model.get_input_embeddings().weight[:300], word)
    model.save_pretrained(tmp_path)
    again, info = CCRKForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and again.config.mask_token_id == 300
    assert torch.equal(again.lm_head.bias, model.lm_head.bias)


def test_every_position_starts_like_the_others():
    """XLM-R's padding position too, which a caption's second token has here; and without weights to load as well."""
    config = tiny_config()
    for model in (CCRKModel(config), CCRKModel.from_pretrained(None, config=config, state_dict={})):
        spread = model.text_model.embeddings.position_embeddings.weight.std(dim=1)
        assert ((spread > 0.01) & (spread < 0.04)).all()


def test_the_main_input_is_the_first():
    for head in CLASSES:
        assert next(iter(inspect.signature(head.forward).parameters)) == "self"
        assert list(inspect.signature(head.forward).parameters)[1] == head.main_input_name == "input_ids"


@pytest.mark.slow
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_lora_with_activation_checkpointing(tiny_model, use_reentrant):
    """Everything frozen but the adapters: gradients must start behind the frozen embeddings, the pictures' too."""
    # In a process of its own: reentrant checkpoints start threads of autograd, and after them no test here could fork.
    assert exit_code_of(assert_checkpointing_changes_no_gradient, tiny_model, use_reentrant) == 0


def assert_checkpointing_changes_no_gradient(tiny_model, use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        adapters = LoraConfig(target_modules=["query", "value", "q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(copy.deepcopy(tiny_model), adapters).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(**batch(vocab_size=100), sampling_keys=torch.arange(3)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert len(gradients[0]) > 20 and all(gradient is not None for gradient in gradients[0].values())
    assert_close(gradients[1], gradients[0])


class TestStochasticDepth:
    """Drops the attention and the MLP branch of a Swin block, each for itself and picture by picture."""

    RATE = 0.5

    @pytest.fixture
    def model(self, tiny_model) -> CCRKModel:
        vision = {**tiny_model.config.vision_config.to_dict(), "drop_path_rate": self.RATE, "depths": [1, 2, 1]}
        return CCRKModel(tiny_config(vision_config=vision))

    @staticmethod
    def last_block(model):
        return model.vision_model.encoder.layers[-1].blocks[-1]

    def assert_drops_both(self, model):
        """A block in training against the published procedure, written out, with the same random numbers."""
        block = self.last_block(model.train())
        height, width = grid = block.input_resolution
        states = torch.randn(16, height * width, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.manual_seed(3)
            trained = block(states, grid)[0]
            torch.manual_seed(3)
            keep = [(torch.rand(16, 1, 1) >= self.RATE) / (1 - self.RATE) for _ in range(2)]
            block.eval()
            seen = []
            hook = block.layernorm_after.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
            block(states, grid)
            hook.remove()
            expected = states + keep[0] * (seen[0] - states)
            expected = expected + keep[1] * block.mlp(block.layernorm_after(expected))
        assert len({tuple(factor.tolist()) for factor in torch.cat(keep, dim=1).squeeze(-1)}) == 4  # all combinations
        assert_close(trained, expected)

    def test_both_branches(self, model):
        self.assert_drops_both(model)

    def test_rates_grow_from_block_to_block(self, model):
        blocks = [block for stage in model.vision_model.encoder.layers for block in stage.blocks]
        rates = [getattr(block.mlp.drop_path, "drop_prob", 0.0) for block in blocks]
        assert rates == pytest.approx([0.0, self.RATE / 3, self.RATE * 2 / 3, self.RATE])
        assert [block.mlp.drop_path for block in blocks] == [block.drop_path for block in blocks]

    def test_evaluation_is_that_of_transformers(self, model):
        swin = SwinModel(model.config.vision_config, add_pooling_layer=False)
        swin.load_state_dict(model.vision_model.state_dict())
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            expected = swin.eval()(images).last_hidden_state
            assert torch.equal(model.eval().vision_model(images).last_hidden_state, expected)

    def test_a_block_that_is_always_dropped_passes_its_input_on(self, model):
        block = self.last_block(model.train())
        block.drop_path.drop_prob = 1 - 1e-7
        states = torch.randn(8, 4 * 4, 32)
        assert torch.equal(block(states, (4, 4))[0], states)

    def test_it_outlives_copies_checkpoints_and_other_sizes(self, model, tmp_path):
        self.assert_drops_both(copy.deepcopy(model))
        self.assert_drops_both(pickle.loads(pickle.dumps(model)))
        model.save_pretrained(tmp_path)
        self.assert_drops_both(CCRKModel.from_pretrained(tmp_path))
        resize_image_encoder(model, 128)
        assert model.vision_model.config.image_size == 128
        self.assert_drops_both(model)
        swin = SwinModel(copy.deepcopy(model.config.vision_config))
        text = str(TINY_A / "xlm-roberta-large-tiny")
        self.assert_drops_both(CCRKModel.from_vision_text_pretrained(swin, text))

    def test_activation_checkpointing_drops_the_same(self, model):
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable()
            model.train().zero_grad()
            torch.manual_seed(0)
            model.get_image_features(torch.ones(4, 3, 64, 64)).pooler_output.sum().backward()
            gradients.append([parameter.grad.clone() for parameter in model.vision_model.parameters()])
        assert_close(gradients[1], gradients[0])


def test_padding_changes_nothing(tiny_model):
    model = tiny_model.ccrk.eval()
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    padded = torch.tensor([[0, 5, 6, 7, 2, 1, 1, 1]])
    mask = (padded != 1).long()
    assert_close(model(input_ids=ids).text_embeds, model(input_ids=padded, attention_mask=mask).text_embeds)


def test_match_reuses_images_and_agrees_with_one_pair_at_a_time(tiny_model):
    model, inputs = tiny_model.eval(), batch(vocab_size=100)
    outputs = model.ccrk(**inputs)
    mask = inputs["attention_mask"]
    images, captions = torch.tensor([2, 0, 0, 1]), torch.tensor([0, 5, 1, 3])
    together = model.match(outputs.image_states, outputs.text_states, mask, images, captions)
    for pair, (image, caption) in enumerate(zip(images, captions, strict=True)):
        alone = model.match(
            outputs.image_states[image, None], outputs.text_states[caption, None], mask.flatten(0, 1)[caption, None]
        )
        assert_close(together[pair], alone[0])


def test_attention_implementations_agree(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    inputs = batch(vocab_size=100)
    results = {}
    for implementation in ("eager", "sdpa"):
        model = CCRKForPreTraining.from_pretrained(tmp_path, attn_implementation=implementation).eval()
        assert model.ccrk.fusion_encoder.config._attn_implementation == implementation
        torch.manual_seed(0)
        results[implementation] = model(**inputs)
    assert_close(results["eager"].loss, results["sdpa"].loss)


def test_flash_attention_leaves_an_image_encoder_without_it_on_sdpa(monkeypatch):
    # No flash attention is installed where tests run: what transformers checks is taken as given.
    monkeypatch.setattr(
        PreTrainedModel, "_check_and_adjust_attn_implementation", lambda _, implementation, *__, **___: implementation
    )
    config = tiny_config()
    config._attn_implementation = "flash_attention_2"
    model = CCRKModel(config)
    assert model.text_model.config._attn_implementation == "flash_attention_2"
    assert model.fusion_encoder.config._attn_implementation == "flash_attention_2"
    assert model.vision_model.config._attn_implementation == "sdpa"


def test_bf16_autocast_keeps_embeddings_and_losses_in_fp32(tiny_model):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = tiny_model(**batch(vocab_size=100))
    assert {t.dtype for t in outputs.values() if t.is_floating_point()} == {torch.float32}
    outputs.loss.backward()
    assert torch.isfinite(outputs.loss)


def test_the_position_that_xlm_roberta_keeps_for_padding_learns_too(tiny_model):
    tiny_model(**batch(vocab_size=100)).loss.backward()
    gradient = tiny_model.ccrk.text_model.embeddings.position_embeddings.weight.grad
    assert (gradient[:8].abs().sum(dim=1) > 0).all()


def test_gradient_checkpointing_changes_no_gradient(tiny_model):
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            tiny_model.gradient_checkpointing_enable()
            assert all(layer.gradient_checkpointing for layer in tiny_model.ccrk.fusion_encoder.layers)
        tiny_model.train().zero_grad()
        torch.manual_seed(0)
        tiny_model(**batch(vocab_size=100)).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in tiny_model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert_close(plain, checkpointed)


def test_temperature_stays_in_range_and_keeps_its_gradient(tiny_model):
    tiny_model.ccrk.temperature.data.fill_(3.0)
    tiny_model(**batch(vocab_size=100)).loss.backward()
    assert tiny_model.ccrk.temperature.item() == 0.5 and tiny_model.ccrk.temperature.grad.item() != 0
    tiny_model.ccrk.temperature.data.fill_(-1.0)
    tiny_model(**batch(vocab_size=100))
    assert tiny_model.ccrk.temperature.item() == pytest.approx(0.001)
