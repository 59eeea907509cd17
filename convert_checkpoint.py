"""Converts a published CCRK checkpoint into a transformers checkpoint, and back; see `ccrk.convert`.

python convert_checkpoint.py ccrk_3m_10lan_epoch_29.th OUT --tokenizer FacebookAI/xlm-roberta-large
"""

from ccrk.convert import main

if __name__ == "__main__":
    main()
