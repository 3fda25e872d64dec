"""`train`, `validate`, `evaluate`, `export`: a run here and now, and what comes of it."""

import argparse
import os

from emc2dist.cli import ending
from emc2dist.cli.words import Commands, add_json, add_spec, print_result
from emc2dist.config import BUILT_IN, Spec, base_of, dump, given_keys, is_remote, load, load_job, parse_s3, paths
from emc2dist.errors import SpecError
from emc2dist.terminal import columns, say

_FORMATS = ("safetensors", "onnx", "huggingface", "sentence-transformers")


def add_to(commands: Commands) -> None:
    """Declare the commands."""
    text = "train a spec, or resume it: the same name resumes from its newest checkpoint"
    train = commands.add_parser("train", help=text, description=text)
    text = (
        "check the spec of a run or a sweep, but not its data, and print it resolved; with launch.cluster, what goes "
        "where on it"
    )
    validate = commands.add_parser("validate", help=text, description=text)
    text = (
        "how good a run's newest checkpoint is: kNN, linear probe, recall, few-shot accuracy, how features lie; "
        "of pairs nDCG, MRR and recall of all queries among the whole corpus, and BM25's"
    )
    evaluate = commands.add_parser("evaluate", help=text, description=text)
    text = (
        "write a run's backbone as safetensors, under torchvision's or timm's own key names and without its head; what "
        "images it takes is in the file's metadata: size, mean, std; of texts with the tokenizer beside it. Or the "
        "whole encoder of images as ONNX, a folder for a hub with a model card, or a folder of sentence-transformers"
    )
    export = commands.add_parser("export", help=text, description=text)
    for sub in (train, validate):
        add_spec(sub)
    for sub in (evaluate, export):
        sub.add_argument("run", metavar="RUN", help="a run folder, as in runs/quickstart, or a checkpoint in it")
    export.add_argument("out", metavar="OUT", help="the file to write; the last two formats are a new folder")
    text = f"what is written: {', '.join(_FORMATS)} (%(default)s)"
    export.add_argument("--format", metavar="FORMAT", choices=_FORMATS, default=_FORMATS[0], help=text)
    evaluate.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        help="override a key of data, eval or s3 that evaluation reads, as in data.path=PATH where the data have moved",
    )
    text = (
        "a table of sentence1, sentence2, score (and task, split): instead of all that, how well cosines of a run over "
        "texts order its pairs, by Spearman's correlation of each task"
    )
    evaluate.add_argument("--similarity", metavar="FILE", help=text)
    text = "of --similarity: the rows that count, by their column split (test)"
    evaluate.add_argument("--split", metavar="NAME", help=text)
    text = "how S3 is reached: s3.endpoint=URL"
    export.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help=text)
    for sub in (train, evaluate, export):
        add_json(sub)
    for sub, command in ((train, _train), (validate, _validate), (evaluate, _evaluate), (export, _export)):
        sub.set_defaults(command=command)


def _train(arguments: argparse.Namespace) -> None:
    spec = load(arguments.spec, arguments.overrides)
    from emc2dist.run.driver import train
    from emc2dist.run.folder import refuse_moved

    if not {"name", "run_dir"} & set(given_keys(arguments.overrides)):
        refuse_moved(arguments.spec, spec)
    summary = train(spec)
    report = ending.write_report(summary["run_dir"]) if spec.watch.report else None
    table = ending.table(summary, report)
    if arguments.json:
        say(table.rstrip())
        print_result(summary | {"report": report}, as_json=True)
    else:
        print_result(summary, as_json=False)
        print(f"\n{table}", end="")


def _validate(arguments: argparse.Namespace) -> None:
    job = load_job(arguments.spec, arguments.overrides)
    run = base_of(job)
    if run.launch.cluster is not None:
        from emc2dist.launch import placement

        say("\n".join(placement.check(run)))
    if run.data.path not in BUILT_IN:
        say(f"data.path: {_unseen(run)}")
    print(dump(job), end="")


def _unseen(run: Spec) -> str:
    """What `validate` says of data that it does not look at: they may be there by then, or lie on a cluster."""
    path = run.data.path
    elsewhere = is_remote(path) or run.launch.cluster is not None
    if elsewhere or os.path.exists(paths.absolute(path)):
        return f"{path}: the data were not looked at; `train` does that before anything else"
    return (
        f"{path}: no such file or folder{paths.looked_for_in(path)}, which `train` refuses unless it is there by then"
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.similarity is not None:
        from emc2dist.run.similarity import evaluate_similarity

        s3 = parse_s3(arguments.overrides)
        result = evaluate_similarity(arguments.run, arguments.similarity, split=arguments.split, s3=s3)
    else:
        from emc2dist.run.results import evaluate

        if arguments.split is not None:
            raise SpecError(f"--split {arguments.split}: is of --similarity; say eval.asked={arguments.split}")
        s3 = parse_s3(arguments.overrides, others=("data", "eval"))
        result = evaluate(arguments.run, arguments.overrides, s3=s3)
    if arguments.json:
        print_result(result, as_json=True)
        return
    of = {what: result.pop(what) for what, value in [*result.items()] if isinstance(value, dict)}
    print_result(result, as_json=False)
    print(f"\n{_measures(of)}", end="")


def _measures(of: dict[str, dict[str, float | None]]) -> str:
    """A line for each measure, with its value for each of what it is of."""
    rows = [["", *of]]
    for name in next(iter(of.values())):
        values = [measures[name] for measures in of.values()]
        rows.append([name, *("-" if value is None else f"{value:.4g}" for value in values)])
    return columns(rows, range(1, 1 + len(of)))


def _export(arguments: argparse.Namespace) -> None:
    from emc2dist.run.exports import export

    s3 = parse_s3(arguments.overrides)
    result = export(arguments.run, arguments.out, form=arguments.format, s3=s3)
    print_result(result, as_json=arguments.json)
