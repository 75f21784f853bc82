"""Decoders of DETR's family against their authors' arithmetic, layer by layer, and the spots of SMCA."""

import math

import pytest
import torch
from small_detectors import batch, small_detector
from torch.nn import functional

pytest.importorskip("transformers", reason="needs the extra: pip install -e '.[detection]'")
pytest.importorskip("scipy", reason="needs the extra: pip install -e '.[detection]'")

from tasks.detection.detectors.queries import pad
from tasks.detection.detectors.smca import Spots, spot_attention, spot_mask, with_spot_channels


def attention(module, query, key, value, padded, extra=None):
    """torch's own multi-head attention, with the weights of one of transformers'."""
    width, heads = query.shape[-1], query.shape[-1] // module.head_dim
    weights = torch.cat([module.q_proj.weight, module.k_proj.weight, module.v_proj.weight])
    biases = torch.cat([module.q_proj.bias, module.k_proj.bias, module.v_proj.bias])
    mask = None
    if padded is not None:
        mask = torch.zeros(len(query), heads, query.shape[1], key.shape[1], dtype=query.dtype)
        mask = mask.masked_fill(padded[:, None, None], -math.inf)
        mask = (mask if extra is None else mask + extra).flatten(0, 1)
    out, _ = functional.multi_head_attention_forward(
        query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), width, heads, weights, biases, None, None,
        False, 0.0, module.o_proj.weight, module.o_proj.bias, training=False, need_weights=False, attn_mask=mask,
    )  # fmt: skip
    return out.transpose(0, 1)


def official_decoder(model, memory, position, padded, spots=None):
    """DETR's decoder as its authors wrote it: the state goes on as it is, its norm is what the heads see.

    spots: a function of layer and state, whose result is added to the logits of cross attention (B, M, Q, H·W).
    """
    where = model.query_position_embeddings.weight[None].expand(len(memory), -1, -1)
    state, states = torch.zeros_like(where), []
    for index, layer in enumerate(model.decoder.layers):
        extra = spots(index, state, where) if spots else None
        query = state + where
        state = layer.self_attn_layer_norm(state + attention(layer.self_attn, query, query, state, None))
        looked = attention(layer.encoder_attn, state + where, memory + position, memory, padded, extra)
        state = layer.encoder_attn_layer_norm(state + looked)
        state = layer.final_layer_norm(state + layer.mlp.fc2(layer.mlp.fc1(state).relu()))
        states.append(model.decoder.layernorm(state))
    return torch.stack(states)


def memory_of(detector, columns=6, rows=4):
    """What a decoder looks at: two images, of which the second fills a part of the map."""
    width = detector.network.config.d_model
    memory, position = torch.randn(2, rows * columns, width), torch.randn(2, rows * columns, width)
    seen = torch.ones(2, rows, columns, dtype=torch.bool)
    seen[1, 3:], seen[1, :, 4:] = False, False
    return memory, position, seen


def shake(module):
    """Other weights than those of the beginning, among which are many zeros."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def layers_of(name, official):
    """States of all layers as the detector has them and as `official` makes them, of two images of unlike sizes."""
    detector = small_detector(name, decoder_layers=3)
    model = detector.network.model
    shake(model)
    seen = {}
    model.decoder.register_forward_pre_hook(lambda m, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        states, _ = detector._decode(*pad(batch()[0]))
        padded = ~seen["encoder_attention_mask"]
        expected = official(model, seen["encoder_hidden_states"], seen["spatial_position_embeddings"], padded)
    assert padded.any() and len(states) == 3
    return states, expected


def test_layers_of_detr_are_the_official_ones():
    """transformers' own auxiliary losses see other states: its decoder goes on with the normalized ones."""
    states, expected = layers_of("detr", official_decoder)
    torch.testing.assert_close(states, expected, rtol=2e-6, atol=5e-6)


