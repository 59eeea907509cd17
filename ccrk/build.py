"""From a recipe to a data set, a model and a trainer."""

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import torch
import transformers
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForMaskedLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    ProcessorMixin,
    TokenizersBackend,
)
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

import data_scripts
from ccrk import CCRKForImageTextRetrieval, CCRKForPreTraining, CCRKProcessor, normalize_caption
from ccrk.arguments import DataArguments, ModelArguments, config_from_scratch, vocab_size_from_scratch
from ccrk.encoders import (
    OPEN_CLIP,
    CCRKEncoder,
    DualEncoder,
    Encoder,
    has_modules,
    input_size,
    kind_of_encoder,
    make_encoder,
    sentence_transformer_encoder,
)
from ccrk.processes import check_processes
from ccrk.resize import resize_image_encoder
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.batches import check_last_batch, describe_batches, warn_of_another_batch
from ccrk.training.captions import check_agreement, check_captions, warn_of_long_captions
from ccrk.training.checkpoints import agree_on_checkpoint, disk_errors, steps_of
from ccrk.training.collator import CCRKCollator, published_augmentation
from ccrk.training.features import cache_features
from ccrk.training.hard_negatives import hard_negative_sampler
from ccrk.training.model_card import evaluations_of_saved_weights
from ccrk.training.text_rows import check_text_rows, text_rows
from ccrk.training.trainable import add_adapters, freeze, keep_still
from ccrk.training.trainer import CCRKTrainer
from data_scripts.caption_rows import CaptionRows
from data_scripts.captions import is_usable
from data_scripts.cli import InputError, one_line, one_line_errors
from data_scripts.files import check_output_folder, open_model, open_pretrained
from data_scripts.options import data_options
from data_scripts.shards import ShardRows
from data_scripts.streams import EndlessRows
from data_scripts.tokenizer import train_tokenizer
from modeling_ccrk import CCRKPairModel
from processing_ccrk import published_image_processor

logger = logging.getLogger(__name__)

STREAMED_ROWS_FOR_TOKENIZER = 20_000
NO_CAPTIONS = "no row has a usable caption; are these the languages of the data?"


# Arguments that only one kind of model takes.
OF_CCRK = ("config", "layers", "image_size", "max_words", "max_length")
BEHIND_TOWERS = ("pooling", "caption_prompt", "projection", "projection_dropout")


def load_rows(
    data: DataArguments, split: str, languages: Sequence[str] | None = None, streaming: bool = False, **others
) -> datasets.Dataset | ShardRows:
    """One split of the recipe's data set."""
    options = data_scripts.merge_options(
        data.dataset_config or {},
        split=split,
        **data_options(data) | ({"languages": languages} if languages else {}),
        streaming=streaming,
        few_shot=data.few_shot,
        max_bad_fraction=data.max_bad_fraction,
        **others,
    )
    return data_scripts.load(data.dataset, **options)


def check_stream(data: DataArguments, arguments: CCRKTrainingArguments) -> None:
    """Raises ValueError for what cannot be had of a stream, whose rows nobody has counted."""
    if arguments.max_steps < 1:
        raise ValueError("a stream has no last row to end an epoch; set max_steps")
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if getattr(getattr(arguments, name), "value", getattr(arguments, name)) == "epoch":
            raise ValueError(f"a stream has no last row to end an epoch; set {name} to steps")
    if data.max_train_rows is not None:
        raise ValueError("max_train_rows takes the first of all rows, and a stream is shared out; remove it")


def keep_usable_rows(dataset: datasets.Dataset, beside: Sequence[str] = ()) -> datasets.Dataset:
    """Leaves out the rows without a single usable caption in languages that are not `beside`, and reports how many."""
    languages = [language for language in dataset.features["captions"] if language not in beside]
    kept = [
        row
        for row, captions in enumerate(dataset["captions"])
        if any(is_usable(caption) for language in languages for caption in captions[language])
    ]
    if not kept:
        raise ValueError(NO_CAPTIONS)
    if len(kept) < len(dataset):
        in_these = f" in {' '.join(languages)}" if beside else ""
        logger.warning("%d of %d rows left out: no usable caption%s", len(dataset) - len(kept), len(dataset), in_these)
        dataset = dataset.select(kept)
    return dataset


