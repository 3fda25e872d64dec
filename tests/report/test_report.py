"""The report of real runs: the numbers behind its pictures, what it says of what is missing, and how a browser sees it.

A run here is what `emc2dist train` leaves, made without Ray: the loop of tests/train/harness.py and the run folder.
"""

import base64
import io
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits
from train.harness import SMALL, Run, small_spec

from emc2dist.cli import main
from emc2dist.config import parse
from emc2dist.data.digits import DigitsImages
from emc2dist.errors import RunError, StorageError
from emc2dist.metrics import METRICS
from emc2dist.plotting import Picture, new_figure, render
from emc2dist.report import atlas, chains, curves
from emc2dist.report.page import report
from emc2dist.report.runs import ReportedRun
from emc2dist.run.folder import RunFolder
from emc2dist.towers.encoder import ImageEncoder
from emc2dist.towers.views import PlainView
from emc2dist.train import checkpoint, checksums


def train(spec, scratch):
    """Trains a run and returns its folder."""
    run, folder = Run(spec, scratch).go(), RunFolder.prepare(spec)
    folder.append(run.rows)
    for step, path in run.checkpoints.items():
        shutil.copytree(path, Path(spec.run_dir) / spec.name / f"checkpoint-{step:09d}")
    return Path(spec.run_dir) / spec.name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of runs by name; copy one before changing it."""
    root = tmp_path_factory.mktemp("report")
    overrides = {"emc2": ["shards=2"], "simclr": ["objective=simclr", "temperature=0.5"]}
    return {
        name: train(parse(SMALL, [f"run_dir={root}", f"name={name}", *given]), root / "scratch")
        for name, given in overrides.items()
    }


@pytest.fixture(scope="module")
def both(trained, tmp_path_factory):
    """The report of both runs, as the command gives it."""
    return report(list(trained.values()), out=tmp_path_factory.mktemp("both"))


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the emc2 run that a test may break."""
    return shutil.copytree(trained["emc2"], tmp_path / "copied")


