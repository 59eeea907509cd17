"""Multi30K from tiny release files: rows, alignment, what is left out and reported, and when the cache is rebuilt."""

import gzip
import json
import logging
import os
import re

import datasets
import pytest
from builders import write_json_lines
from PIL import Image

import data_scripts

LANGUAGES = ["en", "de", "fr", "cs"]
# The real release and photographs, where there are some: CCRK_MULTI30K is a clone, CCRK_FLICKR30K a folder.
RELEASE, PHOTOGRAPHS = os.environ.get("CCRK_MULTI30K"), os.environ.get("CCRK_FLICKR30K")


@pytest.fixture
def release(tmp_path):
    """Four train rows, one validation and one test row, as the release has them, and a photograph for each."""
    for stem, names in {"train": "abcd", "val": "v", "test_2016_flickr": "t"}.items():
        write_lines(tmp_path / f"m30k/task1/image_splits/{stem}.txt", [f"{name}.jpg" for name in names])
        for language in LANGUAGES:
            captions = [f"{language} caption of {name}" for name in names]
            write_lines(tmp_path / f"m30k/task1/raw/{stem}.{language}.gz", captions)
        for number, name in enumerate(names):
            write_photograph(tmp_path / f"photographs/{name}.jpg", shade=40 * number)
    return tmp_path


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(contents, mtime=0) if path.suffix == ".gz" else contents)