def kind_of_model(model: ModelArguments, head: type[CCRKPairModel]) -> type[Encoder]:
    """What is to be trained: CCRK, a dual encoder, or a SentenceTransformer, as which two towers are saved.

    Raises:
        ValueError: no model can come of these arguments; before the data is looked at.
    """
    if model.model_name_or_path is not None:
        if model.model_name_or_path.startswith(OPEN_CLIP):
            raise ValueError(
                f"{model.model_name_or_path} can be evaluated, not trained; give the same model of transformers"
            )
        _refuse(model, BEHIND_TOWERS, "two towers", model.model_name_or_path)
        kind = kind_of_encoder(model.model_name_or_path)
        if kind is not CCRKEncoder and head is CCRKForPreTraining:
            raise ValueError(f"{model.model_name_or_path} is no CCRK; train_retrieval.py trains it by 1-to-K")
        if kind is not CCRKEncoder:
            _refuse(model, OF_CCRK, "CCRK models", model.model_name_or_path)
            _refuse(model, ("vision_model", "text_model"), "two towers", model.model_name_or_path)
        elif model.layers is not None:
            raise ValueError("layers applies only to an encoder to start from, not to a checkpoint; remove it")
        return kind
    if (model.vision_model is None) != (model.text_model is None):
        raise ValueError("vision_model and text_model go together: give both, or neither to train from scratch")
    is_ccrk = model.config is not None or model.layers is not None or head is CCRKForPreTraining
    if model.vision_model is not None and not is_ccrk:
        kind = sentence_transformer_encoder()
        _refuse(model, OF_CCRK, "CCRK models", "a model of two towers")
        return kind
    _refuse(model, BEHIND_TOWERS, "two towers", "a CCRK")
    if model.vision_model is None and model.layers is not None:
        raise ValueError(
            "layers applies only to an encoder to start from; give vision_model and text_model, or remove it"
        )
    if model.use_peft:
        raise ValueError("use_peft adapts a trained model; give model_name_or_path")
    if model.image_size is None:
        raise ValueError("image_size is missing; published models are pre-trained at 224 and fine-tuned at 384 pixels")
    if model.vision_model is None and vocab_size_from_scratch(model) is None:
        raise ValueError(
            "there is nothing to start from: give model_name_or_path, or vision_model and text_model, or a config "
            "with text_config.vocab_size to train from scratch"
        )
    return CCRKEncoder


def _refuse(model: ModelArguments, names: Sequence[str], whose: str, source: str) -> None:
    """ValueError where there are arguments that a model from this source does not take."""
    default = ModelArguments()
    if given := [name for name in names if getattr(model, name) != getattr(default, name)]:
        raise ValueError(f"{given[0]} applies only to {whose}, not to {source}; remove it")


def build_processor(
    model: ModelArguments, dataset: datasets.Dataset | ShardRows, checkpoint: str | None = None
) -> ProcessorMixin:
    """
    The processor of a CCRK or its XLM-R; from scratch, one whose tokenizer learns from the captions.

    A run that goes on from a checkpoint of its own keeps that one's: tokens would mean something else in another.
    """
    if checkpoint is not None:
        return open_pretrained(CCRKProcessor, checkpoint)
    if model.model_name_or_path is not None:
        limits = {"max_words": model.max_words, "max_length": model.max_length}
        limits = {name: limit for name, limit in limits.items() if limit is not None}
        processor = open_pretrained(CCRKProcessor, model.model_name_or_path, **limits)
        if model.image_size is not None:
            processor.image_processor.size = {"height": model.image_size, "width": model.image_size}
        return processor
    if model.text_model is not None:
        tokenizer = open_pretrained(AutoTokenizer, model.text_model)
    else:
        tokenizer = _tokenizer_from_captions(model, dataset)
    image_processor = published_image_processor(model.image_size)
    if model.vision_model is not None:
        # Published is CLIP's normalisation, whatever a Swin had; timm's know the one that they were trained with.
        vision = open_pretrained(AutoConfig, model.vision_model)
        if vision.model_type == "timm_wrapper":
            own = open_pretrained(AutoImageProcessor, model.vision_model).data_config
            image_processor.image_mean, image_processor.image_std = list(own["mean"]), list(own["std"])
    return CCRKProcessor(
        image_processor,
        tokenizer,
        max_words=model.max_words or 40,
        max_length=model.max_length or 40,
    )


