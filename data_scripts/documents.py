"""Tables that are one JSON document: an array of objects, COCO's captions, or Karpathy's splits."""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from data_scripts.captions import what_is
from data_scripts.formats import JSONLines, Table, open_file
from data_scripts.problems import Problems
from data_scripts.rows import id_text
from data_scripts.text import MAX_FILE_BYTES

NO_SUCH_IMAGE = "caption of an image that the file does not list"


class JSONDocument(Table):
    """A `.json` file. Its records are

    - the objects of an array, or the lines of a file that holds an object on each line;
    - of COCO's `{"images": […], "annotations": […]}` the images, each with the list of its captions as `captions`;
    - of Karpathy's `{"images": [{"filename", "sentences", "split", …}]}` the images, with their captions as written.

    Neither COCO's nor Karpathy's layout tells the language of its captions: YJ Captions and STAIR are Japanese.
    """

    def records(self, problems: Problems) -> Iterator[tuple[dict, int | tuple[int, int], str]]:
        try:
            entries, of_nothing = _document(self.path, self.state())
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise ValueError(f"{self.path} is not JSON ({error}); download or write it again") from error
            yield from JSONLines(self.path).records(problems)
            return
        for annotation in of_nothing:
            problems.rows += 1
            problems.bad(NO_SUCH_IMAGE, f"{self.path}, {annotation}")
        for number, entry in enumerate(entries):
            where = f"{self.path} entry {number + 1}"
            problems.rows += 1
            if isinstance(entry, dict):
                yield entry, number, where
            else:
                problems.bad(f"entry is {what_is(entry)}, not an object", where)

    def read(self, position: int | tuple[int, int]) -> dict:
        if isinstance(position, tuple):
            return JSONLines(self.path).read(position)
        return _document(self.path, self.state())[0][position]


@lru_cache(maxsize=2)
def _document(path: str, state: str) -> tuple[list, list[str]]:
    """The entries of a document, and the annotations that belong to no image, in words.

    Args:
        state: see `Table.state`; of a file that has changed since, nothing is kept.

    Raises:
        ValueError: it is not UTF-8, too large, or has another layout.
    """
    with open_file(path) as file:
        contents = file.read(MAX_FILE_BYTES + 1)
    if len(contents) > MAX_FILE_BYTES:
        raise ValueError(f"{path} holds more than {MAX_FILE_BYTES:,} bytes, more than is read; write it as JSON lines")
    try:
        document = json.loads(contents.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged or not UTF-8 ({error}); save it as UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply; write it as JSON lines") from error
    if isinstance(document, list):
        return document, []
    if isinstance(document, dict) and isinstance(images := document.get("images"), list):
        if isinstance(annotations := document.get("annotations"), list):
            return _coco(path, images, annotations)
        if any(isinstance(image, dict) and "sentences" in image for image in images):
            return [_karpathy(image) for image in images], []
    if isinstance(document, dict) and not any(isinstance(value, list | dict) for value in document.values()):
        return [document], []  # the one line of a file of lines
    holds = (
        f"an object of {', '.join(map(repr, list(document)[:5]))}" if isinstance(document, dict) else what_is(document)
    )
    raise ValueError(
        f"{path} is {holds}; expected are a list of objects, or COCO's or Karpathy's layout with 'images'; write it "
        'as JSON lines such as {"file_name": "a.jpg", "en": "a dog"}'
    )


def _coco(path: str, images: list, annotations: list) -> tuple[list, list[str]]:
    """COCO's images with their captions."""
    captions: dict[str | None, list[Any]] = {}
    numbers: dict[str | None, int] = {}  # of an annotation of each image
    for number, annotation in enumerate(annotations, start=1):
        if isinstance(annotation, dict) and "caption" in annotation:
            key = id_text(annotation.get("image_id"))
            captions.setdefault(key, []).append(annotation["caption"])
            numbers.setdefault(key, number)
    if annotations and not captions:
        raise ValueError(f"{path} has annotations without captions; give COCO's captions_*.json")
    entries = []
    for image in images:
        if isinstance(image, dict):
            own = captions.get(key := id_text(image.get("id")), [])
            numbers.pop(key, None)
            image = {"file_name": image.get("file_name"), "image_id": key, "captions": own}
        entries.append(image)
    return entries, [f"annotation {number}" for number in numbers.values()]


def _karpathy(image: Any) -> Any:
    """An image of Karpathy's, by its path, with its captions and split."""
    if not isinstance(image, dict) or not isinstance(sentences := image.get("sentences"), list):
        return image
    name = "/".join(filter(None, (image.get("filepath"), image.get("filename"))))
    captions = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
    split = image.get("split")
    # What is left of COCO's val2014 is for training.
    return {"file_name": name, "split": "train" if split == "restval" else split, "captions": captions}
