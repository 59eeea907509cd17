"""Retrieval with CCRK: encode a corpus, find candidates by cosine, re-score them by the fusion encoder, rank.

The protocol is the paper's (section 4.2): the top k_test captions of each image and the top k_test images of each
caption are re-scored by the matching head. What is not re-scored keeps its cosine order behind what is.

Everything is cut into blocks that depend on the data alone. Processes take every n-th block, so that any number of
them gives the ranks of one, and nothing of size (images x captions) is ever held.
"""

import hashlib
import itertools
import logging
import statistics
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ccrk.encoders import Encoder, encode_captions_in, kind_of_encoder, load_encoder, needs_language
from ccrk.encoding import EncodedCaptions
from ccrk.processes import Share, process_state, progress
from ccrk.retrieval.arrays import check_arrays, evaluate_arrays
from ccrk.retrieval.images import EvaluatedImages
from ccrk.retrieval.instances import count_images, usable_captions
from ccrk.retrieval.notes import cut_note
from ccrk.retrieval.ranking import by_cosine, rank_language
from ccrk.retrieval.results import BY_LANGUAGE, RetrievalResult
from data_scripts.cli import one_line
from data_scripts.files import check_output_folder, written_whole
from data_scripts.images import BadImage, read_image

logger = logging.getLogger(__name__)


CAPTIONS_PER_BLOCK = 256  # encoded at a time, all of similar length

IMAGES_PER_BLOCK = 16  # whose keys and values are held: 7 MB each at the published size in fp32

TIMED_QUERIES = 20

_NAN_CURE = "look for the overflow in the model, or evaluate without --bf16"


@dataclass
class EncodedImages:
    """I images. States stay with the process that encoded them: re-scoring is shared out by image."""

    embeds: Tensor  # (I, projection_dim), L2-normalised, fp32
    states: dict[int, Tensor]  # first row of a block → (rows, T, vision_hidden_size), on the CPU


def evaluate_retrieval(
    encoder: Encoder,
    dataset: datasets.Dataset,
    languages: Sequence[str],
    batch_size: int = 64,
    folds: Mapping[str, int] | None = None,
    share: Share = Share(),
    cache_dir: Path | None = None,
    takes_time: bool = False,
    caption_template: str = "{}",
    image_numbers: np.ndarray | None = None,
) -> RetrievalResult:
    """Ranks every caption's image and every image's captions, in each language by itself.

    A language's pool are its usable captions and the images of its gallery, also those without a caption, see
    `data_scripts.rows.row_features`. Rows with equal `image_id` show the same image: each other's captions are right
    answers. Captions that are empty after normalisation are left out and counted. Images are encoded once for all
    languages.

    Args:
        encoder: a `CCRKEncoder`, a `DualEncoder`, ….
        dataset: rows of `data_scripts.rows.row_features`.
        batch_size: images encoded at a time.
        folds: in these languages rank also within so many equal parts of the images, in their order.
        share: of the work; every process that takes part must call.
        cache_dir: where encoded blocks are kept, so that an interrupted run goes on where it stopped.
        takes_time: of single queries, see `milliseconds_per_query`; not where the work is shared.
        caption_template: what the model is given of a caption, which takes the place of `{}`.
        image_numbers: (rows,), equal for rows that show one image; by default rows with equal `image_id` do.
    """
    texts = {language: usable_captions(dataset, language, image_numbers) for language in languages}
    if needs_language(encoder):
        for language, found in texts.items():  # refuses a language without a code before hours are spent
            encoder.encode_captions(found.texts[:1], language)
    images = encode_images(encoder, dataset, batch_size, share, cache_dir)
    result, folds = RetrievalResult(), folds or {}
    for language, found in texts.items():
        if found.left_out:
            logger.warning("%s: %d captions left out, empty after normalisation", language, found.left_out)
        captions = encode_captions(encoder, prompted(found.texts, caption_template), language, share, cache_dir)
        score = partial(score_pairs, encoder, images, captions, share) if encoder.k_test else None
        number = folds.get(language, 0)
        similarity = by_cosine(images.embeds, captions.embeds)
        result.add(language, found, rank_language(found, similarity, encoder.k_test, score, number, share), number)
    if takes_time and share.count == 1:
        by_language = [
            [(caption, language) for caption in prompted(found.texts[: TIMED_QUERIES + 1], caption_template)]
            for language, found in texts.items()
        ]
        queries = list(itertools.chain.from_iterable(zip(*by_language, strict=False)))
        result.milliseconds_per_query = milliseconds_per_query(encoder, images, queries)
    return result


def prompted(captions: Sequence[str], template: str) -> list[str]:
    """Each caption in the place of `{}`."""
    return [template.replace("{}", caption) for caption in captions]