def _tokenizer_from_captions(model: ModelArguments, dataset: datasets.Dataset | ShardRows) -> TokenizersBackend:
    captions = []
    if isinstance(dataset, ShardRows):
        rows = dataset.captions()
    elif isinstance(dataset, datasets.IterableDataset):
        rows = (row["captions"] for row in dataset.take(STREAMED_ROWS_FOR_TOKENIZER))
    else:
        rows = dataset["captions"]
    for row in rows:
        for caption in (caption for texts in row.values() for caption in texts):
            if is_usable(caption):  # the others are counted where rows are chosen
                captions.append(normalize_caption(caption, model.max_words or 40))
    if not captions:
        raise ValueError(NO_CAPTIONS)
    return train_tokenizer(captions, model.config["text_config"]["vocab_size"], model.max_length or 40)


def build_model(model: ModelArguments, processor: ProcessorMixin, head: type[CCRKPairModel]) -> PreTrainedModel:
    """A CCRK with its head, from one of the three sources of `ModelArguments`."""
    config = dict(model.config or {})
    if model.model_name_or_path is not None:
        heads = ("matching_head", "lm_head")
        loaded, lacking = open_model(head, model.model_name_or_path, heads, **config)
        if lacking:
            logger.info("%s has no %s: to be trained from scratch", model.model_name_or_path, " and no ".join(lacking))
        if model.image_size is not None:
            resize_image_encoder(loaded, model.image_size)
        return add_adapters(loaded, model.lora_r) if model.use_peft else loaded
    config["mask_token_id"] = processor.tokenizer.mask_token_id
    if model.vision_model is not None:
        for source in (model.vision_model, model.text_model):
            if has_modules(source):
                logger.warning(
                    "%s is a SentenceTransformer: a CCRK takes its encoder, not its pooling or prompts", source
                )
        vision_model, _ = open_model(AutoModel, model.vision_model)
        text_model, _ = open_model(AutoModelForMaskedLM, model.text_model, may_lack=("lm_head",))
        started = head.from_vision_text_pretrained(vision_model, text_model, model.layers or "every_second", **config)
        resize_image_encoder(started, model.image_size)
        return started
    made = config_from_scratch(model, len(processor.tokenizer), processor.tokenizer.mask_token_id)
    with blaming("config"):
        return head(made)


def build_dual(model: ModelArguments, kind: type[Encoder], contrastive_loss: str | None) -> torch.nn.Module:
    """A dual encoder of transformers; or a SentenceTransformer with its temperature, opened or made of two towers."""
    if kind is DualEncoder:
        made, _ = open_model(AutoModel, model.model_name_or_path)
        if not hasattr(made, "logit_scale"):
            raise ValueError(
                f"{model.model_name_or_path} cannot be trained, since its {type(made).__name__} has no logit_scale; "
                "train a model that has one, such as CLIP, SigLIP, MetaCLIP 2, BLIP or a VisionTextDualEncoder"
            )
    else:
        # Here, since it takes a package that others need not install.
        from ccrk.towers import SentenceTransformerPair, join_towers, open_pair

        sigmoid = None if contrastive_loss is None else contrastive_loss == "sigmoid"
        if model.model_name_or_path is not None:
            made = open_pair(model.model_name_or_path, sigmoid)
        else:
            joined = join_towers(
                model.vision_model,
                model.text_model,
                model.pooling,
                model.caption_prompt,
                model.projection_dropout,
                residual=model.projection == "residual",
            )
            made = SentenceTransformerPair(joined, sigmoid)
    return add_adapters(made, model.lora_r) if model.use_peft else made


