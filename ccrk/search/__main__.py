"""Search in pictures of one's own: by words in any language, or by a picture.

    python -m ccrk.search index photos photos.index --model outputs/demo/finetune   again, after they have changed
    python -m ccrk.search query photos.index "ein Hund am Strand" other.jpg --k 5
    python -m ccrk.search query photos.index beach.jpg --add "at night" --subtract people
    python -m ccrk.search serve photos.index
    python -m ccrk.search consistency photos.index queries.csv --output_dir consistency
    python -m ccrk.search export photos.index photos.faiss --to faiss

COMMAND --help tells what each takes, docs/search.md the rest.
"""

import argparse
import importlib.util
import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import data_scripts
from ccrk.encoders import needs_language
from ccrk.search.calibrate import ERROR, calibrate, find_threshold
from ccrk.search.consistency import format_results, measure, write_results
from ccrk.search.export import PACKAGES, export
from ccrk.search.index import PictureIndex
from ccrk.search.queries import read_queries, translate, write_queries
from ccrk.search.query import Filter, as_query
from ccrk.search.store import Store, is_index, no_index
from data_scripts.captions import meant_language
from data_scripts.cli import did_you_mean, how_to_install, one_line, one_line_errors, printable, set_up_logging
from data_scripts.files import check_output_folder
from data_scripts.options import DATASETS, add_data_arguments, data_options
from data_scripts.translate import TRANSLATOR

logger = logging.getLogger(__name__)

OWN_CAPTIONS = ""  # in place of a table


def add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help=f"a folder of pictures, at any depth, or its URL; {', '.join(data_scripts.CARDS)}; {DATASETS}"
    )
    parser.add_argument("index", help="folder, or URL of an object store, to write to")
    parser.add_argument(
        "--model", help="folder or Hub id of CCRK or a dual encoder; of an index that is there, its own"
    )
    parser.add_argument("--split", default="test", help="of a data set (default: test)")
    add_data_arguments(parser)
    parser.add_argument("--batch_size", type=positive, default=64, help="pictures encoded at a time (default: 64)")
    parser.add_argument("--workers", type=positive, help="threads that read and decode (default: one for each core)")
    parser.add_argument("--ray", metavar="auto|ADDRESS", help="read, decode and encode on this cluster of Ray")
    parser.add_argument("--bf16", action="store_true", help="a new index: weights of the model in bf16")
    parser.add_argument(
        "--keep_states", action="store_true", help="a new index: keep image states; --rerank then encodes no picture"
    )
    parser.add_argument(
        "--allow_deletions",
        action="store_true",
        help="delete from the index what SOURCE no longer has, even a whole folder or more than a tenth of the index",
    )
    parser.add_argument(
        "--calibrate",
        nargs="?",
        const=OWN_CAPTIONS,
        metavar="QUERIES.csv",
        help="columns: path, of the right picture, and languages; sets the score from which a result is likely. "
        "Without a table by the captions of SOURCE, one of each picture",
    )
    parser.add_argument("--error", type=float, default=ERROR, help=f"of right pictures below it (default: {ERROR})")
    parser.set_defaults(run=run_index)


def run_index(arguments: argparse.Namespace) -> None:
    if is_index(arguments.source):
        raise ValueError(f"{arguments.source} is an index; give the source of the images first, then the index")
    if arguments.model is None and not Store.exists(arguments.index):
        raise ValueError(no_index(arguments.index, "make it with --model MODEL, a folder or Hub id"))
    index = PictureIndex(arguments.index, arguments.model, arguments.bf16, arguments.keep_states)
    options = data_scripts.merge_options(
        arguments.dataset_config, split=arguments.split, **data_options(arguments), streaming=False
    )
    load = cache(lambda: data_scripts.load(arguments.source, **options))
    # Before hours are spent.
    if arguments.calibrate == OWN_CAPTIONS:
        load()
    elif arguments.calibrate is not None and not os.path.isfile(arguments.calibrate):
        raise ValueError(
            f"there is no file {arguments.calibrate}; give a CSV with the columns path, and one for each language"
        )
    changes = index.update(
        arguments.source,
        load,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        ray=arguments.ray,
        allow_deletions=arguments.allow_deletions,
    )
    print(printable(changes))
    if arguments.calibrate is not None:
        known = load() if arguments.calibrate == OWN_CAPTIONS else Path(arguments.calibrate)
        for language, value in calibrate(index, known, arguments.error).items():
            print(printable(f"{language}: a result is likely from a score of {value:.4f} on"))