def milliseconds_per_query(encoder: Encoder, images: EncodedImages, captions: Sequence[tuple[str, str]]) -> float:
    """
    The median time from one caption to the order of all images, as a search would take it: encoding, cosines, and
    re-scoring where there is a fusion encoder. Of the first `TIMED_QUERIES` captions, each with its language, after
    one that is not timed.
    """
    seconds = []
    for caption, language in captions[: TIMED_QUERIES + 1]:
        started = time.perf_counter()
        query = encode_captions(encoder, [caption], language)
        best = (images.embeds @ query.embeds[0]).argsort(descending=True)
        if encoder.k_test:
            rows = np.sort(best[: encoder.k_test].numpy())
            score_pairs(encoder, images, query, Share(), np.stack([rows, np.zeros_like(rows)], axis=1))
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:] or seconds)


def check_model(name_or_path: str, dataset: datasets.Dataset, languages: Sequence[str]) -> None:
    """Raises ValueError where a model cannot be opened or is not for this data, as far as a look at it tells."""
    if name_or_path.endswith(".npz"):
        check_arrays(Path(name_or_path), dataset, languages)
    else:
        kind_of_encoder(name_or_path)


def evaluate_models(
    model: str,
    dataset: datasets.Dataset,
    model_for: Mapping[str, str] | None = None,
    *,
    k_test: int = 128,
    output_dir: Path,
    batch_size: int = 64,
    bf16: bool = False,
    folds: Mapping[str, int] | None = None,
    caption_template: str = "{}",
    images: EvaluatedImages | None = None,
) -> tuple[RetrievalResult, int, list[Path]]:
    """
    Ranks of all languages of a data set, each by its model; shared out over all processes.

    Args:
        model: folder or Hub id of a CCRK, a dual encoder or a SentenceTransformer, an open_clip model
            (`ccrk.open_clip`), or an .npz file (`ccrk.retrieval.arrays`).
        model_for: language → another model.
        output_dir: where encoded blocks are kept, so that an interrupted run goes on.
        images: of the data set, to say which of them a model was trained on, and which count as one.
        others: see `evaluate_retrieval`.

    Returns: the ranks; the candidates that were in fact re-scored per query; and the folders of encoded blocks, which
        have served once the results are written.

    Raises:
        ValueError: a model cannot be opened, or is not for this data; before the first of them takes its hours.
    """
    model_for = model_for or {}
    languages = list(dataset.features["captions"])
    if unknown := sorted(set(model_for) - set(languages)):
        raise ValueError(f"--model_for names {', '.join(unknown)}, but the languages are {', '.join(languages)}")
    languages_of: dict[str, list[str]] = {}
    for language in languages:
        languages_of.setdefault(model_for.get(language, model), []).append(language)
    result, re_scored, encoded = RetrievalResult(), 0, []
    for name_or_path, own_languages in languages_of.items():
        check_model(name_or_path, dataset, own_languages)
    image_numbers = None if images is None else images.numbers
    result.trained_on = None if images is None else images.trained_on(list(languages_of))
    for name_or_path, own_languages in languages_of.items():
        if name_or_path.endswith(".npz"):
            part = evaluate_arrays(Path(name_or_path), dataset, own_languages, folds, image_numbers)
        else:
            encoder = load_encoder(name_or_path, k_test, bf16)
            re_scored = max(re_scored, encoder.k_test)
            cache_dir = output_dir / "encoded" / f"{encoder.fingerprint}-{dataset._fingerprint}"
            check_output_folder(cache_dir)
            encoded.append(cache_dir)
            result.cut |= count_cut_captions(encoder, dataset, own_languages, caption_template)
            part = evaluate_retrieval(
                encoder,
                dataset,
                own_languages,
                batch_size,
                folds,
                Share.of_this_process(),
                cache_dir,
                takes_time=len(languages_of) == 1,
                caption_template=caption_template,
                image_numbers=image_numbers,
            )
            if len(languages_of) == 1:
                result.parameters = sum(parameter.numel() for parameter in encoder.model.parameters())
                result.milliseconds_per_query = part.milliseconds_per_query
        for name in BY_LANGUAGE:
            getattr(result, name).update(getattr(part, name))
    for name in BY_LANGUAGE:  # in the order that was asked for
        setattr(result, name, {k: getattr(result, name)[k] for k in languages if k in getattr(result, name)})
    return result, re_scored, encoded


def count_cut_captions(
    encoder: Encoder, dataset: datasets.Dataset, languages: Sequence[str], caption_template: str = "{}"
) -> dict[str, int]:
    """Language → how many of its usable captions the model reads the beginning of; a warning where there are any."""
    texts = {language: usable_captions(dataset, language).texts for language in languages}
    cut = {name: sum(encoder.are_cut(prompted(own, caption_template))) for name, own in texts.items()}
    note = cut_note(cut, {language: len(own) for language, own in texts.items()})
    if note and process_state().is_main_process:
        logger.warning(note)
    return cut