def write_photograph(path, shade=0, size=(48, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 50).point(lambda value: (value + shade) % 256).convert("RGB").save(path, "JPEG")


def load(release, split="train", **arguments):
    folders = {"data_dir": release / "m30k", "image_dir": release / "photographs", "cache_dir": release / "cache"}
    return data_scripts.load("multi30k", split=split, **{**folders, **arguments})


def reports(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_rows(release, caplog):
    train = load(release)
    assert train.column_names == ["image", "image_id", "captions"]
    assert train["image_id"][:] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert list(train.features["captions"]) == LANGUAGES
    assert train[1]["captions"] == {language: [f"{language} caption of b"] for language in LANGUAGES}
    assert train[1]["image"].size == (48, 32)
    assert load(release, "validation")["image_id"][:] == ["v.jpg"]
    assert load(release, "test")["image_id"][:] == ["t.jpg"]
    assert reports(caplog) == []


def test_images_are_stored_by_absolute_path(release, monkeypatch):
    monkeypatch.chdir(release)
    train = load(release, data_dir="m30k", image_dir="photographs")
    stored = train.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert stored == {"bytes": None, "path": str(release / "photographs/a.jpg")}


def test_task_folder_and_unpacked_files(release):
    for path in (release / "m30k/task1/raw").glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert load(release, data_dir=release / "m30k/task1")[0]["captions"]["cs"] == ["cs caption of a"]


def test_language_subset_keeps_the_order_asked_for(release):
    captions = load(release, languages=["fr", "en"])[2]["captions"]
    assert list(captions.items()) == [("fr", ["fr caption of c"]), ("en", ["en caption of c"])]


def test_files_of_other_languages_and_splits_are_not_needed(release):
    for pattern in ("raw/*.cs.gz", "raw/train.*", "image_splits/train.txt"):
        for path in (release / "m30k/task1").glob(pattern):
            path.unlink()
    assert len(load(release, "test", languages=["en", "de"])) == 1


def test_streaming_equals_map_style(release):
    (release / "photographs/b.jpg").unlink()
    stream = load(release, streaming=True)
    assert isinstance(stream, datasets.IterableDataset)
    assert list(stream) == list(load(release))
    assert stream.num_shards == 3  # one row each: any number of processes and workers can share the stream


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_photographs_are_reported_at_every_load(release, caplog, streaming):
    for name in ("b.jpg", "d.jpg"):
        (release / "photographs" / name).unlink()
    first = f"b.jpg in {release / 'photographs'} ({release / 'm30k/task1/image_splits/train.txt'} line 2)"
    expected = f"multi30k train images: 4 rows, of which\n          2  image file missing, first: {first}"
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        rows = load(release, streaming=streaming)
        assert [row["image_id"] for row in rows] == ["a.jpg", "c.jpg"]
        assert reports(caplog)[-1] == expected
    assert load(release)[1]["captions"]["de"] == ["de caption of c"], "captions stay with their photograph"


def test_broken_photographs_are_counted_by_reason(release, caplog):
    photographs = release / "photographs"
    (photographs / "a.jpg").write_bytes(b"")
    (photographs / "b.jpg").write_text("<html>404</html>")
    whole = (photographs / "c.jpg").read_bytes()
    (photographs / "c.jpg").write_bytes(whole[: len(whole) // 2])  # a download that broke off
    for _ in range(2):
        caplog.clear()
        assert load(release, max_bad_fraction=0.75)["image_id"][:] == ["d.jpg"]
        lines = reports(caplog)[-1].splitlines()
        assert [line.split(",")[0].split(maxsplit=1) for line in lines[1:]] == [
            ["1", "image of zero bytes"],
            ["1", "not an image"],
            ["1", "image truncated or damaged"],
        ]
        assert all("train.txt line" in line for line in lines[1:])
    with pytest.raises(ValueError, match=r"3 bad among 4 rows, more than max_bad_fraction 0\.7(?s:.*)not an image"):
        load(release, max_bad_fraction=0.7)


def test_empty_caption_leaves_the_language_empty(release, caplog):
    write_lines(release / "m30k/task1/raw/train.fr.gz", ["un", "  ", "trois", "quatre"])
    train = load(release, max_bad_fraction=0.25)
    assert train[1]["captions"]["fr"] == []
    assert train[1]["captions"]["en"] == ["en caption of b"]
    assert re.search(r"1  empty caption in fr, first: .*train\.fr\.gz line 2$", reports(caplog)[-1])


def test_a_row_without_any_caption_is_left_out(release):
    write_lines(release / "m30k/task1/raw/train.fr.gz", ["un", "  ", "trois", "quatre"])
    train = load(release, languages=["fr"], max_bad_fraction=0.25)
    assert train["image_id"][:] == ["a.jpg", "c.jpg", "d.jpg"]


def test_rare_line_separators_inside_a_caption_do_not_break_the_alignment(release):
    write_lines(release / "m30k/task1/raw/train.en.gz", ["one\u2028still one", "two\x85still two", "three", "four"])
    assert load(release)[1]["captions"]["en"] == ["two\x85still two"]


@pytest.mark.parametrize("change", ["new photograph", "replaced photograph", "corrected caption"])
def test_cache_follows_what_is_on_disk(release, change):
    (release / "photographs/b.jpg").unlink()
    before = load(release)
    assert load(release)._fingerprint == before._fingerprint
    if change == "new photograph":
        write_photograph(release / "photographs/b.jpg")
    elif change == "replaced photograph":
        write_photograph(release / "photographs/a.jpg", size=(64, 32))
    else:
        write_lines(release / "m30k/task1/raw/train.en.gz", ["corrected", "two", "three", "four"])
    after = load(release)
    assert after._fingerprint != before._fingerprint
    assert len(after) == (4 if change == "new photograph" else 3)
    assert (after[0]["captions"]["en"] == ["corrected"]) == (change == "corrected caption")


def test_photographs_of_another_split_leave_the_cache_alone(release):
    before = load(release)
    write_photograph(release / "photographs/v.jpg", size=(64, 64))
    assert load(release)._fingerprint == before._fingerprint


def test_files_that_do_not_align(release):
    write_lines(release / "m30k/task1/raw/train.de.gz", ["eins", "zwei", "drei"])
    with pytest.raises(ValueError, match=r"train\.txt has 4 lines but .*train\.de\.gz has 3; .*download both again"):
        load(release)


# A fixed time: the bytes are the tests' names, on which parallel workers have to agree.
@pytest.mark.parametrize(
    "contents",
    [b"not gzip", gzip.compress(b"four\n" * 400, mtime=0)[:-9], gzip.compress(b"\xff\xfe\n", mtime=0)],
)
def test_damaged_file(release, contents):
    (release / "m30k/task1/raw/train.de.gz").write_bytes(contents)
    with pytest.raises(ValueError, match=r"train\.de\.gz is damaged .*download it again"):
        load(release)


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../photographs/a.jpg", "x/../../a.jpg", r"..\a.jpg", r"C:\a.jpg", ""])
@pytest.mark.parametrize("streaming", [False, True])
def test_names_may_not_leave_the_folder(release, name, streaming):
    write_lines(release / "m30k/task1/image_splits/train.txt", ["a.jpg", name, "c.jpg", "d.jpg"])
    with pytest.raises(ValueError, match=r"1 bad (?s:.*)image path leaves its folder, first: .*train\.txt line 2"):
        load(release, streaming=streaming)


def test_no_photograph_at_all(release):
    (release / "elsewhere").mkdir()
    with pytest.raises(FileNotFoundError, match=r"none of 4 photographs .* such as a\.jpg; set image_dir"):
        load(release, image_dir=release / "elsewhere")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"languages": ["en", "ja"]}, ValueError, "multi30k has the languages en, de, fr, cs, not"),
        ({"languages": []}, ValueError, r"languages is a list of different codes .*, not \[\]"),
        ({"languages": "en"}, ValueError, "languages is a list of different codes .*, not 'en'"),
        ({"languages": ["en", "en"]}, ValueError, "languages is a list of different codes"),
        ({"split": "val"}, ValueError, "no split 'val'; choose one of train, validation, test"),
        (
            {"image_size": 64},
            ValueError,
            "multi30k takes no image_size; it takes data_dir, gallery, image_dir",
        ),
        ({"data_dir": None}, ValueError, "multi30k needs data_dir: the folder of a clone of https://github.com"),
        ({"image_dir": None}, ValueError, "multi30k needs image_dir: the folder of Flickr30k's photographs"),
        ({"data_dir": "/nowhere"}, FileNotFoundError, "data_dir /nowhere is no folder"),
        ({"image_dir": "/nowhere"}, FileNotFoundError, "image_dir /nowhere is no folder"),
    ],
)
def test_wrong_arguments(release, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        load(release, **arguments)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_the_release(release):
    with pytest.raises(FileNotFoundError, match=r"there is no train\.txt in .*data_dir should be a clone"):
        load(release, data_dir=release / "photographs")


def test_task_2_has_five_captions(release):
    write_lines(release / "m30k/task2/image_splits/test_2016_images.txt", ["t.jpg"])
    for language in ("en", "de"):
        for number in range(1, 6):
            write_lines(release / f"m30k/task2/raw/test_2016.{number}.{language}.gz", [f"{language} {number}"])
    (row,) = load(release, "test", task=2)
    assert row["captions"] == {language: [f"{language} {n}" for n in range(1, 6)] for language in ("en", "de")}
    with pytest.raises(ValueError, match="multi30k has the languages en, de, not"):
        load(release, task=2, languages=["fr"])


def research_files(folder, names, split="train"):
    """One file per language, with a row for each of its names."""
    folder.mkdir(exist_ok=True)
    for language, of_language in names.items():
        rows = [{"image": name, "caption": f"{language} of {name}", "image_id": name} for name in of_language]
        (folder / f"{split}.{language}.json").write_text(json.dumps(rows))


def load_research_files(tmp_path, image_dir, names, **arguments):
    research_files(tmp_path / "json", names)
    arguments = {"languages": list(names), "max_bad_fraction": 1.0} | arguments
    return load(tmp_path, data_dir=tmp_path / "json", image_dir=tmp_path / image_dir, **arguments)


SPELLINGS = {"en": ["x.jpg"], "de": ["./x.jpg"], "fr": ["flickr30k-images/x.jpg"], "cs": [r".\x.jpg"]}


@pytest.mark.parametrize("image_dir", ["flickr30k-images", "photos", "."])
def test_one_picture_however_each_language_writes_it(tmp_path, image_dir):
    write_photograph(tmp_path / image_dir.replace(".", "flickr30k-images") / "x.jpg")
    (row,) = load_research_files(tmp_path, image_dir, SPELLINGS)
    assert row["image_id"] == "x.jpg"
    assert row["captions"] == {language: [f"{language} of {name}"] for language, (name,) in SPELLINGS.items()}


def test_one_picture_of_the_folder_that_is_given(tmp_path):
    write_photograph(tmp_path / "data" / "photos" / "x.jpg")
    names = {"en": ["data/photos/x.jpg"], "de": ["x.jpg"], "fr": ["photos//x.jpg"]}
    (row,) = load_research_files(tmp_path, "data/photos", names)
    assert all(len(captions) == 1 for captions in row["captions"].values())


def test_missing_pictures_have_one_row_too(tmp_path, caplog):
    write_photograph(tmp_path / "photos" / "here.jpg")
    names = {language: ["here.jpg", *spelt] for language, spelt in SPELLINGS.items()}
    names["en"].append("photos/y.jpg")
    names["de"].append("y.jpg")
    assert len(load_research_files(tmp_path, "photos", names)) == 1
    assert "images: 3 rows, of which\n          2  image file missing" in reports(caplog)[-1]


@pytest.mark.parametrize(
    "names",
    [
        ["VG_100K/1.jpg", "VG_100K_2/1.jpg"],
        ["cats/001.jpg", "dogs/001.jpg", "birds/001.jpg"],
        ["2.jpg", "2.png", "2.JPG"],
        ["a/b/1.jpg", "b/1.jpg", "1.jpg"],
        ["photos/1.jpg", "1.jpg"],
    ],
)
def test_pictures_of_one_name_in_several_folders_stay_apart(tmp_path, names):
    for shade, name in enumerate(names):
        write_photograph(tmp_path / "photos" / name, 60 * shade)
    rows = load_research_files(tmp_path, "photos", {"en": names})
    assert rows["image_id"][:] == names
    assert [row["captions"]["en"] for row in rows] == [[f"en of {name}"] for name in names]
    assert len({row["image"].tobytes() for row in rows}) == len(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dogs/001.jpg", "cats/001.jpg"], r"entry 2: cats/001.jpg, and .*entry 1: dogs/001.jpg, are of different"),
        (["cats/001.jpg", "birds/001.jpg"], "entry 1: cats/001.jpg, and .*entry 2: birds/001.jpg"),
        (["001.jpg", "cats/001.jpg"], "entry 2: cats/001.jpg, and .*entry 1: 001.jpg"),
        (["dogs/001.jpg", "cats/002.jpg"], "entry 2: cats/002.jpg, and .*entry 1: dogs/001.jpg"),
        (["cats/001.jpg", "birds/002.jpg"], "entry 1: cats/001.jpg, and .*entry 2: birds/002.jpg"),
        (["001.jpg", "cats/002.jpg"], "entry 2: cats/002.jpg, and .*entry 1: 001.jpg"),
        (
            ["cats/001.jpg"],
            r"entry 1: cats/001.jpg is there in \S+/photos, and another picture is 001.jpg in",
        ),
        (["photos/cats/001.jpg"], "entry 1: photos/cats/001.jpg is there in "),
    ],
)
@pytest.mark.parametrize("layout", ["research", "release"])
def test_no_picture_is_taken_for_another_of_its_name(tmp_path, names, message, layout):
    """The folder of dogs is given as that of all photographs."""
    for name in ("cats/001.jpg", "dogs/001.jpg", "dogs/002.jpg"):
        write_photograph(tmp_path / "photos" / name)
    if layout == "release":
        message = message.replace("entry", "line")
        write_lines(tmp_path / "m30k/task1/image_splits/train.txt", names)
        write_lines(tmp_path / "m30k/task1/raw/train.en", [f"en of {name}" for name in names])
    with pytest.raises(ValueError, match=f"{message}.*; set image_dir to"):
        if layout == "release":
            load(tmp_path, image_dir=tmp_path / "photos/dogs", languages=["en"])
        else:
            load_research_files(tmp_path, "photos/dogs", {"en": names})


