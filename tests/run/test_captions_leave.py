"""What people take away from a run over images with captions: how good it is, its model, its features, its report."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import told
from safetensors import safe_open
from safetensors.torch import load_file
from train.harness import CAPTIONS, trained_folder, write_captions

from emc2dist.cli import main
from emc2dist.config import parse
from emc2dist.data.captions import open_captions
from emc2dist.data.images import open_images
from emc2dist.data.ingest.pixels import png
from emc2dist.report.page import report
from emc2dist.report.runs import ReportedRun
from emc2dist.report.texts import TextChains
from emc2dist.run.driver import resolved, train
from emc2dist.run.folder import RunFolder
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.towers.encoder import TwoTowers
from emc2dist.train.model_files import ModelFiles
from emc2dist.train.sets import plain_views, settled

MORE = ["data.kind=captions", "epochs=1", "eval.every=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_captions(tmp_path_factory.mktemp("sets") / "set", shared=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """The folder of a run, trained in this process."""
    place = [f"run_dir={tmp_path_factory.mktemp('runs')}", f"data.path={data}"]
    spec = settled(resolved(parse(CAPTIONS, [*MORE, *place])))
    return trained_folder(spec, ModelFiles.of(spec)).place.path


def features_of(run):
    """Features of the test split's images and captions, and of names of classes, by the run's encoder alone."""
    newest = LoadedCheckpoint.newest(RunFolder.open(run))
    pairs, views = open_captions(newest.spec.data, "test"), plain_views(newest.spec, newest.model)
    with torch.no_grad():
        images = newest.encoder(views["query"](pairs.queries.get(np.arange(len(pairs.queries)))))
        captions = newest.encoder(views["document"](pairs.documents.get(np.arange(len(pairs.documents)))))
    return newest, pairs, views, images, captions


def test_it_is_measured_both_ways_beside_an_untrained_encoder(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["feature", "untrained"] in lines
    assert "to_images_mrr_at_10" in {line[0] for line in lines if line}
    found = told(capsys, "evaluate", run)
    _, pairs, _, images, captions = features_of(run)
    scores = images @ captions.T
    best = scores.argmax(1).numpy()
    right = {(int(image), int(caption)) for image, caption in pairs.relevance}
    first = np.mean([(image, caption) in right for image, caption in enumerate(best)])
    several = np.bincount(pairs.relevance[:, 0])
    hits = [((image, caption) in right) / several[image] for image, caption in enumerate(best)]
    assert found["feature"]["recall_at_1"] == pytest.approx(np.mean(hits))
    back = [(int(image), caption) in right for caption, image in enumerate(scores.argmax(0))]
    of_caption = np.bincount(pairs.relevance[:, 1])
    assert found["feature"]["to_images_recall_at_1"] == pytest.approx(np.mean(np.array(back) / of_caption))
    assert first >= found["feature"]["recall_at_1"]
    assert (found["images"], found["captions"]) == (len(images), len(captions))
    assert found["untrained"].keys() == found["feature"].keys()
    assert found["untrained"] != found["feature"]
    assert "zero_shot" not in found["feature"]  # classes are numbers
    assert "bm25" not in found


def test_classes_are_told_by_words_alone(run, tmp_path, capsys):
    named = tmp_path / "named"
    source = tmp_path / "source"
    source.mkdir()
    newest, _, views, _, _ = features_of(run)
    names = ["ba be", "di do", "fu fa"]
    images = [{"bytes": png(np.full((8, 8, 3), 23 * n, np.uint8))} for n in range(10)]
    rows = [{"image": one, "caption": f"{names[n % 3]} {n}", "label": names[n % 3]} for n, one in enumerate(images)]
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(rows), source / f"{split}.parquet")
    told(capsys, "ingest", source, named, "--captions", "caption", "--vocabulary", "512")
    prompts = "eval.prompts=['{}', 'a {}']"
    found = told(capsys, "evaluate", run, f"data.path={named}", prompts)
    pairs = open_captions(newest.spec.data.model_copy(update={"path": str(named)}), "test")
    with torch.no_grad():
        images = newest.encoder(views["query"](pairs.queries.get(np.arange(len(pairs.queries)))))
        classes = pairs.queries.classes
        vectors = [newest.encoder(views["document"]([name, f"a {name}"])).mean(0) for name in classes]
    nearest = (images @ torch.nn.functional.normalize(torch.stack(vectors), dim=1).T).argmax(1)
    labels = torch.from_numpy(pairs.queries.labels(np.arange(len(pairs.queries))))
    assert found["feature"]["zero_shot"] == pytest.approx((nearest == labels).double().mean().item())
    assert found["classes"] == 3
    assert found["largest_class"] == pytest.approx(4 / 10)
    assert "zero_shot" in found["untrained"]
    assert any("read by its tokenizer" in remark for remark in found["remarks"])


def test_its_file_holds_both_towers_and_gives_the_same_features(run, tmp_path, capsys):
    found = told(capsys, "export", run, tmp_path / "towers.safetensors")
    newest, pairs, views, images, captions = features_of(run)
    assert (tmp_path / "tokenizer.json").read_bytes() == newest.model.content["tokenizer.json"]
    with safe_open(tmp_path / "towers.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["image"])["backbone"] == found["image"]["backbone"] == "conv4"
    assert json.loads(metadata["text"])["vocabulary"] == newest.spec.text.vocabulary
    towers = TwoTowers(newest.spec.encoder, newest.spec.text, newest.spec.views.size)
    towers.load_state_dict(load_file(tmp_path / "towers.safetensors"))
    with torch.no_grad():
        again = towers.eval()(views["query"](pairs.queries.get(np.arange(len(pairs.queries)))))
        texts = towers(views["document"](pairs.documents.get(np.arange(len(pairs.documents)))))
    torch.testing.assert_close(again, images)
    torch.testing.assert_close(texts, captions)


def test_captions_are_embedded_as_documents_and_images_without_a_word(run, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("ba be\nzu za\n")
    told(capsys, "embed", run, tmp_path / "texts.txt", tmp_path / "out.parquet", "--side", "document")
    newest, _, views, _, _ = features_of(run)
    with torch.no_grad():
        wanted = newest.encoder(views["document"](["ba be", "zu za"]))
    found = np.stack(pq.read_table(tmp_path / "out.parquet")["feature"].to_pylist())
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)
    assert main(["embed", str(run), str(tmp_path / "texts.txt"), str(tmp_path / "out.parquet")])
    assert "its queries are images, and captions are documents; give --side document" in capsys.readouterr().err
    told(capsys, "embed", run, newest.spec.data.path, tmp_path / "images.parquet", "--split", "test")
    images = pq.read_table(tmp_path / "images.parquet")
    with torch.no_grad():
        wanted = newest.encoder(views["query"](open_images(newest.spec.data, "test").get(np.arange(len(images)))))
    np.testing.assert_allclose(np.stack(images["feature"].to_pylist()), wanted.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["negatives", "RUN", "OUT"], "is over captions, and these are negatives of queries"),
        (["export", "RUN", "OUT", "--format", "sentence-transformers"], "is over images; --format"),
        (["evaluate", "RUN", "eval.bank=5"], "all images and captions of a split are asked for each other"),
        (["certify", "RUN"], "`certify` is of images so far"),
    ],
)
def test_what_makes_no_sense_of_captions_is_refused(words, message, run, tmp_path, capsys):
    assert main([{"RUN": str(run), "OUT": str(tmp_path / "out")}.get(word, word) for word in words])
    assert message in capsys.readouterr().err


def test_its_report_shows_images_with_their_captions_and_what_chains_hold(run, tmp_path):
    (opened,) = ReportedRun.open_all([run], None)
    chains = TextChains.of(opened)
    newest = LoadedCheckpoint.newest(RunFolder.open(run))
    pairs = open_captions(newest.spec.data, "train")
    held = newest.table("negatives")["state"][: len(pairs.queries), 0] - len(pairs.queries)
    captions = pairs.documents.get(np.arange(len(pairs.documents)))
    for image, one in zip(chains.images, chains.mined, strict=False):
        row = int(one.id.removeprefix("image "))
        assert torch.equal(pairs.queries.get(np.array([row]))[0], image)
        assert one.negatives[0].text == captions[held[row]]
        assert {answer.text for answer in one.positives} == {captions[c] for i, c in pairs.relevance if i == row}
    made = report([run], out=tmp_path / "report")
    names = [name.rpartition("/")[2] for name in made["pictures"]]
    assert "chains-images.png" in names
    assert "Images and captions" in Path(made["page"]).read_text()
    opened.remark_on_change()
    assert not opened.remarks


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_under_ray_ends_with_both_measures(data, tmp_path):
    spec = parse(CAPTIONS, [*MORE, f"run_dir={tmp_path}", f"data.path={data}", "workers=2", "shards=2"])
    summary = train(spec)
    assert summary["ndcg_at_10"] is not None
    rows = RunFolder.open(tmp_path / "captions").rows()
    assert sum("to_images_ndcg_at_10" in row for row in rows) == 2
