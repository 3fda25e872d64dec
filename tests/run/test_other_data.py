"""A run whose training images have become others: refused before anything starts, and said in its report."""

from types import SimpleNamespace

import pytest
from train.harness import leave_manifest

from emc2dist.config import dump, parse, paths
from emc2dist.data.images import open_images
from emc2dist.errors import DataError, RunError
from emc2dist.report.runs import ReportedRun
from emc2dist.run.driver import resolved, train
from emc2dist.run.folder import RunFolder

RUN = "name: a\nepochs: 3\nbatch_size: 16\nlr: 1e-4\ndata: {limit: 48}\n"


@pytest.fixture
def run(tmp_path):
    """A run of 48 images, none of which is a digit."""
    spec = resolved(parse(RUN, [f"run_dir={tmp_path}"]))
    folder = RunFolder.prepare(spec)
    manifest = leave_manifest(folder, spec, 6)
    return spec, folder, manifest


def test_a_run_does_not_go_on_with_other_images(run):
    spec, folder, _ = run
    with pytest.raises(RunError, match=r"a: the data now hold other training images than the 48 .* a new name"):
        train(spec)
    assert folder.rows() == []


def test_a_report_takes_no_other_images_for_those_of_the_run(run):
    spec, folder, manifest = run
    reported = ReportedRun("a", folder, spec, [])
    vars(reported)["newest"] = SimpleNamespace(manifest=manifest)
    with pytest.raises(DataError, match="digits: now holds other training images than the 48 that the run was trained"):
        reported.trained_on()
    own = manifest.model_copy(update={"fingerprint": open_images(spec.data, "train").fingerprint})
    vars(reported)["newest"] = SimpleNamespace(manifest=own)
    assert len(reported.trained_on()) == 48


def test_a_path_that_is_meant_as_it_stands_reaches_the_workers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = resolved(parse(RUN, ["data.path=./$HOME/set"]))
    assert paths.on_disk(parse(dump(spec)).data.path) == tmp_path / "$HOME" / "set"
