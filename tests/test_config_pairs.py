"""Specs of pairs of texts: what each backbone reads, and what nobody does."""

import pytest

from emc2dist.config import parse
from emc2dist.errors import SpecError
from emc2dist.run.driver import resolved

PAIRS = "name: a\nepochs: 3\nbatch_size: 16\nlr: 1e-4\nobjective: infonce\ndata: {kind: pairs, path: set}\n"
FOLDER = "transformers:runs/minilm"


def of(backbone, *overrides):
    return parse(PAIRS, [f"encoder.backbone={backbone}", *overrides])


@pytest.mark.parametrize("override", ["data.shuffle=block", "data.cache_dir=/tmp/a", "data.cache_mib=9"])
def test_keys_of_data_that_pairs_do_not_read_are_refused(override):
    with pytest.raises(SpecError, match=rf"{override.split('=')[0]}: is of images, and data\.kind is pairs"):
        of("bag", override)


TEXT = {"query_prompt": "find ", "query_length": 9, "document_prompt": "of ", "document_length": 99}
READ = {
    "bag": {"width": 6, "vocabulary": 900},
    "mini": {"width": 256, "layers": 3, "heads": 8, "pooling": "last", "vocabulary": 900},
    FOLDER: {"pooling": "cls"},
}


@pytest.mark.parametrize("backbone", READ)
def test_keys_of_text_that_a_backbone_does_not_read_are_refused(backbone):
    read = TEXT | READ[backbone]
    text = of(backbone, *(f"text.{key}={value!r}" for key, value in read.items())).text.model_dump()
    assert {key: text[key] for key in read} == read
    others = READ["mini"].keys() - read.keys()
    for key in others:
        with pytest.raises(
            SpecError, match=rf"text\.{key}: is not read by encoder\.backbone: {backbone}; leave it out"
        ):
            of(backbone, f"text.{key}={READ['mini'][key]}")


LONG = ("text.query_length=24", "text.document_length=1000")


@pytest.mark.parametrize(
    ("fits", "too_many"),
    [
        ("batch_size=16777216", "text.document_length=1001"),
        ("batch_size=16777214", "negatives={name: in_batch, draws: 4}"),
        ("batch_size=8388608", "data.negatives=2"),
    ],
)
def test_the_tokens_of_a_step_have_a_bound_and_name_their_keys(fits, too_many):
    """4 bytes of 1024 tokens of 2^24 samples are 2^36."""
    of("bag", "negatives=in_batch", *LONG, fits)
    with pytest.raises(SpecError, match=r"batch_size: .* text\.query_length: 24 and .* GiB of tokens a step"):
        of("bag", "negatives=in_batch", *LONG, fits, too_many)
    of("bag", "negatives=in_batch", *LONG, fits, too_many, "workers=2", "device=cpu")


def test_embeddings_have_a_bound_and_name_their_keys():
    of("bag", "text.vocabulary=16777216", "text.width=1024")
    with pytest.raises(SpecError, match=r"text\.vocabulary: 16777216 with text\.width: 1025 takes 64 GiB"):
        of("bag", "text.vocabulary=16777216", "text.width=1025")


def test_heads_divide_the_width():
    with pytest.raises(SpecError, match=r"text\.heads: 4 does not divide text\.width: 6"):
        of("mini", "text.width=6")


@pytest.mark.parametrize(("path", "shuffle"), [("s3://sets/a", "block"), ("/sets/a", "full")])
def test_a_set_of_pairs_may_move_between_s3_and_a_disk(path, shuffle):
    assert resolved(of("bag", f"data.path={path}")).data.shuffle == "auto"
    assert (
        resolved(parse("name: a\nepochs: 3\nbatch_size: 16\nlr: 1e-4\n", [f"data.path={path}"])).data.shuffle == shuffle
    )


@pytest.mark.parametrize("given", ["[backward]", "[forward, forward]", "[]", "[forward, backward, backward]"])
def test_directions_in_one_denominator_hold_forward_and_each_once(given):
    assert of("bag", "objective.directions=[queries, forward]").objective.directions == ("queries", "forward")
    with pytest.raises(SpecError, match=r"objective\.directions: got .* name each once, and forward"):
        of("bag", f"objective.directions={given}")


def test_a_cache_is_of_documents_alone():
    of("bag", "negatives={name: chain, carried: cached}", "objective.directions=[forward]")
    for others in ("both", "all", "[forward, documents]"):
        with pytest.raises(SpecError, match=r"carried: cached are of documents alone"):
            of("bag", "negatives={name: chain, carried: cached}", f"objective.directions={others}")


def test_lists_with_grades_go_forward_alone():
    assert of("bag", "objective=sycl", "objective.directions=forward").objective.directions == "forward"
    with pytest.raises(SpecError, match=r"objective\.directions: both have no grades"):
        of("bag", "objective=sycl", "objective.directions=both")