def by_heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def conditional_attention(query, key, value, heads, padded=None):
    """Queries and keys (B, N, heads, …), values (B, N, heads · d)."""
    logits = query.transpose(1, 2) @ key.transpose(1, 2).mT / math.sqrt(query.shape[-1])
    if padded is not None:
        logits = logits.masked_fill(padded[:, None, None], -math.inf)
    return (logits.softmax(-1) @ by_heads(value, heads)).transpose(1, 2).flatten(2)


def official_conditional_decoder(model, memory, position, padded):
    """Conditional DETR's: where a query looks is a sine code of its point, scaled by what it has found so far."""
    decoder, heads = model.decoder, model.config.decoder_attention_heads
    where = model.query_position_embeddings.weight[None].expand(len(memory), -1, -1)
    points = decoder.ref_point_head(where).sigmoid()
    width = where.shape[-1] // 2
    frequencies = 10000 ** (2 * torch.div(torch.arange(width), 2, rounding_mode="floor") / width)
    angles = 2 * math.pi * points[..., None] / frequencies  # (B, Q, 2, width)
    sine = torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-2)
    sine = torch.cat([sine[:, :, 1], sine[:, :, 0]], -1)  # y, then x
    state, states = torch.zeros_like(where), []
    for index, layer in enumerate(decoder.layers):
        code = sine * (decoder.query_scale(state) if index else 1)
        own = layer.self_attn
        query = (own.q_content_proj(state) + own.q_pos_proj(where)).unflatten(-1, (heads, -1))
        key = (own.k_content_proj(state) + own.k_pos_proj(where)).unflatten(-1, (heads, -1))
        found = own.o_proj(conditional_attention(query, key, own.v_proj(state), heads))
        state = layer.self_attn_layer_norm(state + found)
        cross = layer.encoder_attn
        query, key, place = cross.q_content_proj(state), cross.k_content_proj(memory), cross.k_pos_proj(position)
        if index == 0:
            query, key = query + cross.q_pos_proj(where), key + place
        query, key, place, code = (
            x.unflatten(-1, (heads, -1)) for x in (query, key, place, cross.q_pos_sine_proj(code))
        )
        query, key = torch.cat([query, code], -1), torch.cat([key, place], -1)
        found = cross.o_proj(conditional_attention(query, key, cross.v_proj(memory), heads, padded))
        state = layer.encoder_attn_layer_norm(state + found)
        state = layer.final_layer_norm(state + layer.mlp.fc2(layer.mlp.fc1(state).relu()))
        states.append(decoder.layernorm(state))
    return torch.stack(states)


def test_layers_of_conditional_detr_are_the_official_ones():
    states, expected = layers_of("conditional-detr", official_conditional_decoder)
    torch.testing.assert_close(states, expected, rtol=2e-6, atol=1e-5)


def official_spots(detector, seen, sizes):
    """SMCA's Gaussians as its authors wrote them, head by head."""
    rows, columns = seen.shape[1:]
    heads = detector.network.config.decoder_attention_heads
    grid_y, grid_x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    grid = torch.stack([grid_x, grid_y], -1).float().flatten(0, 1)
    first = {}

    def spots(index, state, where):
        head = detector.spots[index]
        out = head.norm(state + where)
        if index == 0:
            first["logits"] = detector.guess(out)
            first["centre"] = first["logits"].sigmoid() * sizes[:, None] / detector.stride
        gaussians = []
        for m in range(heads):
            centre = first["centre"] + head.offset(out)[..., 2 * m : 2 * m + 2]
            scale = head.scale(out)[..., 2 * m : 2 * m + 2] ** 2
            distance = (centre[:, :, None] - grid) ** 2
            gaussians.append(-(distance * scale[:, :, None]).sum(-1) / 8)
        return torch.stack(gaussians, 1)

    return spots, first


