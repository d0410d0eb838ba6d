"""Imported models beside transformers' own: logits with and without padding, loss, gradients, training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from llmscale.checkpoint.model import load_model
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from llmscale.model import Transformer
from llmscale.model.positions import alibi_slopes
from tests.hugging_face.references import (
    BYTES,
    CONTEXT,
    NAMES,
    VARIANTS,
    VOCAB,
    config_of,
    pair,
    randomized,
    renamed,
    save,
    tokens,
)

DECODERS = [name for name in NAMES if not name.startswith(("bert", "modernbert", "roberta", "xlm", "t5", "mt5"))]
ENCODERS = [name for name in NAMES if name.startswith(("bert", "modernbert", "roberta", "xlm"))]
T5 = ["t5", "t5_v1_1", "mt5"]
LENGTHS = [CONTEXT, 13, 4]


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the size of the logits, in the columns of real tokens."""
    scale = max(1.0, theirs.abs().max().item() / 10)
    torch.testing.assert_close(ours[..., :VOCAB], theirs, rtol=1e-5, atol=1e-5 * scale)
    assert torch.all(ours[..., VOCAB:] == -torch.inf)


def real(left: bool = False) -> Tensor:
    """(3, CONTEXT) booleans: rows of `LENGTHS`, padded on one side."""
    places = torch.arange(CONTEXT)
    rows = [places >= CONTEXT - length if left else places < length for length in LENGTHS]
    return torch.stack(rows)


def types(name: str) -> Tensor | None:
    count = {"bert": 3, "bert_masked": 2, "roberta": 2, "xlm_roberta": 1}.get(name)
    return None if count is None else tokens(seed=2) % count


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_equal(name: str, tmp_path: Path) -> None:
    ours, theirs = pair(name, tmp_path)
    with torch.no_grad():
        close(*both_logits(name, ours, theirs, None))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("left", [False, True])
def test_logits_are_equal_with_padding(name: str, left: bool, tmp_path: Path) -> None:
    ours, theirs = pair(name, tmp_path)
    ours.eval(), theirs.eval()
    mask = real(left)
    with torch.no_grad():
        mine, reference = both_logits(name, ours, theirs, mask)
        unpadded, _ = both_logits(name, ours, theirs, None)
    if name in T5:
        close(mine, reference)
    else:
        close(mine[mask], reference[mask])
        # Padding must matter, or the test shows nothing: unpadded rows see the padding tokens here.
        last = -1 if left else LENGTHS[1] - 1
        if name in ENCODERS or left:
            assert not torch.allclose(mine[1, last], unpadded[1, last], atol=1e-3)