def test_a_guess_is_reported_at_every_load(tmp_path, caplog):
    write_photograph(tmp_path / "photos" / "1.jpg")
    for _ in range(2):
        caplog.clear()
        assert len(load_research_files(tmp_path, "photos", {"en": ["elsewhere/1.jpg"]})) == 1
        assert "elsewhere/ in the images' names is taken for image_dir" in reports(caplog)[-1]


def test_an_image_id_of_two_images(tmp_path):
    research_files(tmp_path / "json", {"en": ["a.jpg", "b.jpg"]})
    path = tmp_path / "json" / "train.en.json"
    path.write_text(path.read_text().replace('"image_id": "b.jpg"', '"image_id": "a.jpg"'))
    write_photograph(tmp_path / "photos" / "a.jpg")
    with pytest.raises(ValueError, match=r"entry 1: a.jpg, and .* entry 2: b.jpg, both have image_id a.jpg"):
        load(tmp_path, data_dir=tmp_path / "json", image_dir=tmp_path / "photos", languages=["en"])


def test_layout_of_the_research_code(release, caplog):
    folder = release / "json"
    folder.mkdir()
    for language in ("en", "cs"):
        entries = [
            {"caption": f"{language} {name} {n}", "image": f"flickr30k-images/{name}.jpg", "image_id": name}
            for name in "ab"
            for n in (1, 2)
        ]
        (folder / f"train.{language}.json").write_text(json.dumps([*entries, {"caption": 3, "image": "a.jpg"}]))
        entry = {"image": "flickr30k-images/t.jpg", "caption": ["one", "two"], "image_id": 7}
        (folder / f"test_2016_flickr.{language}.json").write_text(json.dumps([entry]))
    arguments = {"data_dir": folder, "languages": ["en", "cs"], "max_bad_fraction": 0.2}
    train = load(release, **arguments)
    assert train["image_id"][:] == ["a.jpg", "b.jpg"]
    assert train[1]["captions"] == {"en": ["en b 1", "en b 2"], "cs": ["cs b 1", "cs b 2"]}
    assert "2  caption is a number, not text or a list of texts, first: " in reports(caplog)[-1]
    (row,) = load(release, "test", **arguments)
    assert row["captions"] == {"en": ["one", "two"], "cs": ["one", "two"]}
    (folder / "train.en.json").write_text("[{]")
    with pytest.raises(ValueError, match=r"train\.en\.json is no JSON .*download it again"):
        load(release, **arguments)


