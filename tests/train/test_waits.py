"""How often a step has the thread that gives a GPU its work wait for it, counted on a pretended GPU.

It computes there what a CPU does.

And whether it has to wait for views that it could have asked for a step ahead.
"""

import pytest
import torch
from pretended_gpu import GPU, pretended_gpu
from train.harness import InThisThread, small_spec

from emc2dist.data import loader
from emc2dist.data.images import open_images
from emc2dist.towers import batched
from emc2dist.train.meter import Meter
from emc2dist.train.profile import alone
from emc2dist.train.step import Trainer

STEPS = 14  # of 6 an epoch: chains are recalled, and what they carry is encoded again
ISIR, MOVES = "negatives.kernel=isir", "negatives.cache_proposals=12"
KINDS = {
    # None: what the step before has found out is a thread's to wait for; which views are encoded again the host knows.
    "simclr": (0, ["objective=simclr", "negatives.draws=12"]),
    "sogclr": (0, ["objective=sogclr"]),
    "mh, cached": (0, ["negatives.carried=cached"]),
    "isir": (0, [ISIR]),
    "isir, in chunks": (0, [ISIR, "encode_chunk=5"]),
    "complete": (0, ["negatives.carried=complete"]),
    "ceiling": (0, ["negatives.ceiling=0.99"]),
    # One: for what the sweep, or delayed acceptance, has just decided.
    "mh": (1, []),
    "roulette": (1, [ISIR, "negatives.carried=roulette"]),
    "closed": (1, [ISIR, "negatives.close=[label]"]),
    "isir, moves": (1, [ISIR, MOVES, "optimiser.name=lars", "optimiser.clip_norm=1"]),
    "infonce, moves": (1, ["objective=infonce", "negatives.name=chain", ISIR, MOVES, "optimiser.name=adamw"]),
    # For both.
    "mh, moves": (2, [MOVES]),
}


def trained(spec, device, waits):
    """Waits of each step, losses, how many images were encoded again, and what is then in encoder and store."""
    counts, losses, encoded = [], [], []
    with alone(spec, open_images(spec.data, "train"), device) as trainer:
        meter = Meter(spec.batch_size, trainer.stopwatch)
        for step in range(STEPS):
            waits.clear()
            facts = trainer.step(step)
            meter.add(facts)
            counts.append(len(waits))
            losses.append(facts.values["loss"])
            encoded.append(facts.values.get("reencoded_images", torch.zeros(())))
        memory = trainer.memory
        memory.settle(STEPS - 1)
        rows = memory.store.snapshot(memory.generation, 0, STEPS - 1) if memory.schema else {}
        found = {name: value.cpu().clone() for name, value in trainer.model.state_dict().items()}
        numbers = torch.stack([*losses, *encoded]).cpu()
    columns = {f"{table}.{name}": torch.from_numpy(v) for table, named in rows.items() for name, v in named.items()}
    return counts, numbers, found | columns


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_for_nothing_but_what_it_decides_itself(kind):
    most, overrides = KINDS[kind]
    spec = small_spec("precision=float64", *overrides)
    with pretended_gpu() as waits:
        counts, numbers, found = trained(spec, GPU, waits)
    assert max(counts) == most
    assert bool(numbers[STEPS:].any()) == (kind not in ("simclr", "sogclr", "mh, cached"))
    _, expected_numbers, expected = trained(spec, torch.device("cpu"), [])
    torch.testing.assert_close(numbers, expected_numbers, rtol=0, atol=1e-9)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    ("kind", "ahead"),
    [
        ([ISIR], "all"),
        (["negatives.carried=complete"], "all"),
        (["negatives.ceiling=0.99"], "all"),
        ([ISIR, "negatives.close=[label]"], "more"),  # what turns out to be closed is not encoded
        ([ISIR, MOVES], "some"),  # what chains move to is not known a step ahead
        ([ISIR, "negatives.carried=roulette"], "none"),
        ([], "none"),
    ],
    ids=str,
)
def test_views_that_are_sure_to_be_encoded_again_are_asked_for_a_step_ahead(kind, ahead, monkeypatch):
    encode_again, found = Trainer._encode_again, []

    def watched(self, foreseen, side, ids):
        known = foreseen[side].ids.tolist() if side in foreseen else []
        found.append((set(ids.tolist()), set(known)))
        return encode_again(self, foreseen, side, ids)

    monkeypatch.setattr(Trainer, "_encode_again", watched)
    trained(small_spec(*kind), torch.device("cpu"), [])
    assert found
    match ahead:
        case "all":
            assert all(asked == known for asked, known in found)
        case "more":
            assert all(asked <= known for asked, known in found)
        case "some":
            assert sum(asked <= known for asked, known in found) > len(found) / 4
        case "none":
            assert not any(known for _, known in found)


@pytest.mark.parametrize("on_device", ["false", "true"])
def test_views_made_on_the_device_take_no_further_wait(on_device, monkeypatch):
    """Of the batch, of draws, and those that are encoded again; of pixels that are sent, or stay there."""
    monkeypatch.setattr(loader, "ThreadPoolExecutor", InThisThread)
    monkeypatch.setattr(batched, "_for_sending", lambda size, _: torch.empty(size, dtype=torch.uint8).pin_memory())
    keys = ["negatives.carried=complete", "negatives.draws=12", "precision=float64"]
    keys += ["views.flip=0.5", "views.jitter_probability=0.8", "views.rotate=20"]
    with pretended_gpu() as waits:
        counts, numbers, _ = trained(
            small_spec("views.made_on=device", f"data.on_device={on_device}", *keys), GPU, waits
        )
    assert max(counts[1:]) == 0
    assert numbers[STEPS:].any()
    _, expected, _ = trained(small_spec("views.made_on=cpu", *keys), torch.device("cpu"), [])
    torch.testing.assert_close(numbers, expected, rtol=0, atol=1e-9)
