"""Maps the parameter names and channel order of published MedFormer checkpoints to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from hepar.networks.medformer.config import LEVELS
from hepar.networks.medformer.network import MedFormer

# (pattern of a published name, name here); group 1 of _BLOCK patterns is the number of the block
_BLOCK = (
    (r"attn\.feat_qv\.depthwise\.weight", "attention.feature_qv.0.weight"),
    (r"attn\.feat_qv\.pointwise\.weight", "attention.feature_qv.1.weight"),
    (r"attn\.feat_out\.depthwise\.weight", "attention.feature_out.0.weight"),
    (r"attn\.feat_out\.pointwise\.weight", "attention.feature_out.1.weight"),
    (r"attn\.map_(qv|out)\.weight", r"attention.map_\2.weight"),
    (r"shortcut\.conv\.weight", "shortcut.conv.weight"),
    (r"feedforward\.expand_proj\.conv\.weight", "feedforward.expand.conv.weight"),
    (r"feedforward\.depthwise\.conv\.weight", "feedforward.depthwise.conv.weight"),
    (r"feedforward\.pointwise\.conv\.weight", "feedforward.project.conv.weight"),
    (r"feedforward\.se\.excitation\.0\.(weight|bias)", r"feedforward.gate.reduce.\2"),
    (r"feedforward\.se\.excitation\.2\.(weight|bias)", r"feedforward.gate.expand.\2"),
)
_STAGE = (
    (r"map_gen\.base_proj\.weight", "semantic_map.values.weight"),
    (r"map_gen\.semantic_proj\.weight", "semantic_map.weights.weight"),
    (r"map_reduction\.weight", "reduce_map.weight"),
    (r"patch_merging\.reduction\.depthwise\.weight", "merge.project.0.weight"),
    (r"patch_merging\.reduction\.pointwise\.weight", "merge.project.1.weight"),
    (r"conv_blocks\.(\d+)\.(conv1|conv2|shortcut)\.conv\.weight", r"convs.\1.\2.conv.weight"),
    *((rf"trans_blocks\.blocks\.(\d+)\.{old}", rf"attentions.\1.{new}") for old, new in _BLOCK),
)
_WHOLE = (
    (r"inc\.conv1\.weight", "stem.weight"),
    (r"inc\.conv2\.(conv1|conv2)\.conv\.weight", r"stem_block.\1.conv.weight"),
    (r"outc\.(weight|bias)", r"head.\1"),
    (r"aux_out\.(weight|bias)", r"aux_head.\1"),
    (r"map_fusion\.(in|out)_proj\.(\d)\.weight", r"fusion.\1puts.\2.weight"),
    (r"map_fusion\.fusion\.layers\.(\d+)\.0\.norm\.(weight|bias)", r"fusion.layers.\1.norm1.\2"),
    (r"map_fusion\.fusion\.layers\.(\d+)\.1\.norm\.(weight|bias)", r"fusion.layers.\1.norm2.\2"),
    (r"map_fusion\.fusion\.layers\.(\d+)\.0\.fn\.to_qkv\.weight", r"fusion.layers.\1.qkv.weight"),
    (r"map_fusion\.fusion\.layers\.(\d+)\.0\.fn\.to_out\.(weight|bias)", r"fusion.layers.\1.out.\2"),
    (r"map_fusion\.fusion\.layers\.(\d+)\.1\.fn\.fc1\.(weight|bias)", r"fusion.layers.\1.mlp.0.\2"),
    (r"map_fusion\.fusion\.layers\.(\d+)\.1\.fn\.fc2\.(weight|bias)", r"fusion.layers.\1.mlp.2.\2"),
)


def map_name(published: str) -> str:
    """Our name of a published parameter. Raises ValueError if MedFormer has no such parameter."""
    for pattern, replacement in _WHOLE:
        if re.fullmatch(pattern, published):
            return re.sub(pattern, replacement, published)
    if stage := re.match(r"(down|up)([1-4])\.", published):
        rest = published[stage.end() :]
        for pattern, replacement in _STAGE:
            if re.fullmatch(pattern, rest):
                return f"{stage[1]}.{int(stage[2]) - 1}.{re.sub(pattern, replacement, rest)}"
    raise ValueError(f"published weights: parameter {published!r} is not one of MedFormer's")


def load_published_weights(network: MedFormer, state_dict: Mapping[str, Tensor]) -> None:
    """Load the state dict of a published checkpoint into `network`, in place.

    Published attention interleaves heads (channel = e * heads + k). Ours stores one head after the other, so these
    projections are permuted. Parameters without effect, which update a semantic map that is no longer read, are
    skipped. Raises ValueError naming a parameter that is unknown, missing or of another shape, and leaves the network
    unchanged.
    """
    own = network.state_dict()
    translated: dict[str, Tensor] = {}
    for published, value in state_dict.items():
        name = map_name(published)
        if name not in own and re.fullmatch(r"up\.\d\.(reduce_map|attentions\.\d+\.attention\.map_out)\.weight", name):
            continue
        if name not in own:
            raise ValueError(f"published weights: {published!r} does not exist in this configuration")
        value = _reorder_heads(name, torch.as_tensor(value), network)
        if value.numel() != own[name].numel():
            raise ValueError(
                f"published weights: {published!r} is {tuple(value.shape)} but the network has {tuple(own[name].shape)}"
            )
        translated[name] = value.reshape(own[name].shape)
    if missing := sorted(set(own) - set(translated)):
        raise ValueError(f"published weights: {missing[0]!r} and {len(missing) - 1} more parameters are missing")
    network.load_state_dict(translated)


def _reorder_heads(name: str, value: Tensor, network: MedFormer) -> Tensor:
    """Permute the channels of an attention weight from (e, heads) to (heads, e); other weights stay as they are."""
    place = re.match(r"(down|up)\.(\d)\.attentions\.\d+\.attention\.(.*)", name)
    if place is None:
        return value
    stage = int(place[2]) + (LEVELS if place[1] == "up" else 0)
    heads, width = network.config.heads[stage], network.config.channels[stage]
    if heads == 1:
        return value
    order = torch.arange(width).reshape(width // heads, heads).T.flatten()
    match place[3]:
        case "feature_qv.1.weight" | "map_qv.weight":
            return value[torch.cat([order, order + width])]
        case "feature_out.0.weight":
            return value[order]
        case "feature_out.1.weight" | "map_out.weight":
            return value[:, order]
        case _:
            return value