def test_later_test_splits(release):
    for split, languages in (("test_2017_mscoco", ["en", "de", "fr"]), ("test_2018_flickr", LANGUAGES)):
        names = ["COCO_train2014_1.jpg#7", "b.jpg#8"] if "mscoco" in split else ["x.jpg", "y.jpg"]
        write_lines(release / f"m30k/task1/image_splits/{split}.txt", names)
        for language in languages:
            write_lines(release / f"m30k/task1/raw/{split}.{language}.gz", [f"{language} {n}" for n in names])
        for name in names:
            write_photograph(release / "photographs" / name.split("#")[0])
        rows = load(release, split)
        assert rows["image_id"][:] == [name.split("#")[0] for name in names]
        assert list(rows.features["captions"]) == languages
    with pytest.raises(ValueError, match="test_2018_flickr is of multi30k's task 1, not 2"):
        load(release, "test_2018_flickr", task=2)


def test_names_of_data_sets():
    with pytest.raises(
        FileNotFoundError, match=r"no data set, file or folder 'multi40k'; .* known are shapes, multi30k"
    ):
        data_scripts.load("multi40k", split="train")
    with pytest.raises(ValueError, match="shapes takes no data_dir; it takes"):
        data_scripts.load("shapes", split="train", data_dir="anywhere")
    with pytest.raises(ValueError, match="shapes has no split 'dev'; choose one of train, validation, test"):
        data_scripts.load("shapes", split="dev")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Multi30K", {}, "known are shapes, .*; did you mean 'multi30k'?$"),
        ("flickr-30k", {}, "; did you mean 'flickr30k'?$"),
        ("photso", {}, "; did you mean 'photos'?$"),
        ("shapes", {"split": "val"}, "choose one of train, validation, test; did you mean 'validation'?$"),
        ("xm3600", {"split": "tset"}, "choose one of test; did you mean 'test'?$"),
        ("multi30k", {"split": "Dev"}, "; did you mean 'validation'?$"),
        ("photos", {"split": "val"}, "has no split 'val', only train, validation; did you mean 'validation'?$"),
        ("photos", {"split": "training"}, "; did you mean 'train'?$"),
        ("shapes", {"split": "test", "languages": ["english"]}, "GRAMMARS; en is close to english$"),
        (
            "photos",
            {"split": "train", "languages": ["eng"]},
            r"languages en, not \['eng'\]; en is close to eng$",
        ),
    ],
)
def test_names_that_are_nearly_right(name, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entries = [{"file_name": f"{split}.jpg", "en": "a", "split": split} for split in ("train", "validation")]
    write_json_lines(tmp_path / "photos/metadata.jsonl", entries)
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace("?$", r"\?$")):
        data_scripts.load(name, **{"split": "train", **options}, cache_dir=str(tmp_path / "cache"))


