"""Finds this project's top-level modules where this package lies, whatever the current folder holds.

Every checkpoint folder holds a `modeling_ccrk.py`, and Python looks for modules in the current folder, or in the
script's, first: code of a downloaded checkpoint would run in place of ours without `trust_remote_code`. Once all
modules are inside this package, this file is not needed.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
NAMES = (
    "configuration_ccrk",
    "convert_checkpoint",
    "data_scripts",
    "eval_mrv",
    "fusion_ccrk",
    "metrics",
    "modeling_ccrk",
    "objectives_ccrk",
    "pictures_ccrk",
    "processing_ccrk",
    "train_pretrain",
    "train_retrieval",
)


class OwnModules:
    """A finder that comes before the path."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [ROOT]) if name in NAMES else None


sys.meta_path.insert(0, OwnModules)
# While `python -m ccrk.search …` looks for that module, the arguments are ["-m", …] and the path begins with the
# current folder, where a `torch.py` would be next. It stays where it holds this package, as in a checkout.
if sys.argv[:1] == ["-m"]:
    started = sys.orig_argv[-len(sys.argv)].removeprefix("-m").partition(".")[0]
    if started in ("ccrk", *NAMES) and os.path.realpath(sys.path[0]) == os.path.realpath(os.curdir) != ROOT:
        del sys.path[0]
