"""Evaluates retrieval: recall per language, and mean rank variance (MRV) between languages.

    python eval_mrv.py --model outputs/demo/finetune --task shapes --output_dir outputs/demo
    python eval_mrv.py --model DIR_OR_ID --task multi30k --data_dir multi30k --image_dir photographs --output_dir OUT
    python eval_mrv.py --model EN --model_for de=DE ja=JA --task xflickrco … --output_dir OUT      one model a language
    python eval_mrv.py --model openai/clip-vit-base-patch32 --task multi30k … --output_dir OUT     another dual encoder
    python eval_mrv.py --model open_clip:ViT-B-32/laion2b_s34b_b79k --task multi30k … --output_dir OUT    of open_clip
    python eval_mrv.py --model scores.npz --task multi30k … --output_dir OUT                       embeddings or scores
    python eval_mrv.py … --output_dir OUT --compare OTHER/ranks.parquet                            against another run
    python eval_mrv.py --model A B C --task multi30k … --output_dir OUT                            one table of models
    torchrun --nproc_per_node 8 eval_mrv.py …                                                      on eight devices

Writes results.json, ranks.parquet (image, caption, language, direction, rank) and, with matplotlib, report.html
with its plots as PNG; of several models each into a folder of its own, and a table of them all, models.md and, with
matplotlib, models.html. An interrupted run goes on from what it had encoded when it is started again.

An .npz holds `images` (rows, D) and `captions_de` (N, D) for each language, compared by cosine, or `scores_de`
(rows, N): images and captions in the order of the data, without those captions that are empty or punctuation alone.
"""

import argparse
import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve other processes

import datasets

import data_scripts
from ccrk.processes import process_state
from ccrk.retrieval.evaluate import TIMED_QUERIES, check_model, evaluate_models
from ccrk.retrieval.images import EvaluatedImages
from ccrk.retrieval.instances import Ranks
from ccrk.retrieval.intervals import check_same_data, compare, read_ranks
from ccrk.retrieval.models import folders_of_models, write_models
from ccrk.retrieval.results import choose_mrv_languages, format_table, make_results, write_results
from data_scripts.cards import ANY_TABLE, CARDS, card_of
from data_scripts.cli import one_line_errors, printable, set_up_logging
from data_scripts.files import check_output_folder, written_whole
from data_scripts.options import DATASETS, add_data_arguments, data_options

