"""The words of a certificate, each by its rule; its table and its picture."""

import io

import numpy as np
import pytest
from PIL import Image
from train.harness import small_spec
from train.test_certificate_rows import row

from emc2dist.config import S3
from emc2dist.errors import SpecError, StorageError
from emc2dist.report import certificate as report
from emc2dist.run.certificate import Certificate

IN_BATCH = small_spec("objective=dcl", "negatives=in_batch")
MH = small_spec()
ISIR = small_spec("negatives.kernel=isir", "negatives.carried=cached", "negatives.cache_proposals=64")


def own(**values):
    return row(MH, **{"relbias": 0.2, **values})


def batch(**values):
    return row(IN_BATCH, role="batch", **{"relbias": 0.6, **values})


def other(spec=ISIR, **values):
    return row(spec, role="other", **{"relbias": 0.4, **values})


def certificate(*rows, spec=MH, trained=None, images=2000):
    return Certificate("small.yaml", spec, trained, images, 20, list(rows), [])


def test_a_bias_beyond_noise_is_told_by_how_much_and_one_below_as_noise():
    told = report.off([own(relbias=0.14), batch()])
    assert "(mh, reencode, K = 0) is no farther off the exact one than noise: a bias below 0.11 of its" in told
    assert told.endswith("in-batch softmax is off the exact one by a bias of 0.59 of its length.")
    assert "K = 0) is off the exact one by a bias of 0.12" in report.off([own(relbias=0.16), batch()])
    alone = report.off([row(IN_BATCH, relbias=0.6)])
    assert "your negatives (in batch)" in alone
    assert "in-batch softmax" not in alone


def test_a_sampler_is_worth_it_where_it_is_nearer_by_a_tenth():
    assert report.worth([own(), batch()]).startswith("Your sampler is worth it at this batch size: 0.18 against 0.59")
    equal = report.worth([own(relbias=0.58), batch()])
    assert equal.startswith("Your sampler is not worth it at this batch size, it makes no difference: ")
    farther = report.worth([own(relbias=0.6), batch(relbias=0.3)])
    assert "not worth it at this batch size, in-batch softmax is nearer" in farther
    dear = report.worth([own(relbias=0.2, error=90.0, reencoded=112.0), batch(relbias=0.6, error=90.0)])
    assert "in-batch softmax is nearer" in dear  # eight times the encodings of a plain step


def test_of_a_batch_alone_the_best_sampler_is_weighed():
    rows = [row(IN_BATCH, relbias=0.6), other(MH, relbias=0.5), other(relbias=0.2)]
    assert report.worth(rows).startswith("A sampler would be worth it at this batch size: 0.18 against 0.59")
    assert "A sampler would be not worth it" in report.worth([row(IN_BATCH, relbias=0.2), other(relbias=0.5)])


def test_where_nothing_is_beyond_noise_nothing_is_advised():
    rows = [own(relbias=0.1), batch(relbias=0.12), other(relbias=0.1)]
    told = report.worth(rows)
    assert "cannot be told: in-batch softmax shows no bias in 1,000 steps" in told
    assert report.advice(rows) == ""
    assert report.advice([*rows, other(relbias=0.5)]) != ""


def test_the_nearest_is_advised_and_the_own_where_it_is_as_near():
    rows = [own(relbias=0.4), batch(), other(relbias=0.2)]
    assert report.advice(rows) == (
        "Of what was tried take `objective: dcl` with `negatives: {name: chain, kernel: isir, carried: cached, "
        "cache_proposals: 64}`: 0.18 against 0.39 of yours."
    )
    assert report.advice([own(relbias=0.21), batch(), other(relbias=0.2)]).startswith("Keep your negatives")
    assert "`negatives: {name: in_batch}`" in report.advice([own(), batch(relbias=0.1), other(relbias=0.1)])
    cheap = small_spec("negatives.kernel=isir", "negatives.carried=cached")
    rows = [own(relbias=0.5), batch(), other(relbias=0.2), other(cheap, relbias=0.2), other(relbias=0.2, reencoded=0.1)]
    assert report.pick(rows) is rows[3]