@contextlib.contextmanager
def whole_parameters(arguments: CCRKTrainingArguments) -> Iterator[None]:
    """
    Inside, a model is made whole on every process also under ZeRO-3, which would make it in pieces.

    Encoders are copied into it layer by layer, and position tables resized: that takes whole tensors. DeepSpeed
    spreads them over the processes when training starts.
    """
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if arguments.deepspeed_plugin is not None:
            set_hf_deepspeed_config(arguments.deepspeed_plugin.hf_ds_config)


@contextlib.contextmanager
def blaming(settings: str) -> Iterator[None]:
    """Whatever is raised inside becomes a ValueError of one line that begins with the settings to blame for it."""
    try:
        yield
    except Exception as error:  # there is no end to what libraries raise on settings that they were not made for
        reason = one_line(str(error).partition("\n")[0])
        raise ValueError(f"{settings}: {reason or 'no reason given'} ({type(error).__name__})") from error


def check_settings(trainer: CCRKTrainer) -> None:
    """
    Raises ValueError where no step can be made: the optimizer and its schedule do not take their arguments, or the
    model not its own processor's pictures and captions, of which it gets one each. Leaves the trainer as it was.
    """
    args, model, collator = trainer.args, trainer.model, trainer.data_collator
    size = input_size(collator.processor.image_processor)
    captions = {language: ["a " * collator.processor.max_length] for language in collator.languages}
    row = {"image": Image.new("RGB", (64, 64)), "image_id": "a", "captions": captions}
    with blaming(f"image_size {size} or config"), torch.random.fork_rng(devices=[]), torch.no_grad():
        trainer.encoder.embed(model.eval(), collator([row]))
        model.train()
    if args.torch_compile:  # nothing is compiled before the first step
        with blaming(
            f"torch_compile_backend {args.torch_compile_backend}, torch_compile_mode {args.torch_compile_mode}"
        ):
            torch.compile(model, backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    if trainer.is_deepspeed_enabled:  # whose file may have another optimizer
        return
    with blaming(f"optim {args.optim.value}, optim_args {args.optim_args}"):
        trainer.create_optimizer()
    with blaming(f"lr_scheduler_type {args.lr_scheduler_type.value}, lr_scheduler_kwargs {args.lr_scheduler_kwargs}"):
        trainer.create_scheduler(1000)
    trainer.optimizer = trainer.lr_scheduler = None  # training makes its own, on its device


def check_positions(model: CCRKPairModel, processor: CCRKProcessor) -> None:
    """Captions keep no more tokens than the model has positions for; a warning where that is fewer than asked for."""
    text = model.config.text_config
    if (positions := text.max_position_embeddings - model.config.position_ids_start) < processor.max_length:
        logger.warning(
            "the model has positions for %d tokens: captions keep so many, not max_length %d",
            positions,
            processor.max_length,
        )
        processor.max_length = positions


def recipe_settings(data: DataArguments, model: ModelArguments, processor: ProcessorMixin | None) -> dict:
    """What a recipe says of data and model; a run that is resumed with anything else says so."""
    settings = {name: value for name, value in vars(data).items() if name not in ("languages", "max_bad_fraction")}
    settings |= {name: value for name, value in vars(model).items() if name not in ("config", "image_size")}
    # The model's configuration itself is compared; what it does not show is how many pieces were to be learnt.
    settings["vocab_size"] = ((model.config or {}).get("text_config") or {}).get("vocab_size")
    return settings | {name: settings[name] or getattr(processor, name, None) for name in ("max_words", "max_length")}


def build_trainer(
    data: DataArguments,
    model_arguments: ModelArguments,
    arguments: CCRKTrainingArguments,
    head: type[CCRKPairModel],
) -> CCRKTrainer:
    """Everything that a run needs.

    Args:
        head: of a CCRK model: `CCRKForPreTraining`, or `CCRKForImageTextRetrieval`, which by default is trained on one
            caption per image and step.
    """
    transformers.set_seed(arguments.seed)
    check_processes(arguments)
    if arguments.should_save:
        check_output_folder(Path(arguments.output_dir))
    kind = kind_of_model(model_arguments, head)
    takes_one = head is CCRKForImageTextRetrieval and kind is CCRKEncoder and data.agreement_languages is None
    one_language = (data.captions_per_image or ("one" if takes_one else "all")) == "one"
    check_agreement(data, arguments, one_language)
    if data.rows == "captions" and not one_language:
        raise ValueError("rows is captions, but 1-to-K takes all captions of an image at once; remove rows")
    beside = data.agreement_languages or []
    if beside:
        data = replace(data, languages=[*data.languages, *beside])
    if data.text_only_rows:
        check_text_rows(data, arguments, kind)
    if one_language and data.rows is None:
        data = replace(data, rows="captions")
    if arguments.negatives_queue and model_arguments.model_name_or_path is None:
        logger.warning("negatives_queue: from scratch nothing was learnt with it (docs/training.md); begin without it")
    checkpoint = agree_on_checkpoint(arguments.output_dir, arguments.resume_from_checkpoint)
    # One process prepares the data and writes the cache; the others then find it there.
    with arguments.main_process_first(desc="preparing the data"):
        train_rows = load_rows(data, "train", streaming=data.streaming)
        # Images that were held out are evaluated at least once, at the end.
        with_validation = arguments.eval_strategy != "no" or (data.validation_fraction and not data.streaming)
        eval_rows = load_rows(data, "validation") if with_validation else None
        alone = None
        if data.text_only_rows:
            alone = text_rows(load_rows(data, "train", list(train_rows.features["captions"]), text_only=True))
    is_stream = isinstance(train_rows, datasets.IterableDataset)
    if is_stream:
        check_stream(data, arguments)
        train_rows = train_rows.cast_column("image", datasets.Image(decode=False))
    if data.max_train_rows is not None:
        train_rows = train_rows.select(range(min(data.max_train_rows, len(train_rows))))
    processor = None  # a SentenceTransformer's are in its modules
    if kind is CCRKEncoder:
        processor = build_processor(model_arguments, train_rows, checkpoint)
    elif kind is DualEncoder:
        processor = open_pretrained(AutoProcessor, checkpoint or model_arguments.model_name_or_path)
    # The collator decodes images: at reduced scale, and where it can leave bad ones out.
    if isinstance(train_rows, ShardRows):  # their index holds usable rows only
        train_rows = replace(train_rows, decode=False)
    elif is_stream:  # which gives rows with captions alone
        train_rows = EndlessRows(
            train_rows,
            arguments.train_batch_size,
            arguments.process_index,
            arguments.world_size,
            arguments.seed if arguments.data_seed is None else arguments.data_seed,
        )
    else:
        train_rows = keep_usable_rows(train_rows, beside)
        if not one_language:
            check_captions(data, train_rows)
        train_rows = train_rows.cast_column("image", datasets.Image(decode=False))
    languages = [language for language in train_rows.features["captions"] if language not in beside] + beside
    if data.rows == "captions":
        if data.streaming and not isinstance(train_rows, datasets.Dataset):
            logger.warning("the captions of a stream are not numbered: a row is an image with one that is drawn")
        else:
            train_rows = CaptionRows(train_rows)
    if not is_stream:
        check_last_batch(arguments, len(train_rows))
    with whole_parameters(arguments):
        if kind is CCRKEncoder:
            model = build_model(model_arguments, processor, head)
        else:
            model = build_dual(model_arguments, kind, arguments.contrastive_loss)
    if model_arguments.freeze:
        freeze(model, model_arguments.freeze)
    keep_still(model)
    if kind is CCRKEncoder:
        check_positions(model, processor)
    try:
        encoder = make_encoder(model.get_base_model() if model_arguments.use_peft else model, processor)
    except ValueError as error:
        source = model_arguments.model_name_or_path or model_arguments.text_model
        raise ValueError(f"{source}: {error}") from error
    inputs = encoder.inputs
    rows = train_rows.images if isinstance(train_rows, CaptionRows) else train_rows
    if isinstance(rows, datasets.Dataset):
        warn_of_long_captions(rows, encoder)
    image_size = input_size(inputs.image_processor)
    logger.info(
        "languages %s; %.1f M parameters, %d px",
        " ".join(languages),
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        image_size,
    )
    augmentation = None
    if data.augmentation == "published":
        augmentation = published_augmentation(image_size, data.crop_min_scale)
    trainer = CCRKTrainer(
        model=model,
        args=arguments,
        data_collator=CCRKCollator(
            inputs,
            languages,
            one_language,
            augmentation,
            arguments.seed,
            text_rows=alone,
            agreement_only=len(beside),
        ),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=processor,
    )
    check_settings(trainer)
    if data.max_bad_fraction is not None:
        trainer.problems.max_bad_fraction = data.max_bad_fraction
    if data.hard_negatives is not None:
        trainer.train_sampler = hard_negative_sampler(trainer, data.hard_negatives)
    cache_features(trainer, model_arguments)
    if trainer.train_sampler is not None and len(trainer.train_sampler) > len(trainer.train_dataset):
        raise ValueError("hard_negatives with cached features needs pictures that can all be read; remove one of them")
    steps_per_epoch, steps = trainer.steps()
    rows = f"a stream of {train_rows.rows.num_shards:,} parts" if is_stream else f"{len(trainer.train_dataset):,} rows"
    logger.info("%s, %s", rows, describe_batches(arguments, None if is_stream else steps_per_epoch, steps))
    warn_of_another_batch(arguments)
    trainer.checkpoint = checkpoint
    trainer.recipe = recipe_settings(data, model_arguments, processor)
    trainer.check_metric()
    if eval_rows is not None:
        evaluated = trainer.languages_to_evaluate(eval_rows)
        if left_out := [language for language in languages if language not in evaluated]:
            logger.warning(
                "no validation captions in %s: evaluation is in %s alone", " ".join(left_out), " ".join(evaluated)
            )
    return trainer


def run(trainer: CCRKTrainer) -> None:
    """
    Trains, and saves model, processor, metrics and model card in `output_dir`; `trainer_state.json` when all is there.

    Of a model with adapters, these are saved in `output_dir/adapter`, and merged into the model of `output_dir`. A run
    that is to be resumed but has come to its end is left as it is. One that SIGTERM ends has only its checkpoint, and
    the process ends as SIGTERM would have it, with 143.
    """
    arguments, output_dir = trainer.args, Path(trainer.args.output_dir)
    with one_line_errors((InputError, OSError, FloatingPointError)):
        if arguments.resume_from_checkpoint and (done := steps_of(output_dir)) >= (total := trainer.steps()[1]):
            logger.warning(
                "%s holds this run after its last step (%d of %d): there is nothing to do", output_dir, done, total
            )
            return
        trainer.accelerator.wait_for_everyone()  # before one of them begins, and deletes what says so
        result = trainer.train(resume_from_checkpoint=trainer.checkpoint)
        if trainer.was_terminated:
            logger.warning(
                "ended by SIGTERM, to this process or its launcher; to continue, run the same command with "
                "--resume_from_checkpoint auto"
            )
            sys.exit(128 + signal.SIGTERM)
        trainer.problems.report()
        with disk_errors(output_dir, "save it from the last checkpoint with --resume_from_checkpoint auto"):
            trainer.save_model()
        if trainer.eval_dataset is not None and not evaluations_of_saved_weights(trainer):
            trainer.evaluate()
        if hasattr(trainer.model, "merge_and_unload"):  # what the card is about
            trainer.model = trainer.model.merge_and_unload()
        metrics = result.metrics | trainer.summary()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.create_model_card()
        trainer.save_state()
        if arguments.push_to_hub:
            trainer.push_to_hub()
