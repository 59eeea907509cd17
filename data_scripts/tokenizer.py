"""A small tokenizer in XLM-R's format for data sets that a model is trained on from scratch."""

import io
import math
from collections import Counter
from collections.abc import Iterable

import sentencepiece
from tokenizers import normalizers
from transformers import TokenizersBackend, XLMRobertaTokenizer

SPECIAL_PIECES = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int = 512) -> TokenizersBackend:
    """Learns sub-word pieces from captions; the same captions give the same tokenizer.

    The pieces come from byte-pair encoding and get the logarithm of their frequency as score, as XLM-R's unigram
    model wants it. SentencePiece's own unigram training looks for pieces among substrings that occur in several words:
    on a small corpus it finds few whole words, and spells out the commonest ones letter by letter.

    Text is normalised as XLM-R's is (SentencePiece's `nmt_nfkc`): composed and decomposed characters give the same
    tokens, and so do full-width letters and plain ones. The steps are those of `tokenizers`, since its `Precompiled`,
    which reads SentencePiece's own table, leaves decomposed Korean as it is.

    Args:
        captions: as the model will see them, before that.
        vocab_size: the most entries, `<s> <pad> </s> <unk>` first and `<mask>` last, as in XLM-R.
        max_length: tokens at which the tokenizer says a text is too long.

    Raises:
        ValueError: the captions have more characters than there are to be entries.
    """
    normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    captions = [normalizer.normalize_str(caption) for caption in captions]
    needed = len({"▁"}.union(*captions) - {" "}) + len(SPECIAL_PIECES)
    if vocab_size < needed:
        raise ValueError(f"vocab_size is {vocab_size}, but the characters of the captions alone need {needed}")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size - 1,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        num_threads=1,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        bos_piece=SPECIAL_PIECES[0],
        pad_piece=SPECIAL_PIECES[1],
        eos_piece=SPECIAL_PIECES[2],
        unk_piece=SPECIAL_PIECES[3],
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    counts = Counter(token for tokens in pieces.encode(captions) for token in tokens)
    total = math.log(counts.total())
    vocabulary = [
        # The four special pieces are never looked up in text. A piece that longer ones replaced everywhere counts 0.5.
        (pieces.id_to_piece(token), 0.0 if token < 4 else math.log(counts[token] or 0.5) - total)
        for token in range(pieces.get_piece_size())
    ]
    tokenizer = XLMRobertaTokenizer(vocab=[*vocabulary, (SPECIAL_PIECES[4], 0.0)])
    tokenizer.backend_tokenizer.normalizer = normalizer
    # Of this class, whose files are read as they are: XLMRobertaTokenizer would read its own without a normaliser.
    return TokenizersBackend(
        tokenizer_object=tokenizer.backend_tokenizer,
        **tokenizer.special_tokens_map,
        model_input_names=tokenizer.model_input_names,
        model_max_length=max_length,
    )
