"""What data sets of annotation files and photographs share: reading, checking, caching and reporting their rows."""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from tqdm.auto import tqdm

from data_scripts.captions import close_tags, is_close, is_usable, what_is
from data_scripts.cli import did_you_mean, no_split
from data_scripts.images import MISSING, BadImage, Found, ImageFolder, is_same_name, picture_name, read_image
from data_scripts.problems import MAX_BAD_FRACTION, Problems
from data_scripts.rows import row_features
from data_scripts.text import BadField, read_lines, read_text, text_field, texts_field

logger = logging.getLogger(__name__)

EMPTY_CAPTION = "empty caption"
BROKEN_JSON = "broken JSON line"

# What the JSON parser raises: also on a number of thousands of digits, and on brackets nested as deep.
_PARSING_ERRORS = (ValueError, RecursionError)


@dataclass
class Annotation:
    """One image and its captions, none of them empty."""

    image: str  # path below the folder of photographs, or a URL, as written
    image_id: str  # of `AnnotationConfig.image_id`
    captions: dict[str, list[str]]
    where: str  # file and line, or row, for reports
    gallery: frozenset[str] | None = None  # languages, see `row_features`; None: all


@dataclass
class AnnotationConfig(datasets.BuilderConfig):
    """What to read.

    Args:
        data_dir: the folder of annotations.
        image_dir: the folder of photographs; some may be missing.
        split: only this split is read and its photographs checked.
        languages: caption languages; by default those that the data set has in this split.
        max_bad_fraction: the share of rows that may be bad, see `data_scripts.problems`.
        text_only: in place of the rows with a photograph those whose photograph is missing, where they have captions
            in two languages at least.
        gallery: what an evaluation ranks: images without a caption as well, and captions that never had an image.
    """

    data_dir: str | None = None
    image_dir: str | None = None
    split: str = "train"
    languages: Sequence[str] | None = None
    max_bad_fraction: float = MAX_BAD_FRACTION
    text_only: bool = False
    gallery: bool = False

    # Set by each data set.
    dataset = ""
    homepage = ""
    splits = ("train", "validation", "test")
    annotations = "annotations"  # what data_dir should hold, in words
    photographs = "photographs"  # what image_dir should hold
    published_folders = ()  # of the photographs; of a single one their names need not say it
    languages_apart = False  # each language has images of its own

    def __post_init__(self):
        super().__post_init__()
        if self.split not in self.splits:
            raise ValueError(no_split(self.dataset, self.split, self.splits))
        known = self.known_languages()
        self.languages = tuple(known if self.languages is None else self.languages)
        if not self.languages or not set(self.languages) <= set(known):
            unknown = [language for language in self.languages if language not in known]
            close = close_tags(unknown, known) or "".join(did_you_mean(language, known) for language in unknown)
            raise ValueError(f"{self.dataset} has the languages {', '.join(known)}, not {list(self.languages)}{close}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction is a share between 0 and 1, not {self.max_bad_fraction}")
        self.data_dir = self._folder("data_dir", self.data_dir, self.annotations)
        self.image_dir = self._folder("image_dir", self.image_dir, self.photographs)
        if len(self.published_folders) == 1:
            below = os.path.join(self.image_dir, *self.published_folders)
            self.image_dir = below if os.path.isdir(below) else self.image_dir
        self.pictures = ImageFolder(self.image_dir, self.published_folders)
        self.files = self.find_files()

    def _folder(self, argument: str, path: str | None, contents: str) -> str:
        """An existing folder's absolute path, so that cached rows stay valid from another working directory."""
        if path is None:
            raise ValueError(f"{self.dataset} needs {argument}: the folder of {contents}")
        if "://" in path:
            raise ValueError(f"{self.dataset}: {argument} {path} is a URL; copy {contents} to a folder, and name that")
        path = os.path.abspath(os.path.expanduser(path))
        if not os.path.isdir(path):
            raise FileNotFoundError(
                f"{self.dataset}: {argument} {path} is no folder; it should be the folder of {contents}"
            )
        return path

    def known_languages(self) -> Sequence[str]:
        """The languages of the split; the first check of a configuration, before any file is looked for."""
        raise NotImplementedError

    def find_files(self) -> dict[Any, Path]:
        """The annotation files of split and languages, under names of the data set's own choice."""
        raise NotImplementedError

    def read(self, problems: Problems) -> Iterable[Annotation]:
        """Every annotation of the split, with a photograph or without; counts what it reads, and what is bad of it."""
        raise NotImplementedError

    def image_id(self, image: str) -> str:
        """An image's name in the rows, the same wherever the photographs are: its path, however it is written."""
        try:
            name = picture_name(image)
        except BadImage:  # counted where the image is looked for
            return image
        return name.removeprefix(f"{self.published_folders[0]}/") if len(self.published_folders) == 1 else name

    def place(self, image: str) -> str:
        """Where an image is in the folder of photographs, or would be: images of one place are one."""
        try:
            return self.pictures.find(image).name
        except BadImage as error:
            name = self.image_id(image)
            if error.reason == MISSING:
                folders = name.split("/")[:-1]
                own = ["/".join(folders[:end]) for end in range(len(folders), 0, -1)]
                name = name.removeprefix(next((f"{folder}/" for folder in own if self.pictures.is_own(folder)), ""))
            return name

    def check_places(self, annotations: Iterable[Annotation]) -> str:
        """Whether the images may be where they were found; says so where only a guess leads there.

        Raises:
            ValueError: of images found in one folder, the names begin with different ones, or it is in another
                that they are by their whole names.
        """
        by_guess: dict[str, tuple[Annotation, Found]] = {}
        for annotation in annotations:
            with contextlib.suppress(BadImage):
                found = self.pictures.find(annotation.image)
                by_guess.setdefault(found.guess, (annotation, found))
        if by_guess.keys() <= {""}:
            return ""
        (one, found), *others = sorted(by_guess.values(), key=lambda pair: not pair[1].guess)
        cure = "set image_dir to the folder that the names begin in"
        if others:
            other, of_other = others[0]
            raise ValueError(
                f"{one.where}: {one.image}, and {other.where}: {other.image}, are of different folders, but both were "
                f"looked for in {self.image_dir} and found, as {found.name} and {of_other.name}; {cure}"
            )
        if (above := self.pictures.elsewhere(found)) is not None:
            raise ValueError(
                f"{one.where}: {one.image} is there in {above}, and another picture is {found.name} in image_dir "
                f"{self.image_dir}; {cure}"
            )
        return f"{self.source}: {found.guess}/ in the images' names is taken for image_dir {self.image_dir}"

    def has_galleries(self) -> bool:
        """Whether the languages have different galleries, so that each row tells in which it is."""
        return self.gallery and self.languages_apart

    def takes(self, annotation: Annotation, image: Any | None) -> bool:
        """Whether an annotation becomes a row; its image is None where there is none."""
        of_languages = sum(map(bool, annotation.captions.values()))
        if self.text_only:
            return image is None and of_languages > 1
        return (image is not None or not annotation.image) and (of_languages > 0 or self.gallery)

    def row(self, annotation: Annotation, image: Any | None) -> dict[str, Any]:
        """Of `row_features`; the image as `AnnotatedImages.locate` gives it."""
        row = {"image": image, "image_id": annotation.image_id, "captions": annotation.captions}
        if self.has_galleries():
            row["gallery"] = sorted(self.languages if annotation.gallery is None else annotation.gallery)
        return row

    def published_counts(self) -> dict[str, int]:
        """What `data_scripts.check` should find: "rows", and "captions LANGUAGE" with the empty ones; where known."""
        return {}

    def file(self, *names: str, folder: str | Path | None = None, language: str | None = None) -> Path:
        """The first of some alternative files below data_dir, gzipped or not.

        Args:
            language: which the names, or the folder's, hold: where there is no such file, the error tells of one that
                has the language by another tag.
        """
        folder = Path(self.data_dir if folder is None else folder)
        for name in names:
            for path in (folder / f"{name}.gz", folder / name):
                if path.is_file():
                    return path
        close = [other for name in names for other in close_names(folder / name, language)] if language else []
        raise FileNotFoundError(
            f"{self.dataset}: there is no {' or '.join(names)} in {folder}; "
            + (f"rename {', '.join(close)}" if close else f"data_dir should be {self.annotations}")
        )

    def folder_of(self, relative: str) -> Path:
        """`relative` in data_dir, or what is left of it if data_dir already is one of its folders."""
        parts = Path(relative).parts
        candidates = (Path(self.data_dir, *parts[start:]) for start in range(len(parts)))
        return next((path for path in candidates if path.is_dir()), Path(self.data_dir))

    def image_states(self) -> Iterator[str]:
        """What changes when a photograph does."""
        for annotation in self.read(Problems(self.source, 1.0, quiet=True)):
            try:
                status = os.stat(self.pictures.find(annotation.image).path)
            except (BadImage, OSError):
                continue
            yield f"{annotation.image}\n{status.st_size}\n{status.st_mtime_ns}\n"

    @property
    def source(self) -> str:
        return f"{self.dataset} {self.split}"

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Names the cache by what is on disk, so that a new photograph or a corrected caption is not missed."""
        digest = hashlib.sha256()
        for path in self.files.values():
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        for state in self.image_states():
            digest.update(state.encode())
        contents = {**config_kwargs, "data_dir": self.data_dir, "image_dir": self.image_dir, "split": self.split}
        contents |= {"languages": self.languages, "files": digest.hexdigest()}
        return super().create_config_id(contents, custom_features)


class AnnotatedImages(datasets.GeneratorBasedBuilder):
    """Builds one split; `data_scripts.load` is the short way."""

    def _info(self) -> datasets.DatasetInfo:
        features = row_features(self.config.languages, gallery=self.config.has_galleries())
        return datasets.DatasetInfo(features=features, homepage=self.config.homepage)

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        annotations, in_files = self.read_annotations()
        if not any(any(annotation.captions.values()) for annotation in annotations):
            raise ValueError(
                f"{self.config.source}: there are no captions in {', '.join(self.config.languages)} in this split; "
                "choose another split or other languages"
            )
        in_images = Problems(f"{self.config.source} images", self.config.max_bad_fraction, rows=len(annotations))
        # A stream would wait for it at every start, and decodes its images where it can leave the bad ones out.
        decode = not dl_manager.is_streaming and not self.config.text_only
        rows = [
            (number, self.config.row(annotation, image))
            for number, (annotation, image) in enumerate(self.check_images(annotations, in_images, decode))
            if self.config.takes(annotation, image)
        ]
        rows.sort(key=lambda row: row[1]["image"] is None)
        if self.config.text_only:
            if not rows:
                raise ValueError(
                    f"{self.config.source}: no row without a photograph has captions in two of "
                    f"{', '.join(self.config.languages)}; remove text_only_rows"
                )
            return [datasets.SplitGenerator(name=self.config.split, gen_kwargs={"rows": rows})]
        in_images.check()
        if not rows:
            raise FileNotFoundError(
                f"{self.config.source}: none of {len(annotations):,} photographs can be read in "
                f"{self.config.image_dir}, such as {annotations[0].image}; set image_dir to the folder of "
                f"{self.config.photographs}"
            )
        # The description is kept beside the rows in the cache: a later load repeats what was left out.
        notes = (self.config.check_places(annotations), in_files.table(), in_images.table())
        self.info.description = "\n".join(filter(None, notes))
        # A list is what `datasets` cuts into shards: a stream can then be split and shuffled row by row.
        return [datasets.SplitGenerator(name=self.config.split, gen_kwargs={"rows": rows})]

    def _generate_examples(self, rows: list[tuple[int, dict]]) -> Iterator[tuple[int, dict]]:
        for number, row in rows:
            yield number, {**row, "image": None if row["image"] is None else self.encoded(row["image"])}

    def read_annotations(self) -> tuple[list[Annotation], Problems]:
        """The annotations of the split, and what was wrong in their files."""
        problems = Problems(
            f"{self.config.source} annotations", self.config.max_bad_fraction, languages=self.config.languages
        )
        annotations = list(self.config.read(problems))
        problems.check()
        self.config.check_places(annotations)
        return annotations, problems

    def locate(self, annotation: Annotation) -> Any:
        """
        Where an annotation's image is, in terms that `encoded` understands; None where it never had one. BadImage
        where it is not there.
        """
        return self.config.pictures.find(annotation.image).path

    def encoded(self, image: Any) -> str | bytes:
        """The path or the encoded bytes of an image."""
        return image

    def check_images(
        self, annotations: Sequence[Annotation], problems: Problems, decode: bool = True
    ) -> Iterator[tuple[Annotation, Any | None]]:
        """Gives each annotation with what `locate` says, None where there is no image or it cannot be decoded."""

        def check(annotation: Annotation) -> Any | BadImage:
            try:
                image = self.locate(annotation)
                # At an eighth of its size: a header alone does not show that a download broke off.
                if decode and image is not None:
                    read_image(self.encoded(image), target_size=1)
            except BadImage as error:
                return error
            return image

        pool = ThreadPoolExecutor()  # reading and decoding both run outside Python's lock
        try:
            results = tqdm(
                pool.map(check, annotations),
                desc=f"checking images of {self.config.source}",
                total=len(annotations),
                leave=False,
                delay=2,
                disable=None,
            )
            for annotation, result in zip(annotations, results, strict=True):
                if isinstance(result, BadImage):
                    problems.add_image(result, annotation.where)
                    result = None
                yield annotation, result
        finally:  # with too many bad ones, the rest need not be looked at
            pool.shutdown(cancel_futures=True)

    def as_dataset(self, *args, **kwargs) -> datasets.Dataset:
        self._report()
        return super().as_dataset(*args, **kwargs)

    def as_streaming_dataset(self, *args, **kwargs) -> datasets.IterableDataset:
        dataset = super().as_streaming_dataset(*args, **kwargs)
        self._report()
        return dataset

    def _report(self) -> None:
        if self.info.description:
            logger.warning(self.info.description)


def close_names(path: Path, language: str) -> list[str]:
    """What lies where `path` does not, and has another tag of its language in its name, or in that of its folder."""
    if not path.parent.is_dir():
        path = path.parent
    found = []
    for other in sorted(os.listdir(path.parent)) if path.parent.is_dir() else []:
        for match in re.finditer(rf"(?<![a-zA-Z]){re.escape(language)}(?![a-zA-Z])", path.name):
            before, after = path.name[: match.start()], path.name[match.end() :]
            tag = other.removesuffix(".gz").removeprefix(before).removesuffix(after)
            if f"{before}{tag}{after}" == other.removesuffix(".gz") and is_close(tag, language):
                found.append(str(path.with_name(other)))
    return found


def without_empty(captions: Iterable[str], language: str, where: str, problems: Problems) -> list[str]:
    """The usable captions, without outer white space; the others are counted."""
    stripped = [caption.strip() for caption in captions]
    usable = [caption for caption in stripped if is_usable(caption)]
    for _ in range(len(stripped) - len(usable)):
        problems.bad(f"{EMPTY_CAPTION} in {language}", where)
    return usable


def merge_by_image(
    config: AnnotationConfig, parts: Iterable[tuple[str, str, list[str], str]], problems: Problems
) -> list[Annotation]:
    """One annotation per image, in the order in which images come up.

    Args:
        parts: image, language, captions in it, and where they are from.

    Raises:
        ValueError: images of different names are one file, and only by a guess.
    """
    merged: dict[str, Annotation] = {}
    for image, language, captions, where in parts:
        place = config.place(image)
        if place not in merged:
            merged[place] = Annotation(
                image, config.image_id(image), {name: [] for name in config.languages}, where, frozenset()
            )
        annotation = merged[place]
        annotation.gallery |= {language}
        if config.image_id(image) != annotation.image_id:
            config.check_places([annotation, replace(annotation, image=image, where=where)])
        # An empty list is counted as an empty caption.
        annotation.captions[language] += without_empty(captions or [""], language, where, problems)
    return list(merged.values())


def read_json(path: Path, cure: str) -> Any:
    """One JSON document. Raises ValueError where it is none, with the cure."""
    try:
        return json.loads(read_text(path, cure))
    except _PARSING_ERRORS as error:
        # JSON lines: the parser has read the first, and wants no more.
        hint = ", one document is expected and not one on each line" if "Extra data" in str(error) else ""
        raise ValueError(f"{path} is no JSON ({error}{hint}); {cure}") from error


def read_json_lines(path: Path, problems: Problems, cure: str) -> Iterator[tuple[dict, str]]:
    """Every line's object, with its file and line; broken ones are counted, blank lines are not."""
    lines = read_lines(path, cure)
    if next((line for line in lines if line.strip()), "").lstrip().startswith("["):
        raise ValueError(f"{path} is a JSON array, but a JSON object on each line is expected; {cure}")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        problems.rows += 1
        try:
            entry = json.loads(line)
        except _PARSING_ERRORS:
            problems.bad(BROKEN_JSON, where)
            continue
        if isinstance(entry, dict):
            yield entry, where
        else:
            problems.bad(f"line is {what_is(entry)}, not an object", where)