class Page(HTMLParser):
    """What a page holds: attributes by tag, and the text; fails where tags do not close in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self._open = {}, "", []
        self.feed(Path(path).read_text())
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.setdefault(tag, []).append(dict(attrs))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += f" {' '.join(data.split())}"


def test_the_page_holds_everything_and_loads_nothing(both):
    page = Page(both["page"])
    sources = [image["src"] for image in page.tags["img"]]
    files = [base64.b64encode(Path(path).read_bytes()).decode() for path in both["pictures"]]
    assert sorted(sources) == sorted(f"data:image/png;base64,{file}" for file in files)
    for path in both["pictures"]:
        Image.open(path).verify()
    assert all(image["alt"] for image in page.tags["img"])
    assert not page.tags.keys() & {"script", "link", "iframe", "object", "base", "form"}
    assert all(link["href"].startswith("#") for link in page.tags["a"])
    assert "url(" not in Path(both["page"]).read_text()
    (policy,) = [meta["content"] for meta in page.tags["meta"] if "http-equiv" in meta]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f"loss: {METRICS['loss'].help}" in page.text


def test_several_runs_lie_side_by_side(both):
    page = Page(both["page"])
    assert "emc2, simclr" in page.text
    assert "Keys in which the runs differ:" in page.text
    assert page.text.count("temperature 0.2 0.5") == 2  # among the differences, and highlighted in the whole spec
    (loss,) = [image["alt"] for image in page.tags["img"] if image["alt"].startswith("Loss over epochs")]
    assert "emc2: loss from" in loss
    assert "simclr: loss from" in loss
    assert {"chains-1-1.png", "map-1-tsne.png", "map-2-pca.png"} <= {Path(path).name for path in both["pictures"]}
    assert "No negatives to show: simclr keeps no chains" in page.text


def test_the_same_runs_give_the_same_files(trained, both, tmp_path):
    again = report(list(trained.values()), out=tmp_path)
    assert len(both["pictures"]) > 10
    for one, other in zip([both["page"], *both["pictures"]], [again["page"], *again["pictures"]], strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()


def test_curves_are_the_rows_of_metrics(trained):
    lines = (trained["emc2"] / "metrics.jsonl").read_text().splitlines()
    (reported,) = ReportedRun.open_all([trained["emc2"]], None)
    for metric in ("loss", "knn_accuracy", "carried_age_steps"):
        expected = [(row["epoch"], row[metric]) for row in map(json.loads, lines) if metric in row]
        assert len(expected) >= 3
        found = curves.series(reported.rows, metric)
        assert list(zip(found.epochs, found.values, strict=True)) == expected
    assert len(curves.series(reported.rows, "nothing of the kind").values) == 0


def test_a_row_that_is_being_written_waits_for_the_next_report(copied):
    rows = RunFolder.open(copied).rows()
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    assert RunFolder.open(copied).rows() == rows


def test_a_checkpoint_that_is_passed_over_stands_on_the_page(copied, capsys):
    newest = RunFolder.open(copied).checkpoints()[0]
    (newest / "trainer.safetensors").remove()
    result = report([copied], out=copied / "report")
    remark = f"passed over, as not whole: {newest}: trainer.safetensors is missing"
    assert result["remarks"] == [remark]
    assert remark in capsys.readouterr().err.splitlines()
    assert remark in Page(result["page"]).text


def test_a_report_that_finds_no_room_leaves_nothing_new(copied, small_disk):
    (small_disk / "filler").write_bytes(bytes(2**20 - 200 * 2**10))
    (small_disk / "loss.png").write_bytes(b"of mine")
    with pytest.raises(StorageError, match="No space left"):
        report([copied], out=small_disk)
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "loss.png"]


def test_a_long_curve_becomes_means_of_equal_parts():
    values = np.random.default_rng(0).normal(size=1000)
    values[[3, 700]] = np.nan, np.inf
    smooth = curves.smoothed(curves.Series(np.arange(1000.0), values))
    assert len(smooth.values) == 200
    assert smooth.values[-1] == pytest.approx(values[-4:].mean())  # 998 finite values: the last parts hold 4
    assert smooth.epochs[-1] == pytest.approx(np.arange(996, 1000).mean())
    short = curves.smoothed(curves.Series(np.arange(9.0), values[10:19]))
    assert short.values.tolist() == values[10:19].tolist()


def test_the_time_of_a_step_is_shared_out_among_whatever_parts_there_are():
    rows = [
        {"step_seconds": 2.0, "data_wait_seconds": 0.5, "forward_seconds": 1.0},
        {"step_seconds": 6.0, "data_wait_seconds": 0.5, "forward_seconds": 1.0},
        {"knn_accuracy": 0.5},
    ]
    expected = {"data wait": 1 / 8, "forward": 2 / 8, "rest of the step": 5 / 8}
    assert curves.shares(rows) == pytest.approx(expected)
    overlapping = [{"step_seconds": 2.0, "backward_seconds": 2.0, "communication_seconds": 2.0}]
    expected = {"backward": 0.5, "communication": 0.5, "rest of the step": 0}
    assert curves.shares(overlapping) == pytest.approx(expected)
    assert curves.shares([{"knn_accuracy": 0.5}]) == {}


def chain_of(folder, sample):
    """(state, visited) of a sample's chains, [V] each, straight from the newest checkpoint's two shards."""
    shard = load_file(folder / "checkpoint-000000012" / f"shard-{sample % 2:05d}-of-00002.safetensors")
    return shard["negatives/state"][sample // 2], shard["negatives/visited"][sample // 2]


def test_false_negatives_are_counted_over_all_visited_chains(trained):
    found = chains.Chains.of(*ReportedRun.open_all([trained["emc2"]], None))
    labels = DigitsImages("train", limit=48).labels(np.arange(48))
    hits, chance = [], []
    for sample in range(48):
        for state, visited in zip(*chain_of(trained["emc2"], sample), strict=True):
            if visited:
                hits.append(labels[sample] == labels[state])
                chance.append(np.mean([labels[sample] == labels[j] for j in range(48) if j != sample]))
    assert len(hits) > 48
    assert 0 < np.mean(hits) < 1
    assert found.false_negatives == pytest.approx(np.mean(hits))
    assert found.false_negatives_of_chance == pytest.approx(np.mean(chance))


def test_only_visited_chains_count():
    state, visited = np.array([[1], [0], [0]]), np.array([[True], [False], [True]])
    images = DigitsImages("train", limit=3)
    labels, nothing = np.array([4, 4, 7]), np.zeros((0, 1))
    found = chains.Chains(images, labels, state, visited, np.array([0, 2]), nothing, nothing)
    assert found.false_negatives == 1 / 2
    assert found.false_negatives_of_chance == (1 / 2 + 0) / 2
    assert sorted(chains.sample(visited)) == [0, 2]
    with pytest.raises(RunError, match="no chain has been visited yet"):
        chains.sample(np.zeros((3, 1), bool))


def test_similarities_are_cosines_of_the_newest_encoders_features(trained):
    found = chains.Chains.of(*ReportedRun.open_all([trained["emc2"]], None))
    encoder = ImageEncoder(small_spec().encoder).eval()
    state = checkpoint.load_trainer(trained["emc2"] / "checkpoint-000000012")
    encoder.load_state_dict(state["encoder"])
    images, view = DigitsImages("train", limit=48), PlainView(8)
    with torch.no_grad():
        feature = encoder(torch.stack([view(image) for image in images.get(np.arange(48))])).numpy()
    assert sorted(found.anchors) == list(range(48))
    for anchor, cosines in zip(found.anchors, found.cosines, strict=True):
        states, visited = chain_of(trained["emc2"], anchor)
        for view_number in range(2):
            if visited[view_number]:
                cosine = feature[anchor] @ feature[states[view_number]]
                assert cosines[view_number] == pytest.approx(cosine, abs=1e-5)
            else:
                assert np.isnan(cosines[view_number])
    pairs = [feature[i] @ feature[j] for i in range(48) for j in range(i)]
    assert len(found.between) == len(pairs)
    assert found.hardness_of_chance == pytest.approx(np.mean(pairs), abs=1e-5)


def test_a_map_keeps_neighbours_together():
    rng = np.random.default_rng(0)
    centres = np.eye(3, 16, dtype=np.float32)
    features = np.repeat(centres, 40, 0) + 0.05 * rng.normal(size=(120, 16)).astype(np.float32)
    maps = atlas.project(features)
    assert [name.split(",")[0] for name in maps][:2] == ["PCA", "t-SNE"]
    for points in maps.values():
        middles = points.reshape(3, 40, 2).mean(1)
        nearest = np.linalg.norm(points[:, None] - middles, axis=2).argmin(1)
        assert (nearest == np.repeat(np.arange(3), 40)).mean() > 0.95
    with pytest.raises(RunError, match="collapsed"):
        atlas.project(np.ones((20, 16), np.float32))


def test_a_map_is_the_same_on_any_number_of_cores():
    features = np.random.default_rng(0).normal(size=(200, 128)).astype(np.float32)
    with threadpool_limits(2):
        maps = atlas.project(features)
    with threadpool_limits(1):
        again = atlas.project(features)
    assert all(np.array_equal(points, again[name]) for name, points in maps.items())


@pytest.mark.parametrize("count", [3, 14])
def test_classes_beyond_ten_share_one_colour(count):
    names = [f"${kind}_" for kind in range(count) for _ in range(3 + (kind < 10))]  # no formula, though it has a $
    points = np.random.default_rng(0).normal(size=(len(names), 2))
    (picture,) = atlas.draw(atlas.Atlas({"PCA": points}, names, "held-out"), "map")
    shown = [name for name in sorted(set(names)) if name in picture.alt]
    assert len(shown) == min(count, 10)
    assert isinstance(picture, Picture)


def words_of(folder, tmp_path):
    """The text of the report of one run, and the names of its pictures."""
    result = report([folder], out=tmp_path / "out")
    return Page(result["page"]).text, {Path(path).stem for path in result["pictures"]}


def test_a_run_without_a_checkpoint_gets_its_curves(copied, tmp_path):
    for folder in copied.glob("checkpoint-*"):
        shutil.rmtree(folder)
    text, pictures = words_of(copied, tmp_path)
    assert text.count("holds no checkpoint yet; train for at least one epoch.") == 2  # negatives, map
    assert "finished no, of 2 epochs" in text
    assert {"loss", "knn", "ages", "time"} <= pictures
    assert not any(name.startswith(("chains", "map")) for name in pictures)


def test_what_comes_from_a_run_is_escaped(copied, tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    spec = (copied / "spec.yaml").read_text()
    for path in copied.glob("checkpoint-*/manifest.json"):
        path.write_text(path.read_text().replace("path: digits", f"path: '{evil}'"))
        (path.parent / checksums.list_name(0, 1)).unlink()
        checksums.write(path.parent, json.loads(path.read_text())["generation"])
    (copied / "spec.yaml").write_text(spec.replace("path: digits", f"path: '{evil}'"))
    folder = copied.rename(tmp_path / "<b onclick=alert(3)>")
    other = shutil.copytree(folder, tmp_path / "other")  # of the same name, so both go by their folders
    result = report([folder, other], out=tmp_path / "out")
    page = Page(result["page"])
    assert not page.tags.keys() & {"script", "b"}
    assert not any(name.startswith("on") for found in page.tags.values() for attrs in found for name in attrs)
    assert f"No map to show: {evil}: no such file or folder" in page.text
    assert f"Negatives of {folder}" in page.text


def unlabelled(path):
    """A Parquet file of 24 images without labels."""
    rows = []
    for pixels in np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8):
        image = io.BytesIO()
        Image.fromarray(pixels).save(image, "PNG")
        rows.append({"bytes": image.getvalue(), "path": ""})
    pq.write_table(pa.table({"image": rows}), path)


def test_images_without_labels_are_shown_without_marks_and_gone_ones_are_said_to_be(tmp_path):
    unlabelled(tmp_path / "train.parquet")
    data = [f"data.path={tmp_path / 'train.parquet'}", f"data.cache_dir={tmp_path / 'cache'}", "data.limit=null"]
    folder = train(parse(SMALL, [f"run_dir={tmp_path}", "epochs=1", *data]), tmp_path / "scratch")
    text, pictures = words_of(folder, tmp_path)
    assert "The training images have no labels, so false negatives cannot be told." in text
    assert "24 training images; the axes have no unit; the set has no labels to colour them by" in text
    assert "Not recorded, so not drawn: knn_accuracy, carried_age_steps, feature_age_steps." in text
    assert {"chains-1", "chains-2", "map-pca"} <= pictures

    table = pq.read_table(tmp_path / "train.parquet")
    pq.write_table(table.slice(0, 20), tmp_path / "train.parquet")
    text, _ = words_of(folder, tmp_path)
    assert "now holds 20 training images, not the 24 that the run was trained on" in text

    (tmp_path / "train.parquet").unlink()
    text, _ = words_of(folder, tmp_path)
    assert text.count("train.parquet: no such file or folder") == 2


def test_a_run_on_s3_gets_its_report_there(s3, trained, capsys):
    from emc2dist import files

    place = files.at(f"{s3.uri}/runs/emc2")
    for path in trained["emc2"].rglob("*"):
        if path.is_file() and "report" not in path.parts:
            (place / path.relative_to(trained["emc2"]).as_posix()).write(path.read_bytes())
    assert main(["report", str(place), "s3.attempts=2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["page"] == f"{place}/report/report.html"
    names = {entry.name for entry in (place / "report").entries()}
    assert names == {path.rsplit("/", 1)[1] for path in [result["page"], *result["pictures"]]}
    assert "chains-1.png" in names


def test_the_command_writes_into_the_runs_own_folder(copied, capsys):
    assert main(["report", str(copied)]) == 0
    said = capsys.readouterr()
    assert f"{copied / 'report' / 'report.html'}" in said.out
    assert "report: chains of emc2" in said.err


def test_the_command_refuses_what_is_no_run(trained, tmp_path, capsys):
    assert main(["report", str(trained["emc2"]), str(tmp_path), "--json"]) == 1
    assert capsys.readouterr().err == (
        f"emc2dist: {tmp_path}: not a run folder (it has no spec.yaml); give the one that `emc2dist train` named\n"
    )
    assert main(["report", "s3.endpoint=http://127.0.0.1:1"]) == 1
    assert "a report takes 1 to 10 run folders, got 0" in capsys.readouterr().err


CHROMIUM = shutil.which("chromium")
FRAME = """<!DOCTYPE html><iframe id=frame src="{page}" width={width} height=800></iframe><script>
onload = () => {{
  const page = document.getElementById("frame").contentDocument, root = page.documentElement
  const broken = [...page.images].filter(image => !image.complete || !image.naturalWidth).length
  document.body.textContent = JSON.stringify({{
    images: page.images.length, broken, overflow: root.scrollWidth - root.clientWidth, title: page.title}})
}}</script>"""


def browse(url, profile, *options):
    """Open a page in a browser of its own; what it wrote to stdout and to its console."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", "--enable-logging=stderr", *options, url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the page with")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_every_picture_and_no_error(both, width, tmp_path):
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=Path(both["page"]).as_uri(), width=width))
    dom, console = browse(frame.as_uri(), tmp_path / "framed", "--allow-file-access-from-files", "--dump-dom")
    seen = json.loads(dom[dom.index("{") : dom.rindex("}") + 1])
    assert seen == {
        "images": len(both["pictures"]), "broken": 0, "overflow": 0, "title": "emc2, simclr · emc2dist report"
    }  # fmt: skip
    assert console == []

    shot = tmp_path / "shot.png"
    _, console = browse(Path(both["page"]).as_uri(), tmp_path / "shown", f"--screenshot={shot}")
    assert console == []
    assert len(np.unique(np.asarray(Image.open(shot).convert("L")))) > 50


@pytest.mark.filterwarnings("error")
def test_a_name_that_the_font_cannot_show_is_told_once(capsys, monkeypatch):
    monkeypatch.setattr("emc2dist.terminal._said", set())
    for _ in range(2):
        figure = new_figure(2, 1)
        figure.suptitle("\u732b, \u72ac")
        render(figure)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("pictures: the font has no sign for '\u732b' and others")
