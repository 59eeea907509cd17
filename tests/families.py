"""Tiny random models of the families of dual encoders, with tokenizers that are made on the spot."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import sentencepiece
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers.models.tipsv2 import Tipsv2ImageProcessor, Tipsv2Processor
from transformers.models.tipsv2.tokenization_tipsv2 import Tipsv2Tokenizer

SENTENCES = ["Ein Hund am Strand", "ein hund am strand", "a dog on the beach, A DOG!", "Café Über straße", "un café"]
POSITIONS = 16
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SIZES | {"image_size": 32, "patch_size": 8}
SQUARE = {"size": {"height": 32, "width": 32}}
CROP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def text(tokenizer, **others) -> dict:
    return SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS} | others


def clip_words() -> hf.CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    return hf.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=POSITIONS)


def bert_words(length: int = POSITIONS) -> hf.BertTokenizer:
    letters = 'abcdefghijklmnopqrstuvwxyz"'
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {name: number for number, name in enumerate(names)}
    return hf.BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=length)


def pieces(sentences: list[str], **options) -> bytes:
    file = io.BytesIO()
    options = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences * 5), model_writer=file, **options)
    return file.getvalue()


def xlmr_words(length: int = POSITIONS) -> hf.XLMRobertaTokenizer:
    model = sentencepiece.SentencePieceProcessor(model_proto=pieces(SENTENCES))
    own = [(model.id_to_piece(i), model.get_score(i)) for i in range(3, model.get_piece_size())]
    vocabulary = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")] + own
    return hf.XLMRobertaTokenizer(vocab=vocabulary, model_max_length=length)


def siglip_words(folder: Path) -> hf.SiglipTokenizer:
    lower = [sentence.lower() for sentence in SENTENCES]
    (folder / "spiece.model").write_bytes(pieces(lower, pad_id=-1, bos_id=-1, eos_id=1, unk_id=2))
    return hf.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=POSITIONS)


def gemma_words(folder: Path, kind: str = "GemmaTokenizer"):
    """As SigLIP 2's: no token before a text, `<eos>` behind it, and letters as they are."""
    words = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    words.normalizer = normalizers.Replace(" ", "▁")
    words.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words.train_from_iterator(SENTENCES * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    end = {"pair": "$A:0 <eos>:0 $B:1 <eos>:1", "special_tokens": [("<eos>", 1)]}
    words.post_processor = processors.TemplateProcessing(single="$A:0 <eos>:0", **end)
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    words.save(str(folder / "tokenizer.json"))
    settings = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    settings |= {"tokenizer_class": kind, "padding_side": "right", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return getattr(hf, kind).from_pretrained(folder)


def nllb_words(folder: Path) -> hf.NllbTokenizer:
    names = ["<s>", "<pad>", "</s>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyzZH"]
    words = hf.NllbTokenizer(vocab={name: number for number, name in enumerate(names)}, merges=[])
    words.save_pretrained(folder)
    return words


def clip(_):
    words = clip_words()
    own = text(words, eos_token_id=words.eos_token_id)
    config = hf.CLIPConfig(text_config=own, vision_config=VISION, projection_dim=8)
    return hf.CLIPModel(config), hf.CLIPProcessor(hf.CLIPImageProcessor(**CROP), words)


def siglip(folder, words=None):
    words = words or siglip_words(folder)
    config = hf.SiglipConfig(text_config=text(words, projection_size=32), vision_config=VISION)
    return hf.SiglipModel(config), hf.SiglipProcessor(hf.SiglipImageProcessor(**SQUARE), words)


def siglip2_fixed(folder):
    return siglip(folder, gemma_words(folder))


def siglip2_naflex(folder):
    words = gemma_words(folder, "Siglip2Tokenizer")
    vision = SIZES | {"patch_size": 16}
    config = hf.Siglip2Config(text_config=text(words, projection_size=32), vision_config=vision)
    return hf.Siglip2Model(config), hf.Siglip2Processor(hf.Siglip2ImageProcessor(), words)


def align(_):
    words = bert_words(length=512)
    vision = {"image_size": 32, "hidden_dim": 32, "width_coefficient": 0.1, "depth_coefficient": 0.1}
    own = text(words, max_position_embeddings=512)
    config = hf.AlignConfig(text_config=own, vision_config=vision, projection_dim=32)  # as wide as its images
    return hf.AlignModel(config), hf.AlignProcessor(hf.EfficientNetImageProcessor(**SQUARE), words)


def altclip(_):
    words = xlmr_words(length=512)
    own = text(words, max_position_embeddings=514, project_dim=32, pad_token_id=1)
    config = hf.AltCLIPConfig(text_config=own, vision_config=VISION, projection_dim=8)
    return hf.AltCLIPModel(config), hf.AltCLIPProcessor(hf.CLIPImageProcessor(**CROP), words)


def chinese_clip(_):
    words = bert_words(length=512)
    own = text(words, max_position_embeddings=512)
    config = hf.ChineseCLIPConfig(text_config=own, vision_config=VISION, projection_dim=8)
    images = hf.ChineseCLIPImageProcessor(**SQUARE, do_center_crop=False)
    return hf.ChineseCLIPModel(config), hf.ChineseCLIPProcessor(images, words)


def blip(_):
    words = bert_words()
    own = text(words, encoder_hidden_size=32)
    config = hf.BlipConfig(text_config=own, vision_config=VISION, projection_dim=8, image_text_hidden_size=8)
    return hf.BlipModel(config), hf.BlipProcessor(hf.BlipImageProcessor(**SQUARE), words)


def clipseg(_):
    words = clip_words()
    own = text(words, eos_token_id=words.eos_token_id)
    decoder = {"reduce_dim": 8, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
    config = hf.CLIPSegConfig(text_config=own, vision_config=VISION, projection_dim=8, extract_layers=[0], **decoder)
    return hf.CLIPSegModel(config), hf.CLIPSegProcessor(hf.ViTImageProcessor(**SQUARE), words)


def groupvit(_):
    words = clip_words()
    vision = SIZES | {"depths": [1, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 0]}
    vision |= {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    own = text(words, eos_token_id=words.eos_token_id)
    config = hf.GroupViTConfig(text_config=own, vision_config=vision, projection_dim=8, projection_intermediate_dim=16)
    return hf.GroupViTModel(config), hf.CLIPProcessor(hf.CLIPImageProcessor(**CROP), words)


def metaclip_2(_):
    words = xlmr_words()
    own = text(words, eos_token_id=words.eos_token_id)
    config = hf.MetaClip2Config(text_config=own, vision_config=VISION, projection_dim=8)
    return hf.MetaClip2Model(config), hf.CLIPProcessor(hf.CLIPImageProcessor(**CROP), words)


def owlvit(_):
    words = clip_words()
    config = hf.OwlViTConfig(text_config=text(words), vision_config=VISION, projection_dim=8)
    return hf.OwlViTModel(config), hf.OwlViTProcessor(hf.OwlViTImageProcessor(**SQUARE), words)


def owlv2(_):
    words = clip_words()
    config = hf.Owlv2Config(text_config=text(words), vision_config=VISION, projection_dim=8)
    return hf.Owlv2Model(config), hf.Owlv2Processor(hf.Owlv2ImageProcessor(**SQUARE), words)


def aimv2(_):
    words = clip_words()
    own = text(words, eos_token_id=words.eos_token_id)
    config = hf.Aimv2Config(text_config=own, vision_config=VISION, projection_dim=8)
    return hf.Aimv2Model(config), hf.CLIPProcessor(hf.CLIPImageProcessor(**CROP), words)


def tipsv2(_):
    names = ["<pad>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {name: number for number, name in enumerate(names)}
    words = Tipsv2Tokenizer(vocab=vocabulary, merges=[], model_max_length=POSITIONS)
    vision = {name: size for name, size in VISION.items() if name != "intermediate_size"}
    config = hf.Tipsv2Config(text_config=text(words), vision_config=vision)
    return hf.Tipsv2Model(config), Tipsv2Processor(Tipsv2ImageProcessor(**SQUARE), words)


def two_towers(_, words=None):
    words = words or xlmr_words()
    own = hf.XLMRobertaConfig(**text(words, max_position_embeddings=POSITIONS + 2))
    config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(hf.ViTConfig(**VISION), own, projection_dim=8)
    images = hf.ViTImageProcessor(**SQUARE)
    return hf.VisionTextDualEncoderModel(config), hf.VisionTextDualEncoderProcessor(images, words)


def flava(_):
    words = bert_words()
    codebook = {"hidden_size": 8, "vocab_size": 64, "num_groups": 2, "num_blocks_per_group": 1}
    others = {"multimodal_config": SIZES, "image_codebook_config": codebook, "hidden_size": 32}
    config = hf.FlavaConfig(text_config=text(words), image_config=VISION, projection_dim=8, **others)
    return hf.FlavaModel(config), hf.FlavaProcessor(hf.FlavaImageProcessor(**SQUARE), words)


def blip_2(_):
    words = clip_words()
    language = {"model_type": "opt", "vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1}
    language |= {"ffn_dim": 32, "num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 32}
    former = text(words, encoder_hidden_size=32)
    config = hf.Blip2Config(vision_config=VISION, qformer_config=former, text_config=language, num_query_tokens=2)
    return hf.Blip2Model(config), hf.Blip2Processor(hf.BlipImageProcessor(**SQUARE), words)


def clap(_):
    audio = {"hidden_size": 16, "depths": [1], "num_attention_heads": [2], "patch_embeds_hidden_size": 16}
    audio |= {"spec_size": 64, "num_mel_bins": 64}
    words = bert_words()
    return hf.ClapModel(hf.ClapConfig(text_config=text(words), audio_config=audio)), words


def x_clip(_):
    words = clip_words()
    vision = VISION | {"mit_hidden_size": 16, "mit_intermediate_size": 32, "mit_num_attention_heads": 2}
    vision |= {"mit_num_hidden_layers": 1}
    own = text(words, eos_token_id=words.eos_token_id)
    return hf.XCLIPModel(hf.XCLIPConfig(text_config=own, vision_config=vision, projection_dim=8)), words


def saved(make: Callable, folder: Path) -> str:
    """Where a family's model lies, with random weights that tell texts apart."""
    (folder / "parts").mkdir(parents=True)
    torch.manual_seed(0)
    model, processor = make(folder / "parts")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    for part in (model, processor):
        part.save_pretrained(folder / "model")
    return str(folder / "model")
