"""A mixture of experts: the backbone itself before training, a model of each domain's own afterwards."""

from copy import deepcopy

import pytest
import torch
from pretended_gpu import GPU, pretended_gpu
from torch import nn

from emc2dist.towers.moe import Mixture, mlp_blocks
from emc2dist.towers.text import Mini, pretrained

DOMAINS = torch.tensor([2, 0, 0, 2, 2, 0])  # none of 1


def mini() -> Mini:
    torch.manual_seed(0)
    return Mini(50, width=16, layers=2, heads=4, length=24, pooling="mean")


def texts() -> torch.Tensor:
    tokens = torch.randint(1, 51, (6, 24), dtype=torch.int32, generator=torch.Generator().manual_seed(7))
    tokens[2, 9:] = 0
    return tokens


@pytest.fixture
def bert(tmp_path) -> nn.Module:
    from emc2dist.towers import _torchvision  # noqa: F401 (transformers imports torchvision)

    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    return pretrained(tmp_path, "mean", 24)


@pytest.fixture(params=["mini", "bert"])
def backbone(request) -> nn.Module:
    return mini() if request.param == "mini" else request.getfixturevalue("bert")


def moved(mixture: Mixture) -> Mixture:
    """With experts that differ."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixture


def only(mixture: Mixture, expert: int, backbone: nn.Module) -> nn.Module:
    """The backbone with the weights of one expert of each block."""
    mark = f".experts.{expert}."
    state = {
        name.removeprefix("backbone.").replace(mark, "."): value
        for name, value in mixture.state_dict().items()
        if mark in name or ".experts." not in name
    }
    backbone.load_state_dict(state)
    return backbone


def test_before_training_it_is_the_backbone(backbone):
    original = deepcopy(backbone)
    mixture = Mixture(backbone, 3)
    assert mixture.width == 16
    for domain in range(3):
        assert torch.equal(mixture(texts(), torch.full((6,), domain)), original(texts()))
    torch.testing.assert_close(mixture.double()(texts(), DOMAINS), original.double()(texts()), rtol=1e-12, atol=1e-14)


def test_a_text_gets_what_the_model_of_its_domain_gives(backbone):
    single = deepcopy(backbone).double()
    mixture = moved(Mixture(backbone, 3).double())
    made = mixture(texts(), DOMAINS)
    for row, domain in enumerate(DOMAINS.tolist()):
        torch.testing.assert_close(made[row], only(mixture, domain, single)(texts())[row], rtol=1e-12, atol=1e-14)
    assert (made - mixture(texts(), 2 - DOMAINS)).abs().max() > 0.01


def test_an_expert_learns_of_its_own_texts_alone_and_has_a_gradient_without_any(backbone):
    single = deepcopy(backbone).double()
    mixture = moved(Mixture(backbone, 3).double())
    pull = torch.randn(6, 16, generator=torch.Generator().manual_seed(1)).double()
    (mixture(texts(), DOMAINS) * pull).sum().backward()
    only(mixture, 2, single)
    own = DOMAINS == 2
    (single(texts()[own]) * pull[own]).sum().backward()
    expected = dict(single.named_parameters())
    assert all(parameter.grad is not None for parameter in mixture.parameters())
    experts = {name: p.grad for name, p in mixture.backbone.named_parameters() if ".experts." in name}
    assert experts
    for name, gradient in experts.items():
        if ".experts.1." in name:
            assert not gradient.any()
        elif ".experts.2." in name:
            torch.testing.assert_close(gradient, expected[name.replace(".experts.2.", ".")].grad, rtol=1e-9, atol=1e-12)


def test_mlp_blocks_are_found_by_the_names_that_models_give_them(bert):
    assert mlp_blocks(mini()) == ["blocks.0.mlp", "blocks.1.mlp"]
    layers = [f"model.encoder.layer.{number}" for number in (0, 1)]
    assert mlp_blocks(bert) == [f"{layer}.{name}" for layer in layers for name in ("intermediate", "output")]


def test_only_the_blocks_that_are_named_are_copied():
    mixture = Mixture(mini(), 3, ["blocks.1.mlp"])
    copied = {name.split(".experts.")[0] for name in mixture.state_dict() if ".experts." in name}
    assert copied == {"backbone.blocks.1.mlp"}
    added = sum(p.numel() for p in mixture.parameters()) - sum(p.numel() for p in mini().parameters())
    assert added == 2 * sum(p.numel() for p in mini().blocks[1].mlp.parameters())


def test_a_copy_of_a_mixture_is_routed_by_itself():
    mixture = moved(Mixture(mini(), 3))
    copy = deepcopy(mixture)
    expected = mixture(texts(), DOMAINS)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.zero_()
    assert torch.equal(copy(texts(), DOMAINS), expected)


def test_nothing_waits_for_a_gpu():
    mixture = moved(Mixture(mini(), 3))
    expected = mixture(texts(), DOMAINS)
    with pretended_gpu() as waits:
        mixture.to(GPU)
        tokens = texts().pin_memory().to(GPU, non_blocking=True)
        waits.clear()
        made = mixture(tokens, DOMAINS)
        assert waits == []
        torch.testing.assert_close(made.cpu(), expected, rtol=0, atol=1e-5)


def test_what_cannot_be_routed_is_refused():
    mixture = Mixture(mini(), 3)
    with pytest.raises(ValueError, match=r"domains of shape \[5\] for 6 views"):
        mixture(texts(), DOMAINS[:5])
    for wrong, message in ((DOMAINS + 1, "from 1 to 3"), (DOMAINS - 1, "from -1 to 1")):
        with pytest.raises(ValueError, match=f"domains {message}; there are 3 experts"):
            mixture(texts(), wrong)
    mixture(texts(), DOMAINS)
    with pytest.raises(RuntimeError, match="called without it"):
        mixture.backbone(texts())
    with pytest.raises(ValueError, match="Linear has no MLP blocks"):
        Mixture(nn.Linear(2, 2), 3)
