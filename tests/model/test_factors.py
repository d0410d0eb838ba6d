"""Which linear layers are meant by `finetune.lora.targets`."""

import pytest

from data_pipeline.base.errors import UserError
from llmscale.config import ModelConfig
from llmscale.model import skeleton
from llmscale.model.factors import targeted


@pytest.fixture(scope="module")
def layers() -> list[str]:
    """Weights of a T5's blocks, without those of norms."""
    config = ModelConfig(family="t5", layers=11, encoder_layers=2, hidden_size=16, heads=2, ffn_size=32)
    names = [name for name, value in skeleton(config, 32).named_parameters() if value.dim() == 2 and "blocks." in name]
    return sorted({name.removesuffix(".weight") for name in names if "relative_bias" not in name})


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("all", lambda name: True),
        ("query", lambda name: name.endswith(".query")),
        ("attention", lambda name: "attention" in name),
        ("cross_attention", lambda name: "cross_attention" in name),
        ("encoder", lambda name: name.startswith("encoder.")),
        ("encoder.blocks.1", lambda name: name.startswith("encoder.blocks.1.")),
        ("blocks", lambda name: name.startswith("blocks.")),
        ("blocks.1", lambda name: name.startswith("blocks.1.")),
        ("blocks.1?.feed_forward", lambda name: name.startswith("blocks.10.feed_forward.")),
        ("*.cross_attention.value", lambda name: name.endswith("cross_attention.value")),
    ],
)
def test_a_module_stands_for_all_of_its_layers(target, meant, layers):
    expected = {name for name in layers if meant(name)}
    assert expected
    assert targeted([target], layers) == expected
    assert targeted([target, "key"], layers) == expected | {name for name in layers if name.endswith(".key")}


@pytest.mark.parametrize("target", ["cros_attention", "block.1", "blocks.11", "norm", "attention.", "ery"])
def test_what_names_none_is_refused(target, layers):
    with pytest.raises(UserError, match=r"finetune\.lora\.targets has '.*', which matches no linear layer"):
        targeted([target], layers)