def add_query(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", help="folder of an index")
    parser.add_argument("queries", nargs="+", metavar="TEXT_OR_IMAGE", help="each is a query; a file is a picture")
    parser.add_argument("--k", type=positive, default=20, help="results of each (default: 20)")
    parser.add_argument(
        "--rerank", type=positive, default=0, metavar="N", help="score N candidates by the fusion encoder"
    )
    parser.add_argument("--add", nargs="+", default=[], metavar="TEXT_OR_IMAGE", help="added to each query")
    parser.add_argument("--subtract", nargs="+", default=[], metavar="TEXT_OR_IMAGE", help="taken from each query")
    parser.add_argument("--folder", help="look only below this folder of the source")
    parser.add_argument("--since", metavar="DATE", help="look only among files changed from 2024-05-31 on, say")
    parser.add_argument("--until", metavar="DATE", help="and not after this date")
    parser.add_argument(
        "--language",
        help="of the queries: marks what is likely in an index that was calibrated; some models need it (NLLB-CLIP)",
    )
    parser.add_argument("--model", help="where the index's model is now")
    parser.add_argument("--json", action="store_true", help="a JSON object for each query, as in a pipe")
    parser.set_defaults(run=run_query)


def run_query(arguments: argparse.Namespace) -> None:
    chosen = Filter.of(arguments.folder, arguments.since, arguments.until)
    queries, add, subtract = ([as_query(text) for text in texts] for texts in (
        arguments.queries, arguments.add, arguments.subtract
    ))  # fmt: skip
    index = PictureIndex(arguments.index, arguments.model)
    least = None
    if arguments.language and arguments.rerank:
        raise ValueError("the thresholds of --language are of cosine scores; remove --rerank")
    getattr(index, "reranker" if arguments.rerank else "encoder")  # is opened before the clock starts
    if arguments.language:
        thresholds = index.store.thresholds()
        if arguments.language in thresholds or not needs_language(index.encoder):
            least = find_threshold(thresholds, arguments.language)
    as_json = arguments.json or not sys.stdout.isatty()
    for text, query in zip(arguments.queries, queries, strict=True):
        started = time.perf_counter()
        found = index.search(
            query, arguments.k, arguments.rerank, chosen, add=add, subtract=subtract, language=arguments.language
        )
        milliseconds = round(1000 * (time.perf_counter() - started), 1)
        if not found and chosen.folder and not (folders := index.store.folders()) & {chosen.folder}:
            near = did_you_mean(chosen.folder, folders)
            logger.warning("the index has no folder %s%s", chosen.folder, near)
        results = [{"path": picture.path, "score": picture.score, "rank": picture.rank} for picture in found]
        if least is not None:
            results = [result | {"likely": result["score"] >= least} for result in results]
        if as_json:
            print(json.dumps({"query": text, "results": results, "milliseconds": milliseconds}, ensure_ascii=False))
            continue
        print(printable(f"{one_line(text)}   {milliseconds} ms"))
        if least is not None and not any(result["likely"] for result in results):
            print("nothing here is likely to be it")
        for result in results:
            mark = "" if result.get("likely", True) else "  (not likely)"
            print(printable(f"{result['rank']:>5}  {result['score']:7.4f}  {one_line(result['path'])}{mark}"))


def add_consistency(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", help="folder of an index")
    parser.add_argument("queries", type=Path, metavar="QUERIES.csv", help="columns are languages, rows the same query")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write results.json, report.html to")
    parser.add_argument("--languages", nargs="+", help="which columns; all by default")
    parser.add_argument("--pivot", help="language to compare the others with (default: en, or the first column)")
    parser.add_argument(
        "--translate", nargs="+", default=[], metavar="LANGUAGE", help="to fill from the pivot, where it is not there"
    )
    parser.add_argument(
        "--translator", default=TRANSLATOR, help=f"folder or Hub id of an M2M100 (default: {TRANSLATOR})"
    )
    parser.add_argument("--model", help="where the index's model is now")
    parser.set_defaults(run=run_consistency)


def run_consistency(arguments: argparse.Namespace) -> None:
    check_output_folder(arguments.output_dir)
    languages, queries, problems = read_queries(arguments.queries, arguments.languages)
    pivot = arguments.pivot or ("en" if "en" in languages else languages[0])
    if pivot not in languages:
        near = meant_language(pivot, languages)
        raise ValueError(f"--pivot {pivot} is not one of {', '.join(languages)}{near}")
    problems.report()
    index = PictureIndex(arguments.index, arguments.model)
    translated = Counter()
    if arguments.translate:
        translated = translate(queries, pivot, arguments.translate, arguments.translator)
        languages += [language for language in dict.fromkeys(arguments.translate) if language not in languages]
    if not any(len(row) > 1 for row in queries):
        raise ValueError(
            f"{arguments.queries} has no query in two languages; give a column for each, or --translate LANGUAGE …"
        )
    results = measure(index, languages, queries, pivot)
    results["translated"] = {"model": arguments.translator, "queries": translated} if arguments.translate else None
    write_results(results, arguments.output_dir)
    write_queries(queries, languages, arguments.output_dir / "queries.csv")
    if importlib.util.find_spec("matplotlib"):
        from ccrk.search.consistency_report import write_report

        write_report(results, index.store, arguments.output_dir)
    print(printable(format_results(results)))
    print(f"written to {arguments.output_dir}", file=sys.stderr)


def add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", help="folder of an index")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=positive, default=7860, help="(default: 7860)")
    parser.add_argument("--token", help="that whoever asks must know; needed where other machines can")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--model", help="where the index's model is now")
    parser.set_defaults(run=run_serve)


def run_serve(arguments: argparse.Namespace) -> None:
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(f"the page needs the package gradio; {how_to_install('search')}")
    from ccrk.search.serve import check_host, serve

    check_host(arguments.host, arguments.token)
    index = PictureIndex(arguments.index, arguments.model)
    # By default SIGTERM, which uvicorn raises again after it has stopped, would leave the uploads on the disk.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    serve(index, arguments.host, arguments.port, arguments.token, arguments.open)


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", help="folder of an index")
    parser.add_argument("output", type=Path, help="folder or file to write, which is not there yet")
    parser.add_argument("--to", required=True, choices=list(PACKAGES), help="for which engine")
    parser.set_defaults(run=run_export)


def run_export(arguments: argparse.Namespace) -> None:
    number = export(Store(arguments.index), arguments.to, arguments.output)
    print(printable(f"{number:,} pictures written to {arguments.output}"))


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


COMMANDS = {
    "index": (add_index, "make an index of pictures, or bring it up to date"),
    "query": (add_query, "find pictures"),
    "serve": (add_serve, "serve the page, and GET /api/search"),
    "consistency": (add_consistency, "compare what languages find, without labels"),
    "export": (add_export, "write vectors and paths for another search engine"),
}


def main(argv: Sequence[str] | None = None) -> None:
    set_up_logging()
    parser = argparse.ArgumentParser(
        prog="python -m ccrk.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (add, summary) in COMMANDS.items():
        add(commands.add_parser(name, help=summary, description=summary.capitalize()))
    given = sys.argv[1:] if argv is None else argv
    if given and not given[0].startswith("-") and given[0] not in COMMANDS:
        near = did_you_mean(given[0], COMMANDS)
        parser.error(f"unknown command {given[0]!r}; choose one of {', '.join(COMMANDS)}{near}")
    arguments = parser.parse_args(given)
    with one_line_errors():
        try:
            arguments.run(arguments)
        except KeyboardInterrupt:
            print("interrupted; run the same command to continue", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