@pytest.mark.skipif(not (RELEASE and PHOTOGRAPHS), reason="CCRK_MULTI30K and CCRK_FLICKR30K name no real data")
@pytest.mark.parametrize(("split", "lines"), [("train", 29_000), ("validation", 1_014), ("test", 1_000)])
def test_the_release(split, lines, tmp_path, caplog):
    rows = data_scripts.load("multi30k", split=split, data_dir=RELEASE, image_dir=PHOTOGRAPHS, cache_dir=tmp_path)
    assert 0 < len(rows) <= lines
    assert all(len(captions) == 1 for row in rows["captions"] for captions in row.values())
    if len(rows) < lines:
        assert f"{lines - len(rows):,}  image file missing" in reports(caplog)[-1]
    assert rows[0]["image"].size[0] > 100


@pytest.mark.parametrize("inner", [".", "data"])
def test_every_folder_of_a_clone_will_do(inner, release, tmp_path):
    clone = tmp_path / "clone"
    (clone / inner).mkdir(parents=True, exist_ok=True)
    (release / "m30k" / "task1").rename(clone / inner / "task1")
    for data_dir in {clone, clone / inner, clone / inner / "task1"}:
        rows = data_scripts.load(
            "multi30k",
            split="test",
            data_dir=data_dir,
            image_dir=release / "photographs",
            cache_dir=tmp_path / "cache",
        )
        assert len(rows) == 1