def both_logits(name: str, ours: Transformer, theirs: nn.Module, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    ids = tokens()
    if name in T5:
        decoder = tokens(length=9, seed=3)
        hidden = ours(decoder, encoder_inputs=ids, encoder_padding_mask=mask).hidden
        attention = None if mask is None else mask.long()
        return ours.head(hidden), theirs(input_ids=ids, attention_mask=attention, decoder_input_ids=decoder).logits
    if name in ENCODERS:
        # Absolute positions count from the first place, as transformers has it.
        hidden = ours(ids, token_types=types(name), padding_mask=mask).hidden
        extra = {} if types(name) is None else {"token_type_ids": types(name)}
        output = theirs(input_ids=ids, attention_mask=None if mask is None else mask.long(), **extra)
        return ours.head(hidden), output.logits if "logits" in output else output.prediction_logits
    if mask is None:
        return ours.head(ours(ids).hidden), theirs(input_ids=ids, use_cache=False).logits
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    hidden = ours(ids, positions, padding_mask=mask).hidden
    given = {"attention_mask": mask.long(), "position_ids": positions}
    return ours.head(hidden), theirs(input_ids=ids, use_cache=False, **given).logits


def test_the_next_sentence_head_is_equal(tmp_path: Path) -> None:
    ours, theirs = pair("bert", tmp_path)
    ids, mask = tokens(), real()
    with torch.no_grad():
        hidden = ours(ids, token_types=types("bert"), padding_mask=mask).hidden
        expected = theirs(input_ids=ids, attention_mask=mask.long(), token_type_ids=types("bert"))
        logits = ours.next_sentence(hidden[:, 0])
        torch.testing.assert_close(logits, expected.seq_relationship_logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pad", [1, 5])
def test_positions_behind_the_padding_token(pad: int, tmp_path: Path) -> None:
    """What transformers computes from the tokens themselves, which are padded on the right."""
    torch.manual_seed(5)
    config = config_of("roberta", pad_token_id=pad, max_position_embeddings=CONTEXT + pad + 1)
    theirs = randomized("roberta", transformers.RobertaForMaskedLM(config)).eval()
    import_directory(save(theirs, tmp_path / "hf"), tmp_path / "ours", tokenizer=BYTES)
    ours, mask = load_model(tmp_path / "ours").model.eval(), real()
    assert ours.config.max_positions == CONTEXT
    ids = torch.where(mask, tokens().clamp(min=pad + 1), pad)
    with torch.no_grad():
        mine = ours.head(ours(ids, padding_mask=mask).hidden)
        close(mine[mask], theirs(input_ids=ids, attention_mask=mask.long()).logits[mask])
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    _, info = transformers.RobertaForMaskedLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values())


@pytest.mark.parametrize("heads", [1, 2, 6, 12, 16, 71, 112, 128])
def test_alibi_has_the_same_slopes(heads: int) -> None:
    """But for what transformers' powers of a rounded base lose."""
    expected = transformers.models.bloom.modeling_bloom._get_alibi_slopes(heads, torch.device("cpu"))
    torch.testing.assert_close(alibi_slopes(heads), expected, rtol=1e-6, atol=0)


def both_losses(name: str, ours: Transformer, theirs: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
    """Mean loss of each on the same batch, over unequal weights where ours has them."""
    ids = tokens(seed=seed)
    weights = torch.ones(ids.shape)
    if name in T5:
        encoder, mask = tokens(seed=seed + 100), real()
        hidden = ours(ids[:, :-1], encoder_inputs=encoder, encoder_padding_mask=mask).hidden
        logits = theirs(input_ids=encoder, attention_mask=mask.long(), decoder_input_ids=ids[:, :-1]).logits
        targets = ids[:, 1:]
    elif name in ENCODERS:
        mask, targets = real(), tokens(seed=seed + 100)
        hidden = ours(ids, token_types=types(name), padding_mask=mask).hidden
        extra = {} if types(name) is None else {"token_type_ids": types(name)}
        output = theirs(input_ids=ids, attention_mask=mask.long(), **extra)
        logits, weights = output.logits if "logits" in output else output.prediction_logits, mask.float()
    else:
        hidden, targets = ours(ids[:, :-1]).hidden, ids[:, 1:]
        logits = theirs(input_ids=ids[:, :-1], use_cache=False).logits
    weights = weights[:, : targets.shape[1]]
    own = ours.head(hidden, targets, weights) / weights.sum()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    expected = (losses * weights.flatten()).sum() / weights.sum()
    if name == "bert":
        labels = torch.tensor([0, 1, 1])
        own = own + F.cross_entropy(ours.next_sentence(hidden[:, 0]), labels)
        expected = expected + F.cross_entropy(output.seq_relationship_logits, labels)
    return own, expected


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_all_gradients_are_equal(name: str, tmp_path: Path) -> None:
    ours, theirs = pair(name, tmp_path)
    loss, expected = both_losses(name, ours, theirs, seed=7)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    references = renamed(theirs, ours.config, lambda parameter: parameter.grad)
    # The gradient of a key bias is 0 but for the rounding of terms as large as other gradients are.
    rounding = 1e-6 * max(reference.abs().max().item() for reference in references.values())
    own = dict(ours.named_parameters())
    assert set(own) == set(references)
    for key, reference in references.items():
        gradient = own[key].grad
        rows = len(reference) if key in ("embedding.weight", "head.weight", "head.bias") else len(gradient)
        tolerance = 2e-5 * reference.abs().max().item() + rounding
        torch.testing.assert_close(
            gradient[:rows], reference, rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )
        assert torch.all(gradient[rows:] == 0), key


@pytest.mark.parametrize(
    "name",
    [name if number % 3 == 0 else pytest.param(name, marks=pytest.mark.slow) for number, name in enumerate(NAMES)],
)
def test_training_takes_the_same_course(name: str, tmp_path: Path) -> None:
    ours, theirs = pair(name, tmp_path)
    optimizers = [torch.optim.SGD(model.parameters(), lr=1.0 if name == "t5" else 0.02) for model in (ours, theirs)]
    losses: list[list[float]] = [[], []]
    for step in range(20):
        for index, loss in enumerate(both_losses(name, ours, theirs, seed=step % 4)):
            loss.backward()
            losses[index].append(loss.item())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][:5] == pytest.approx(losses[1][:5], rel=1e-5)
    assert losses[1][-1] < losses[1][0] - 0.1