def test_what_is_encoded_again_and_what_flatters_is_said():
    assert report.price([own()]) == ""
    assert report.price([own(reencoded=3.25)]) == (
        "Your negatives encode 3.2 images a step again, beside 16 of the batch."
    )
    assert report.flattered([row(ISIR, samples=256)]) == ""
    assert "K = 64 draws 32% of these images at once, which flatters it; give --samples 256." in report.flattered(
        [row(ISIR, samples=200)]
    )


def test_what_a_part_of_the_images_says_of_all():
    half = row(MH, role="half", samples=250, relbias=0.15)
    told = report.size([own(), half], 2000)
    assert told.startswith("These are 500 of 2,000 images, and fewer flatter: an anchor comes back after 62 steps here")
    assert "after 250 there, so expect at least this bias there; from 250 to 500 images the bias of yours" in told
    assert told.endswith("went from 0.11 to 0.17.")
    assert report.size([own(), half], 500).startswith("From 250 to 500 images the bias of yours")
    assert report.size([own()], 500) == ""
    quiet = row(MH, role="half", samples=250, relbias=0.05)
    assert report.size([own(relbias=0.1), quiet], 500) == ""


def test_the_paragraph_is_of_both_ends_of_a_schedule_and_of_the_encoder():
    spec = small_spec("temperature_end=0.1")
    rows = [own(), batch(), own(temperature=0.1), batch(temperature=0.1)]
    told = report.words(certificate(*rows, spec=spec))
    assert "At temperature 0.2 (the start's), batches of 8: after 1,000 steps" in told
    assert "At temperature 0.1 (the end's), batches of 8" in told
    assert told.count("worth it") == 2
    assert "The encoder is untrained" in told
    one = report.words(certificate(own(), batch(), trained=186))
    assert "At temperature 0.2, batches of 8" in one
    assert "The encoder is that of step 186." in one


def test_the_table_has_a_line_for_each_row_and_closed_candidates_where_there_are_some():
    lines = report.table(certificate(own(), batch())).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["NEGATIVES", "your mh, reencode, K = 0", "in batch"]
    assert "CLOSED" not in lines[0]
    assert "0.592" in lines[2].split()
    assert "<0.112" in report.table(certificate(own(relbias=0.14), batch())).splitlines()[1].split()
    assert "TEMPERATURE" not in lines[0]
    closed = own()
    closed.report.facts["closed_ratio"] = 0.125
    heads, line = report.table(certificate(closed, own(temperature=0.1))).splitlines()[:2]
    assert "0.125" in line.split()
    assert {"CLOSED", "TEMPERATURE"} <= set(heads.split())
    assert "LOG Z" not in heads
    valued = own()
    valued.report.facts.update({"log_z_error": -0.514, "log_z_rms_error": 0.628})
    heads, line = report.table(certificate(valued)).splitlines()[:2]
    assert heads.split()[-5:] == ["LOG", "Z", "RMS", "AGAIN", "DISTANCE"]
    assert line.split()[-4:-2] == ["-0.51", "0.63"]


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_a_picture_of_each_kind_is_the_same_each_time(kind, start):
    found = certificate(own(), batch(), own(temperature=0.1), batch(temperature=0.1))
    content = report.picture(found, kind)
    assert content.startswith(start)
    assert report.picture(found, kind) == content
    if kind == "png":
        assert len(np.unique(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_a_picture_that_cannot_be_written_is_refused_before(tmp_path):
    with pytest.raises(SpecError, match=r"a.jpg: is no picture that can be written; call it \*.png"):
        report.picture_place(str(tmp_path / "a.jpg"))
    with pytest.raises(StorageError, match="there is no folder"):
        report.picture_place(str(tmp_path / "none" / "a.png"), S3())
    assert str(report.picture_place(str(tmp_path / "a.png"))) == str(tmp_path / "a.png")