K_TEST = {name: card.k_test for name, card in CARDS.items() if card.k_test != ANY_TABLE.k_test}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        nargs="+",
        required=True,
        help="folders or Hub ids of CCRK or dual encoders, open_clip:NAME/PRETRAINED, or .npz files",
    )
    parser.add_argument("--model_for", nargs="+", default=[], metavar="LANGUAGE=MODEL", help="another model for these")
    parser.add_argument("--task", "--dataset", required=True, help=f"{', '.join(CARDS)}; {DATASETS}")
    add_data_arguments(parser)
    parser.add_argument(
        "--max_bad_fraction", type=float, help="share of rows and images that may be bad, 0.05 by default"
    )
    parser.add_argument("--mrv_languages", nargs="+", help="MRV over these; the paper's by default")
    parser.add_argument("--split", default="test", help="train, validation, test (default); xflickrco, wit: test_gmt")
    parser.add_argument("--max_rows", type=int, help="evaluate on the first N images only")
    parser.add_argument(
        "--k_test", type=int, help=f"candidates re-scored per query, by default {K_TEST}, else {ANY_TABLE.k_test}"
    )
    parser.add_argument("--no_rerank", action="store_true", help="rank by cosine alone")
    parser.add_argument(
        "--caption_template",
        nargs="+",
        default=["{}"],
        metavar="TEMPLATE",
        help="what a model is given of a caption, such as 'query: {}' for E5; one for all models, or one for each",
    )
    parser.add_argument(
        "--any_copy", action="store_true", help="images whose files are equal count as one, under whatever names"
    )
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
    if wrong := [template for template in arguments.caption_template if "{}" not in template]:
        parser.error(f"--caption_template has no {{}} where the caption goes: {wrong[0]}")
    if len(arguments.caption_template) not in (1, len(arguments.model)):
        parser.error("--caption_template: give one for all models, or one for each")
    arguments.caption_template *= len(arguments.model) // len(arguments.caption_template)
    if any(m.endswith(".npz") and t != "{}" for m, t in zip(arguments.model, arguments.caption_template, strict=True)):
        parser.error("--caption_template is for models: the captions of an .npz are embedded already; give it '{}'")
    if wrong := [entry for entry in arguments.model_for if not all(entry.partition("="))]:
        parser.error(f"--model_for takes LANGUAGE=MODEL such as de=outputs/de, not {wrong[0]}")
    if arguments.model_for and len(arguments.model) > 1:
        parser.error("--model_for takes the place of one --model in some languages; give one model")
    arguments.model_for = dict(entry.split("=", 1) for entry in arguments.model_for)
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    set_up_logging()
    arguments = parse_arguments(argv)
    card = card_of(arguments.task)
    k_test = 0 if arguments.no_rerank else card.k_test if arguments.k_test is None else arguments.k_test
    state = process_state()
    with one_line_errors():
        # Scoring may take hours: what would spoil its result is looked for before.
        folders = folders_of_models(arguments.model, arguments.output_dir)
        for folder in folders.values():
            check_output_folder(folder)
        options = data_scripts.merge_options(
            arguments.dataset_config,
            split=arguments.split,
            **data_options(arguments),
            max_bad_fraction=arguments.max_bad_fraction,
            streaming=False,
            gallery="gallery" in data_scripts.options_of(arguments.task) or None,
        )
        other_ranks = read_ranks(arguments.compare) if arguments.compare else None
        with state.main_process_first():  # one process prepares the data and writes the cache
            dataset = data_scripts.load(arguments.task, **options)
        if arguments.max_rows is not None:
            dataset = dataset.select(range(min(arguments.max_rows, len(dataset))))
        if not len(dataset):
            raise ValueError(f"{arguments.task} has no rows in its {arguments.split} split; choose another --split")
        languages = list(dataset.features["captions"])
        mrv_languages = choose_mrv_languages(
            arguments.task, languages, arguments.mrv_languages, arguments.dataset_config
        )
        if other_ranks is not None:
            check_same_data(dataset, other_ranks)
        if len(folders) > 1:
            for model in folders:
                check_model(model, dataset, languages)
        images = EvaluatedImages.of(dataset, arguments.any_copy)
        templates = dict(zip(arguments.model, arguments.caption_template, strict=True))
        found = {
            model: evaluate(
                model, templates[model], folder, arguments, dataset, images, k_test, mrv_languages, other_ranks
            )
            for model, folder in folders.items()
        }
        if state.is_main_process and len(folders) > 1:
            write_models(found, folders, arguments.output_dir, TIMED_QUERIES)
            print((arguments.output_dir / "models.md").read_text(encoding="utf-8"))
    if state.is_main_process:
        print(f"written to {arguments.output_dir}", file=sys.stderr)


def evaluate(
    model: str,
    caption_template: str,
    folder: Path,
    arguments: argparse.Namespace,
    dataset: datasets.Dataset,
    images: EvaluatedImages,
    k_test: int,
    mrv_languages: tuple[list[str], str | None],
    other_ranks: Ranks | None,
) -> dict | None:
    """Writes one model's results into a folder, and returns them, on the main process."""
    state = process_state()
    result, k_test, encoded = evaluate_models(
        model,
        dataset,
        arguments.model_for,
        k_test=k_test,
        output_dir=folder,
        batch_size=arguments.batch_size,
        bf16=arguments.bf16,
        folds={} if arguments.dataset_config.get("fold") is not None else card_of(arguments.task).folds,
        caption_template=caption_template,
        images=images,
    )
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    results = make_results(
        result,
        task=arguments.task,
        split=arguments.split,
        model=model,
        k_test=k_test,
        mrv_languages=mrv_languages[0],
        no_mrv_because=mrv_languages[1],
        model_for=arguments.model_for,
        dataset_config=arguments.dataset_config,
        caption_template=caption_template,
        equal_images=images.with_copy,
        any_copy=arguments.any_copy,
    )
    with written_whole(folder / "ranks.parquet") as path:
        result.rank_table().to_parquet(path, write_page_checksum=True)
    write_results(results, folder)
    if other_ranks is not None:
        comparison = compare(result.ranks, other_ranks, results["mrv"]["languages"] if results["mrv"] else [])
        results["comparison"] = {"other": str(arguments.compare)} | comparison
        write_results(results, folder)
    if importlib.util.find_spec("matplotlib"):
        from ccrk.retrieval.report import write_report

        write_report(results, result.ranks, dataset, folder)
    for cache in encoded:
        shutil.rmtree(cache, ignore_errors=True)
    with contextlib.suppress(OSError):  # there are those of other evaluations
        (folder / "encoded").rmdir()
    print(printable(format_table(results)))
    return results


if __name__ == "__main__":
    main()
