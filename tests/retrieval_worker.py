"""Run by torchrun from test_distributed.py: this process's share of an evaluation, with many small blocks."""

import sys

import pandas as pd
from tiny import make_rows, make_spread_model

from ccrk import CCRKProcessor, encoding
from ccrk.encoders import CCRKEncoder
from ccrk.processes import Share
from ccrk.retrieval import evaluate, ranking
from ccrk.retrieval.evaluate import evaluate_retrieval

LENGTHS = [[4], [9, 2], [], [6, 6, 1], [3], [5], [8], [2, 7], [3]]


def rank(processor_dir: str, share: Share) -> pd.DataFrame:
    processor = CCRKProcessor.from_pretrained(processor_dir)
    encoder = CCRKEncoder(make_spread_model(len(processor.tokenizer), num_fusion_layers=2), processor, k_test=3)
    rows = make_rows(LENGTHS, languages=("en", "de"))
    return evaluate_retrieval(
        encoder, rows, ["en", "de"], batch_size=2, folds={"en": 2, "de": 2}, share=share
    ).rank_table()


if __name__ == "__main__":
    evaluate.CAPTIONS_PER_BLOCK, evaluate.IMAGES_PER_BLOCK = 3, 1
    encoding.TOKENS_PER_BATCH, ranking._SIMILARITIES_PER_CHUNK = 20, 40
    share = Share.of_this_process()
    rank(sys.argv[1], share).to_parquet(f"{sys.argv[2]}/{share.count}-{share.index}.parquet")
