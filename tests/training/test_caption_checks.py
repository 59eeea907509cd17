"""Whether the captions of a data set suit what is to be trained."""

import pytest
from tiny import make_rows

from ccrk.arguments import DataArguments
from ccrk.training.captions import check_captions


def test_rows_with_one_caption_each_are_not_1_to_k(caplog):
    rows = make_rows([[3], [2]], languages=("en", "de"))
    one_each = rows.map(
        lambda row, place: {"captions": row["captions"] | {"de" if place else "en": []}}, with_indices=True
    )
    data = DataArguments(captions_per_image="all")
    check_captions(data, rows)
    with pytest.raises(ValueError, match="no row has captions in two languages; put those of a picture into one row"):
        check_captions(data, one_each)
    assert not caplog.text
    for rows in (one_each, make_rows([[3], [2]])):  # by default 1-to-K
        check_captions(DataArguments(), rows)
    assert "no row has captions in two languages: a picture is trained with one caption, which is no 1-to-K" in (
        caplog.text
    )
    assert "there is one language, en: a picture is trained with one caption" in caplog.text
