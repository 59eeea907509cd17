"""Evaluates retrieval: recall per language, and mean rank variance (MRV) between languages.

    python eval_mrv.py --model outputs/demo/finetune --task shapes --output_dir outputs/demo
    python eval_mrv.py --model DIR_OR_ID --task multi30k --data_dir multi30k --image_dir photographs --output_dir OUT
    python eval_mrv.py --model EN --model_for de=DE ja=JA --task xflickrco … --output_dir OUT      one model a language
    python eval_mrv.py --model openai/clip-vit-base-patch32 --task multi30k … --output_dir OUT     another dual encoder
    python eval_mrv.py --model scores.npz --task multi30k … --output_dir OUT                       embeddings or scores
    python eval_mrv.py … --output_dir OUT --compare OTHER/ranks.parquet                            against another run
    torchrun --nproc_per_node 8 eval_mrv.py …                                                      on eight devices

Writes results.json, ranks.parquet (image, caption, language, direction, rank) and, with matplotlib, report.html
with its plots as PNG. An interrupted run goes on from what it had encoded when it is started again.

An .npz holds `images` (rows, D) and `captions_de` (N, D) for each language, compared by cosine, or `scores_de`
(rows, N): pictures and captions in the order of the data, without those captions that are empty or punctuation alone.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve other processes

import datasets
import torch
from transformers import AutoConfig

import data_scripts
from ccrk import CCRKConfig, CCRKForImageTextRetrieval, CCRKProcessor
from data_scripts.options import DATASETS, add_data_arguments, data_options
from errors_ccrk import one_line_errors, printable
from files_ccrk import check_output_folder, open_model, open_pretrained, written_whole
from peers_ccrk import DualEncoder, check_arrays, evaluate_arrays
from recipe_ccrk import set_up_logging
from retrieval_ccrk import (
    CCRKRetriever,
    RetrievalResult,
    Share,
    evaluate_retrieval,
    mrv_table,
    process_state,
    recall_table,
)
from uncertainty_ccrk import check_same_data, compare, mrv_intervals, read_ranks, recall_intervals

# Candidates re-scored per query: the paper's for its data sets, in proportion for 500 scenes.
K_TEST = {"shapes": 16, "multi30k": 128, "coco": 256, "xflickrco": 128, "wit": 128}
K_TEST_OF_OTHERS = 128
# COCO's figures in these languages are published as means over fifths of their 5,000 test images.
FOLDS = 5
IN_FOLDS = {"coco": ("en", "ja")}
# The paper's languages of MRV; those of other data sets are all that there are.
MRV_LANGUAGES = {"multi30k": ("en", "de", "fr", "cs"), "xflickrco": ("en", "de", "ja", "zh")}
NOT_ALIGNED = ("coco", "wit", "xm3600")  # a caption in one language is not that in another
COLUMNS = ("IR@1", "IR@5", "IR@10", "TR@1", "TR@5", "TR@10", "mean")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of CCRK or a dual encoder, or an .npz file")
    parser.add_argument("--model_for", nargs="+", default=[], metavar="LANGUAGE=MODEL", help="another model for these")
    parser.add_argument("--task", "--dataset", required=True, help=f"{', '.join(data_scripts.BUILDERS)}; {DATASETS}")
    add_data_arguments(parser)
    parser.add_argument(
        "--max_bad_fraction", type=float, help="share of rows and images that may be bad, 0.05 by default"
    )
    parser.add_argument("--mrv_languages", nargs="+", help="MRV over these; the paper's by default")
    parser.add_argument("--split", default="test", help="train, validation, test (default); xflickrco, wit: test_gmt")
    parser.add_argument("--max_rows", type=int, help="evaluate on the first N images only")
    parser.add_argument("--k_test", type=int, help=f"candidates re-scored per query, by default {K_TEST}")
    parser.add_argument("--no_rerank", action="store_true", help="rank by cosine alone")
    parser.add_argument("--batch_size", type=int, default=64, help="images encoded at a time")
    parser.add_argument("--bf16", action="store_true", help="weights and states in bf16, similarities in fp32")
    parser.add_argument("--compare", type=Path, metavar="RANKS", help="ranks.parquet of another run on the same data")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args(argv)
    if arguments.k_test is not None and arguments.k_test < 0:
        parser.error("--k_test is the number of candidates per query: 0 or more")
    if arguments.max_rows is not None and arguments.max_rows < 1:
        parser.error("--max_rows must be at least 1")
    if arguments.batch_size < 1:
        parser.error("--batch_size must be at least 1")
    if wrong := [entry for entry in arguments.model_for if not all(entry.partition("="))]:
        parser.error(f"--model_for takes LANGUAGE=MODEL such as de=outputs/de, not {wrong[0]}")
    arguments.model_for = dict(entry.split("=", 1) for entry in arguments.model_for)
    return arguments


def load_retriever(name_or_path: str, k_test: int, bf16: bool) -> CCRKRetriever | DualEncoder:
    """The model in evaluation mode. Re-ranking by a head that was never trained is refused."""
    options = {"dtype": torch.bfloat16 if bf16 else torch.float32}
    device = process_state().device
    if open_pretrained(AutoConfig, name_or_path).model_type != CCRKConfig.model_type:
        return DualEncoder(name_or_path, device=device, **options)
    processor = open_pretrained(CCRKProcessor, name_or_path)
    model, lacking = open_model(CCRKForImageTextRetrieval, name_or_path, ("matching_head",), **options)
    if k_test and lacking:
        raise ValueError(f"{name_or_path} has no matching head; rank with --no_rerank, or fine-tune it first")
    tokens, vocab_size = len(processor.tokenizer), model.config.text_config.vocab_size
    if tokens > vocab_size:
        raise ValueError(f"{name_or_path}: its tokenizer has {tokens} tokens, its model {vocab_size}; restore its own")
    return CCRKRetriever(model.eval().to(device), processor, k_test)


def evaluate(
    arguments: argparse.Namespace, dataset: datasets.Dataset, k_test: int
) -> tuple[RetrievalResult, int, list[Path]]:
    """
    Ranks of all languages, each by its model; the candidates that were in fact re-scored per query; and the folders of
    encoded blocks, which have served once the results are written.
    """
    languages = list(dataset.features["captions"])
    if unknown := sorted(set(arguments.model_for) - set(languages)):
        raise ValueError(f"--model_for names {', '.join(unknown)}, but the languages are {', '.join(languages)}")
    languages_of: dict[str, list[str]] = {}
    for language in languages:
        languages_of.setdefault(arguments.model_for.get(language, arguments.model), []).append(language)
    is_a_fold = arguments.dataset_config.get("fold") is not None
    folds = {} if is_a_fold else dict.fromkeys(IN_FOLDS.get(arguments.task, ()), FOLDS)
    result, re_scored, encoded = RetrievalResult(), 0, []
    for model, own_languages in languages_of.items():  # before the first of them takes its hours
        if model.endswith(".npz"):
            check_arrays(Path(model), dataset, own_languages)
        else:
            open_pretrained(AutoConfig, model)
    for model, own_languages in languages_of.items():
        if model.endswith(".npz"):
            part = evaluate_arrays(Path(model), dataset, own_languages, folds)
        else:
            retriever = load_retriever(model, k_test, arguments.bf16)
            re_scored = max(re_scored, retriever.k_test)
            cache_dir = arguments.output_dir / "encoded" / f"{retriever.fingerprint}-{dataset._fingerprint}"
            check_output_folder(cache_dir)
            encoded.append(cache_dir)
            part = evaluate_retrieval(
                retriever,
                dataset,
                own_languages,
                arguments.batch_size,
                folds,
                Share.of_this_process(),
                cache_dir,
            )
        for name in ("ranks", "fold_ranks", "left_out"):
            getattr(result, name).update(getattr(part, name))
    for name in ("ranks", "fold_ranks", "left_out"):  # in the order that was asked for
        setattr(result, name, {k: getattr(result, name)[k] for k in languages if k in getattr(result, name)})
    return result, re_scored, encoded


def choose_mrv_languages(arguments: argparse.Namespace, languages: Sequence[str]) -> tuple[list[str], str | None]:
    """The languages of MRV, or none and the reason why."""
    if arguments.task in NOT_ALIGNED or arguments.dataset_config.get("task") == 2:
        reason = f"the captions of {arguments.task} in one language are not those in another: no instances align"
        if arguments.mrv_languages:
            raise ValueError(f"{reason}; leave --mrv_languages out")
        return [], reason
    chosen = arguments.mrv_languages
    if not chosen:
        published = MRV_LANGUAGES.get(arguments.task)
        chosen = [language for language in published or languages if language in languages]
    if missing := [language for language in chosen if language not in languages]:
        raise ValueError(f"--mrv_languages names {', '.join(missing)}, evaluated are {', '.join(languages)}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"--mrv_languages names a language twice: {' '.join(chosen)}; name each once")
    return (chosen, None) if len(chosen) > 1 else ([], "it compares two languages or more")


def results_dictionary(
    result: RetrievalResult,
    arguments: argparse.Namespace,
    k_test: int,
    mrv_languages: Sequence[str],
    no_mrv: str | None,
) -> dict:
    """The content of results.json: recall in percent, ranks counted from 1, intervals as [low, high]."""
    mrv = mrv_table(result.ranks, mrv_languages) if mrv_languages else None
    intervals = {"recall": recall_intervals(result.ranks)}
    if mrv is not None:
        intervals["mrv"] = mrv_intervals(result.ranks, mrv_languages)
    results = {
        "task": arguments.task,
        "split": arguments.split,
        "model": arguments.model,
        "k_test": k_test,
        "languages": list(result.ranks),
        "recall": recall_table(result.ranks),
        "mrv": mrv,
        "counts": {
            "images": len(set().union(*(ranks["TR"].index for ranks in result.ranks.values()))),
            "captions": {language: len(ranks["IR"]) for language, ranks in result.ranks.items()},
            "captions_left_out": result.left_out,
        },
        "intervals": intervals,
    }
    if mrv is None:
        results["no_mrv_because"] = no_mrv or f"no instance has a caption in all of {', '.join(mrv_languages)}"
    if arguments.model_for:
        results["model_for"] = arguments.model_for
    if arguments.dataset_config:
        results["dataset_config"] = arguments.dataset_config
    if result.fold_ranks:
        results["recall_in_folds"] = recall_table(result.fold_ranks)
        results["folds"] = FOLDS
    return results


def write_results(results: dict, output_dir: Path) -> None:
    with written_whole(output_dir / "results.json") as path:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def format_table(results: dict) -> str:
    """Recall per language, their mean, MRV, and the comparison, as text."""
    lines = ["      " + "".join(f"{column:>8}" for column in COLUMNS)]
    for title, table in (("", results["recall"]), ("in folds", results.get("recall_in_folds", {}))):
        if title and table:
            lines.append(title)
        for language, row in table.items():
            lines.append(f"{language:<6}" + "".join(f"{row[column]:8.1f}" for column in COLUMNS))
        if table:
            means = (sum(row[column] for row in table.values()) / len(table) for column in COLUMNS)
            lines.append("mean  " + "".join(f"{mean:8.1f}" for mean in means))
    if results["mrv"] is None:
        lines.append(f"no MRV: {results['no_mrv_because']}")
    else:
        languages = " ".join(results["mrv"]["languages"])
        lines.append(f"MRV over {languages} (0: every instance ranks alike in all of them)")
        for direction in ("IR", "TR", "mean"):
            spread, (low, high) = results["mrv"][direction], results["intervals"]["mrv"][direction]["std"]
            lines.append(
                f"  {direction:<5} std {spread['std']:.3f} (95 %: {low:.3f} to {high:.3f})   "
                f"variance {spread['variance']:.3f}"
            )
    if "comparison" in results:
        comparison = results["comparison"]
        lines.append(f"minus {comparison['other']}, mean recall with 95 % interval:")
        rows = comparison["recall"] | ({"MRV": comparison["mrv"]} if comparison["mrv"] else {})
        for name, row in rows.items():
            lines.append(
                f"  {name:<5}{row['difference']:+8.2f}  ({row['low']:+.2f} to {row['high']:+.2f})  p {row['p']:.4f}"
            )
        if "no_mrv_because" in comparison:
            lines.append(f"  no MRV: {comparison['no_mrv_because']}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    set_up_logging()
    arguments = parse_arguments(argv)
    k_test = (
        0
        if arguments.no_rerank
        else K_TEST.get(arguments.task, K_TEST_OF_OTHERS)
        if arguments.k_test is None
        else arguments.k_test
    )
    state = process_state()
    with one_line_errors():
        # Scoring may take hours: what would spoil its result is looked for before.
        check_output_folder(arguments.output_dir)
        options = data_scripts.merge_options(
            arguments.dataset_config,
            split=arguments.split,
            **data_options(arguments),
            max_bad_fraction=arguments.max_bad_fraction,
            streaming=False,
        )
        other_ranks = read_ranks(arguments.compare) if arguments.compare else None
        with state.main_process_first():  # one process prepares the data and writes the cache
            dataset = data_scripts.load(arguments.task, **options)
        if arguments.max_rows is not None:
            dataset = dataset.select(range(min(arguments.max_rows, len(dataset))))
        if not len(dataset):
            raise ValueError(f"{arguments.task} has no rows in its {arguments.split} split; choose another --split")
        mrv_languages, no_mrv = choose_mrv_languages(arguments, list(dataset.features["captions"]))
        if other_ranks is not None:
            check_same_data(dataset, other_ranks)
        result, k_test, encoded = evaluate(arguments, dataset, k_test)
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    results = results_dictionary(result, arguments, k_test, mrv_languages, no_mrv)
    with one_line_errors():
        with written_whole(arguments.output_dir / "ranks.parquet") as path:
            result.rank_table().to_parquet(path, write_page_checksum=True)
        write_results(results, arguments.output_dir)
        if other_ranks is not None:
            comparison = compare(result.ranks, other_ranks, results["mrv"]["languages"] if results["mrv"] else [])
            results["comparison"] = {"other": str(arguments.compare)} | comparison
            write_results(results, arguments.output_dir)
        if importlib.util.find_spec("matplotlib"):
            from report_ccrk import write_report

            write_report(results, result.ranks, dataset, arguments.output_dir)
        for folder in encoded:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # there are those of other evaluations
            (arguments.output_dir / "encoded").rmdir()
    print(printable(format_table(results)))
    print(f"written to {arguments.output_dir}", file=sys.stderr)


if __name__ == "__main__":
    main()
