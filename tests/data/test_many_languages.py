"""Crossmodal-3600, XTD and Flickr30k from tiny files in their publishers' formats."""

import pytest
from builders import jpeg, reports, write, write_json_lines

import data_scripts
from data_scripts import xm3600, xtd


def load(name, folder, **options):
    folders = {"data_dir": folder / "data", "image_dir": folder / "images", "cache_dir": folder / "cache"}
    return data_scripts.load(name, split="test", **folders, **options)


class TestXM3600:
    @pytest.fixture
    def folder(self, tmp_path):
        entries = []
        for number, key in enumerate(("00a1", "00b2")):
            captions = {
                tag: {"caption": [f"{tag} {key} {n}" for n in range(2)], "caption/tokenized": []}
                for tag in xm3600.LANGUAGES
            }
            entries.append({"image/key": key, "image/locale": "ar", **captions})
            write(tmp_path / "images" / f"{key}.jpg", jpeg(90 * number))
        write_json_lines(tmp_path / "data/unpacked/captions.jsonl", entries)
        return tmp_path

    def test_both_protocols(self, folder):
        every, first = load("xm3600", folder), load("xm3600", folder, captions="first")
        assert len(every.features["captions"]) == 36 and every["image_id"][:] == ["00a1.jpg", "00b2.jpg"]
        assert every[1]["captions"]["quz"] == ["quz 00b2 0", "quz 00b2 1"]
        assert first[1]["captions"]["quz"] == ["quz 00b2 0"]
        with pytest.raises(ValueError, match="protocols all and first, not captions 'one'"):
            load("xm3600", folder, captions="one")

    def test_damaged_entries_are_counted(self, folder, caplog):
        bad = [{"en": {"caption": ["a"]}}, {"image/key": "00a1", "en": {"caption": "a"}}, {"image/key": 3}]
        good = {"image/key": "00a1", "en": {"caption": ["a", " "]}, "de": {"caption": ["b"]}}
        write_json_lines(folder / "data/unpacked/captions.jsonl", [good, *bad])
        (row,) = load("xm3600", folder, languages=["en", "de"], max_bad_fraction=1.0)
        assert row["captions"] == {"en": ["a"], "de": ["b"]}
        for reason in (
            "image/key is missing",
            "caption is text, not a list of texts",
            "image/key is a number, not text",
        ):
            assert f"1  {reason}" in reports(caplog)


class TestXTD:
    @pytest.fixture
    def folder(self, tmp_path):
        names = ["COCO_val2014_000000000001.jpg", "COCO_train2014_000000000002.jpg"]
        write(tmp_path / "data/XTD10/test_image_names.txt", "\n".join(names) + "\n")
        for folder, tags in {
            "XTD10": ("en", "es", "it", "ko", "pl", "ru", "tr", "zh"),
            "MIC": ("de", "fr"),
            "STAIR": ("jp",),
        }.items():
            for tag in tags:
                write(tmp_path / f"data/{folder}/test_1kcaptions_{tag}.txt", f"{tag} one\n{tag} two\n")
        for name, part in zip(names, ("val2014", "train2014"), strict=True):
            write(tmp_path / "images" / part / name, jpeg(1))
        return tmp_path

    def test_ten_languages_and_eleven(self, folder):
        ten, eleven = load("xtd10", folder), load("xtd11", folder)
        assert list(ten.features["captions"]) == list(xtd.LANGUAGES) and "en" in eleven.features["captions"]
        assert ten[1]["captions"]["ja"] == ["jp two"] and eleven[0]["captions"]["en"] == ["en one"]
        assert ten["image_id"][:] == eleven["image_id"][:]

    def test_lines_that_do_not_go_together(self, folder):
        write(folder / "data/STAIR/test_1kcaptions_jp.txt", "one\n")
        with pytest.raises(ValueError, match=r"test_image_names\.txt has 2 lines but .*_jp\.txt has 1"):
            load("xtd10", folder)
        assert len(load("xtd10", folder, languages=["de"])) == 2

    def test_a_language_without_its_file(self, folder):
        (folder / "data/XTD10/test_1kcaptions_ko.txt").unlink()
        with pytest.raises(FileNotFoundError, match=r"there is no test_1kcaptions_ko\.txt"):
            load("xtd11", folder)


class TestFlickr30K:
    @pytest.fixture
    def folder(self, tmp_path):
        entries = [
            {"sentences": [f"{name} {n}" for n in range(5)], "id": name, "img_path": f"{name}.jpg"} for name in "ab"
        ]
        write_json_lines(tmp_path / "data/datasets/flickr30k/annotations/test_ann.jsonl", [*entries, {"id": "c"}])
        for number, name in enumerate("ab"):
            write(tmp_path / f"images/flickr30k-images/{name}.jpg", jpeg(90 * number))
        return tmp_path

    def test_five_captions(self, folder, caplog):
        rows = load("flickr30k", folder, max_bad_fraction=1.0)
        assert rows["image_id"][:] == ["a.jpg", "b.jpg"] and rows[1]["captions"]["en"] == [f"b {n}" for n in range(5)]
        assert "1  img_path is missing" in reports(caplog)

    def test_a_split_that_is_not_there(self, folder):
        folders = {"data_dir": folder / "data", "image_dir": folder / "images"}
        with pytest.raises(FileNotFoundError, match=r"there is no train_ann\.jsonl in .*annotations"):
            data_scripts.load("flickr30k", split="train", **folders)
