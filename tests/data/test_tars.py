"""A tar gives all of its rows or an error: `tarfile` itself stops without a word at damage and between joined tars."""

import io
import json
import random
import tarfile
from pathlib import Path

import pytest
from builders import jpeg, reports

import data_scripts
from data_scripts import tars


def tar(names: list[str]) -> bytes:
    """Images of these names with an English caption each."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            for ending, contents in ((".jpg", jpeg(len(name))), (".json", json.dumps({"en": f"a {name}"}).encode())):
                member = tarfile.TarInfo(f"{name}{ending}")
                member.size = len(contents)
                archive.addfile(member, io.BytesIO(contents))
    return buffer.getvalue()


def with_members(contents: bytes, *members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO(contents)
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        for member in members:
            archive.addfile(member)
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def read(path: Path, streaming: bool) -> list[str]:
    rows = data_scripts.load(
        str(path), split="train", streaming=streaming, cache_dir=str(path.parent / "cache"), max_bad_fraction=1.0
    )
    return [row["captions"]["en"][0] for row in rows]


@pytest.mark.parametrize("streaming", [False, True])
class TestEnds:
    def test_joined_tars_are_read_on(self, streaming, tmp_path):
        path = tmp_path / "train.tar"
        path.write_bytes(tar(["a", "b"]) + tar(["c"]) + tar(["d", "e"]) + b"\0" * 512)
        assert read(path, streaming) == [f"a {name}" for name in "abcde"]

    @pytest.mark.parametrize("header", [0, 2, 5])
    def test_a_flipped_bit_in_a_header(self, streaming, header, tmp_path):
        contents = bytearray(tar(list("abc")))
        with tarfile.open(fileobj=io.BytesIO(contents)) as archive:
            start = archive.getmembers()[header].offset
        contents[start + 3] ^= 1
        (tmp_path / "train.tar").write_bytes(contents)
        with pytest.raises(
            ValueError, match=r"train.tar is not a whole, uncompressed tar \(.*; download or write it a"
        ):
            read(tmp_path / "train.tar", streaming)

    def test_what_follows_joined_tars_must_be_one(self, streaming, tmp_path):
        (tmp_path / "train.tar").write_bytes(tar(["a"]) + b"x" * 2048)
        with pytest.raises(
            ValueError, match=r"train.tar is not a whole, uncompressed tar \(damaged or cut off at byte"
        ):
            read(tmp_path / "train.tar", streaming)


def test_no_cut_goes_unnoticed(tmp_path):
    contents, path = tar(list("abc")), tmp_path / "train.tar"
    with tarfile.open(fileobj=io.BytesIO(contents)) as archive:
        bounds = [member.offset for member in archive.getmembers()]
    end = len(contents.rstrip(b"\0")) // 512 * 512 + 512
    cuts = {*bounds[1:], *(bound + 512 for bound in bounds), *random.Random(0).sample(range(1, end), 30), end}
    for cut in sorted(cuts):
        path.write_bytes(contents[:cut])
        with pytest.raises(ValueError, match=r"train\.tar"):
            read(path, streaming=True)
    path.write_bytes(contents[: end + 512])
    assert read(path, streaming=True) == ["a a", "a b", "a c"]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
@pytest.mark.parametrize("streaming", [False, True])
def test_links_to_earlier_files_are_followed(streaming, kind, tmp_path, caplog):
    path = tmp_path / "train.tar"
    base = tar(["x/a"])
    target = "x/a" if kind == tarfile.LNKTYPE else "../x/./a"
    links = [link(f"y/b{ending}", f"{target}{ending}", kind) for ending in (".jpg", ".json")]
    path.write_bytes(with_members(base, *links, link("z.jpg", "../../etc/passwd", kind), link("z.txt", "later", kind)))
    assert read(path, streaming) == ["a x/a", "a x/a"]
    assert f"2  {tars.NOT_CONTENTS}, first: {path}, z.jpg" in reports(caplog)


def test_what_has_no_contents_is_counted(tmp_path, caplog):
    pipe, device = link("p.jpg", "", tarfile.FIFOTYPE), link("d.jpg", "", tarfile.CHRTYPE)
    (tmp_path / "train.tar").write_bytes(with_members(tar(["a"]), pipe, device, link("folder", "", tarfile.DIRTYPE)))
    assert read(tmp_path / "train.tar", streaming=False) == ["a a"]
    assert f"2  {tars.NOT_CONTENTS}, first: {tmp_path / 'train.tar'}, p.jpg" in reports(caplog)