def test_decoder_of_smca_is_the_official_one():
    detector = small_detector("smca-detr", decoder_layers=3)
    shake(detector)
    memory, position, seen = memory_of(detector)
    sizes = torch.tensor([[96.0, 64.0], [60.0, 48.0]])
    spots, first = official_spots(detector, seen, sizes)
    with torch.no_grad():
        states, guessed = detector.decode(memory, position, seen, sizes / detector.stride)
        expected = official_decoder(detector.network.model, memory, position, ~seen.flatten(1), spots)
    torch.testing.assert_close(states, expected, rtol=2e-6, atol=1e-5)
    assert torch.equal(guessed, first["logits"])
    # They matter, and so does what is padding.
    plain = official_decoder(detector.network.model, memory, position, ~seen.flatten(1))
    assert (plain - expected).abs().max() > 0.1
    with torch.no_grad():
        changed = memory + 10 * torch.randn_like(memory) * ~seen.flatten(1)[..., None]
        torch.testing.assert_close(detector.decode(changed, position, seen, sizes / detector.stride)[0], states)


def spot_case(dtype=torch.float32, rows=25, columns=42, queries=30):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 8, n, 32, dtype=dtype) for n in (queries, rows * columns, rows * columns))
    centre = torch.rand(2, 8, queries, 2) * torch.tensor([columns, rows]) + torch.randn(2, 8, queries, 2)
    scale = torch.randn(2, 8, queries, 2).square()
    seen = torch.ones(2, rows, columns, dtype=torch.bool)
    seen[1, 20:], seen[1, :, 30:] = False, False
    return query, key, value, Spots(centre, scale), seen


def exact_attention(query, key, value, spots, seen):
    logits = query.double() @ key.double().mT / math.sqrt(query.shape[-1])
    return (logits + spot_mask(Spots(*(x.double() for x in spots)), seen)).softmax(-1) @ value.double()


def test_spots_as_channels_and_as_a_mask_are_the_same():
    """300 queries on a map of 800 × 1333 pixels have 10 MB of mask an image and layer, and no mask as channels."""
    query, key, value, spots, seen = spot_case()
    exact = exact_attention(query, key, value, spots, seen)
    masked = functional.scaled_dot_product_attention(query, key, value, spot_mask(spots, seen))
    channels = spot_attention(query, key, value, spots, seen)
    assert with_spot_channels(query, key, spots, seen.shape[1:])[0].shape[-1] == 36
    # Four products of up to 10 · 25² / 8 cancel to what is left near the centre: 2⁻²⁴ of that is 5e-5 of a logit.
    assert (channels - exact).abs().max() < 5e-5 and (masked - exact).abs().max() < 5e-6


def test_spots_in_16_bits_are_a_mask():
    query, key, value, spots, seen = spot_case(torch.bfloat16)
    exact = exact_attention(query, key, value, spots, seen)
    half = spot_attention(query, key, value, spots, seen)
    assert half.dtype == torch.bfloat16
    # 2⁻⁹ of logits of up to 4, of probabilities, and of the result; values are up to 4.
    error = (half - exact).abs().max()
    assert error < 4 * (4 + 1 + 1) * 2**-9
    channels = (x.bfloat16() for x in with_spot_channels(query, key, spots, seen.shape[1:]))
    seen = seen.flatten(1)[:, None, None]
    as_channels = functional.scaled_dot_product_attention(*channels, value, seen, scale=32**-0.5)
    assert (as_channels - exact).abs().max() > 10 * error


def test_gradients_of_spots_as_channels():
    query, key, value, spots, _ = spot_case(rows=5, columns=7, queries=4)
    seen = torch.ones(2, 5, 7, dtype=torch.bool)
    leaves = [x.requires_grad_() for x in (query, key, value, *spots)]
    weight = torch.randn(2, 8, 4, 32)
    with_mask = functional.scaled_dot_product_attention(query, key, value, spot_mask(spots, seen))
    expected = torch.autograd.grad((with_mask * weight).sum(), leaves)
    with_channels = spot_attention(query, key, value, spots, seen)
    actual = torch.autograd.grad((with_channels * weight).sum(), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