def read_caption_list(path: Path, problems: Problems, cure: str) -> Iterator[tuple[str, list[str], str]]:
    """The research code's layout: a JSON list of `{"image": …, "caption": … or [… , …], "image_id": …}`.

    Gives image, captions, and where they are from. Images are told apart by their paths; files number them as they
    like, each on its own.

    Raises:
        ValueError: it is no such list, or has one `image_id` for two images.
    """
    entries = read_json(path, cure)
    if not isinstance(entries, list):
        raise ValueError(f"{path} is {what_is(entries)}, but a JSON list is expected; {cure}")
    images: dict[int | str, tuple[str, str]] = {}  # image_id → its image, and where that is from
    for number, entry in enumerate(entries, start=1):
        where = f"{path} entry {number}"
        problems.rows += 1
        try:
            if isinstance(entry, dict) and isinstance(entry.get("caption"), str):
                captions = [text_field(entry, "caption")]
            else:
                captions = texts_field(entry, "caption", "text or a list of texts")
            image = text_field(entry, "image")
        except BadField as error:
            problems.bad(str(error), where)
            continue
        if isinstance(image_id := entry.get("image_id"), int | str):
            earlier, there = images.setdefault(image_id, (image, where))
            if image != earlier and not is_same_name(image, earlier):
                raise ValueError(
                    f"{there}: {earlier}, and {where}: {image}, both have image_id {image_id}; give each its own, or "
                    "one name to one image"
                )
        yield image, captions, where