def encode_images(
    encoder: Encoder,
    dataset: datasets.Dataset,
    batch_size: int = 64,
    share: Share = Share(),
    cache_dir: Path | None = None,
) -> EncodedImages:
    """Encodes the images; see `evaluate_retrieval`."""
    pictures = dataset.select(range(count_images(dataset))).select_columns(["image"])
    embeds, states = {}, {}
    for start in progress(share.of(range(0, len(pictures), batch_size)), "encoding images"):
        rows = range(start, min(start + batch_size, len(pictures)))
        path = cache_dir and cache_dir / f"images-{batch_size}-{start:07}.safetensors"
        encoded = _cached(path, lambda rows=rows: encoder.encode_images(_read_pictures(pictures, rows)))
        embeds[start] = encoded["embeds"].float()
        if "states" in encoded:
            states[start] = encoded["states"]
    embeds = torch.cat(list(share.gather(embeds).values()))
    if (broken := embeds.isnan().any(dim=1)).any():
        raise ValueError(f"row {int(broken.int().argmax())}: the embedding of its picture is NaN; {_NAN_CURE}")
    return EncodedImages(embeds, states)


def encode_captions(
    encoder: Encoder,
    captions: Sequence[str],
    language: str | None = None,
    share: Share = Share(),
    cache_dir: Path | None = None,
) -> EncodedCaptions:
    """Encodes captions, none of them empty; captions of similar length go together, so little padding is computed.

    Args:
        language: of all captions, where the encoder needs it.
        others: see `evaluate_retrieval`.
    """
    order = np.argsort(encoder.caption_lengths(captions), kind="stable")
    code = [language] if language and needs_language(encoder) else []
    digest = hashlib.blake2b("\0".join([*code, *captions]).encode(), digest_size=8).hexdigest()
    blocks = {}
    for start in progress(share.of(range(0, len(order), CAPTIONS_PER_BLOCK)), "encoding captions"):
        texts = [captions[i] for i in order[start : start + CAPTIONS_PER_BLOCK]]
        path = cache_dir and cache_dir / f"captions-{digest}-{start:07}.safetensors"
        blocks[start] = _cached(path, lambda texts=texts: encode_captions_in(encoder, texts, language))
    blocks = share.gather(blocks).values()
    position = torch.from_numpy(np.argsort(order))  # of each caption in the order of encoding
    embeds = torch.cat([block["embeds"] for block in blocks]).float()[position]
    if (broken := embeds.isnan().any(dim=1)).any():
        raise ValueError(f"the embedding of {captions[int(broken.int().argmax())]!r} is NaN; {_NAN_CURE}")
    if not encoder.k_test:
        return EncodedCaptions(embeds)
    lengths = torch.cat([block["lengths"] for block in blocks])
    tokens = torch.cat([block["tokens"] for block in blocks])
    return EncodedCaptions(embeds, tokens, (lengths.cumsum(0) - lengths)[position], lengths[position])


def score_pairs(
    encoder: Encoder, images: EncodedImages, captions: EncodedCaptions, share: Share, pairs: np.ndarray
) -> np.ndarray:
    """Match logits of (image row, caption) pairs, (P, 2), sorted by image: (P,) in fp32."""
    blocks = [
        (states[start : start + IMAGES_PER_BLOCK], first_row + start)
        for first_row, states in images.states.items()  # this process's
        for start in range(0, len(states), IMAGES_PER_BLOCK)
    ]
    scores = {}
    for states, first_row in progress(blocks, "re-scoring pairs"):
        start, stop = np.searchsorted(pairs[:, 0], [first_row, first_row + len(states)])
        if start < stop:
            scores[int(start)] = encoder.score_pairs(states, captions, pairs[start:stop] - [first_row, 0])
    scores = np.concatenate(list(share.gather(scores).values()))
    if np.isnan(scores).any():
        row, caption = pairs[np.argmax(np.isnan(scores))]
        raise ValueError(f"the match logit of row {row} and caption {caption} is NaN; {_NAN_CURE}")
    return scores


def _read_pictures(pictures: datasets.Dataset, rows: range) -> list[Image.Image]:
    # Decoded here, where a broken file can be named, and not by `datasets`.
    images = pictures.cast_column("image", datasets.Image(decode=False))[rows.start : rows.stop]["image"]
    found = []
    for row, image in zip(rows, images, strict=True):
        try:
            found.append(read_image(image))
        except BadImage as error:
            raise ValueError(
                f"row {row}: {error}; put the picture back and run again, what is encoded already is kept"
            ) from error
    return found


def _cached(path: Path | None, encode: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `encode` returns, on the CPU; from the file of an earlier run where there is one that is whole."""
    if path is not None and path.exists():
        try:
            return _read_block(path)
        except Exception as error:  # there is no end to what damaged files raise
            logger.warning("%s cannot be used (%s): encoded anew", path, one_line(error))
    encoded = {name: tensor.cpu().contiguous() for name, tensor in encode().items()}
    if path is not None:
        with written_whole(path) as unfinished:
            save_file(encoded, unfinished, {"crc32": _crc32(encoded)})
    return encoded


def _read_block(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        encoded = {name: file.get_tensor(name) for name in file.keys()}
        expected = (file.metadata() or {}).get("crc32")
    if expected != _crc32(encoded):
        raise ValueError("it is not as it was written")
    return encoded


def _crc32(tensors: dict[str, Tensor]) -> str:
    """Of the names, types, shapes and contents of tensors on the CPU."""
    checksum = 0
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.flatten().view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"
