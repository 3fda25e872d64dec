"""What an objective learns beside the encoder: trained with it, kept in its checkpoints, and taken up again."""

import pytest
import torch
from train.harness import Run, small_spec

from emc2dist.core.certify import FrozenRun
from emc2dist.core.contrast import contrast_for
from emc2dist.data.images import open_images
from emc2dist.errors import SpecError
from emc2dist.train import checkpoint
from emc2dist.train.certificate import ways
from emc2dist.train.loop import initial_encoder
from emc2dist.train.sets import columns_of

HYDRA = ["objective.name=hydra", "objective.classes=10", "objective.embedding=8", "negatives.name=gumbel"]


def learnt(run, step):
    state = checkpoint.load_trainer(run.checkpoints[step])["encoder"]
    return {name: value for name, value in state.items() if name.startswith("learnt.")}


def test_it_moves_and_a_run_that_goes_on_ends_as_an_unbroken_one(tmp_path):
    spec = small_spec(*HYDRA)
    whole, broken = Run(spec, tmp_path / "whole"), Run(spec, tmp_path / "broken")
    for run in (whole, broken):
        run.folder.mkdir()
    whole.go()
    broken.go(whole.checkpoints[6])
    first, after, end = initial_encoder(spec, torch.device("cpu")).state_dict(), learnt(whole, 6), learnt(whole, 12)
    assert len(end) == 5
    for name, value in end.items():
        assert not after[name].equal(first[name]), name
        assert not value.equal(after[name]), name
        assert learnt(broken, 12)[name].equal(value), name


def test_an_encoder_begins_as_it_would_without():
    plain = initial_encoder(small_spec(), torch.device("cpu")).state_dict()
    other = initial_encoder(small_spec(*HYDRA), torch.device("cpu")).state_dict()
    assert all(other[name].equal(value) for name, value in plain.items())


def test_a_certificate_takes_it_as_it_stands():
    spec = small_spec(*HYDRA)
    module = contrast_for(spec).objective.learns(16)
    run = FrozenRun(contrast_for(spec), torch.nn.functional.normalize(torch.ones(1, 20, 16), dim=-1), 4, 0.2)
    assert type(run.learnt) is type(module)
    assert run.learnt is not module
    features = torch.nn.functional.normalize(torch.ones(1, 20, 16), dim=-1)
    assert FrozenRun(contrast_for(spec), features, 4, 0.2, learnt=module).batch(torch.arange(4), 0).learnt is module


def test_it_is_certified_with_chains_that_begin_anew_and_no_others():
    spec = small_spec(*HYDRA, "negatives.rows=13")
    chains = [negatives for _, negatives in ways(spec, 500) if negatives.name == "chain"]
    assert len(chains) > 3
    assert all(chain.restart and chain.cache_proposals for chain in chains)
    plain = small_spec("objective=dcl", "negatives.name=chain")
    assert not any(getattr(negatives, "restart", False) for _, negatives in ways(plain, 500))


def test_more_classes_than_rows_are_refused_before_the_run():
    spec = small_spec(*HYDRA, "objective.classes=9")
    with pytest.raises(SpecError, match=r"objective.classes: 9 rows, but there are 10 classes"):
        columns_of(spec, open_images(spec.data, "train"))
