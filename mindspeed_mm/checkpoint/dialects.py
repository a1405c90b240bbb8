"""The names of parameters in the two published dialects, as data.

Ours are Open-Sora Plan's own (branch `mindspeed_mmdit`, "OSP"): files of MindSpeed-MM 26.0.0 ("MM") are read under OSP's
names, and written under MM's.
"""

import re
from collections.abc import Iterable

OSP, MM, WFVAE, UNKNOWN = "OSP", "MM", "WFVAE", "unknown"

# OSP -> MM. `*` stands for one part of a name; each template has the same ones on both sides.
_MM_TEMPLATES = {
    f"transformer_blocks.*.*.attn1.{ours}.*": f"transformer_blocks.*.*.attn1.{theirs}.*"
    for ours, theirs in {
        "norm_q": "norm_proj_q",
        "norm_k": "norm_proj_k",
        "to_q": "proj_q",
        "to_k": "proj_k",
        "to_v": "proj_v",
        "add_q_proj": "added_proj_q",
        "add_k_proj": "added_proj_k",
        "add_v_proj": "added_proj_v",
        "to_out.0": "proj_out",
        "to_add_out": "added_proj_out",
        "norm_added_q": "norm_added_proj_q",
        "norm_added_k": "norm_added_proj_k",
    }.items()
}
# MM's WFVAE has a spelling mistake in an attribute; its published weights, converted from OSP's, do not.
_WFVAE_TEMPLATES = {"encoder.wavelet_transform_in.*.conv.weight": "encoder.wavelet_tranform_in.*.conv.weight"}

# The original's last block owns a text tail when it ran with TP > 1; its output is never used and we do not build it.
TEXT_TAIL = (
    "attn1.to_add_out.weight",
    "attn1.to_add_out.bias",
    "norm2.norm_enc.weight",
    "norm2.norm_enc.bias",
    "ff_enc.net.0.proj.weight",
    "ff_enc.net.2.weight",
)
# Megatron's linears save this beside their weights; it is None.
EXTRA_STATE = "_extra_state"

_MARKS = {  # a dialect -> what one of its names looks like
    MM: re.compile(r"transformer_blocks\.\d+\.\d+\.attn1\.proj_[qkv]\."),
    OSP: re.compile(r"transformer_blocks\.\d+\.\d+\.attn1\.to_[qkv]\."),
    WFVAE: re.compile(r"encoder\.(wavelet_trans?form_in|conv_in|down[12])\."),
}


def guess(names: Iterable[str]) -> str:
    """Which dialect the names are of."""
    names = list(names)
    for dialect, mark in _MARKS.items():
        if any(mark.match(name) for name in names):
            return dialect
    return UNKNOWN


def to_osp(name: str) -> str:
    """Our name for a parameter of either dialect."""
    return _renamed(name, _TO_OSP)


def to_mm(name: str) -> str:
    """MM's name for a parameter of ours."""
    return _renamed(name, _TO_MM)


def text_tail(last_block: str) -> set[str]:
    """Names of the text tail of the block with this prefix, for example "transformer_blocks.6.1"."""
    return {f"{last_block}.{name}" for name in TEXT_TAIL}


def last_block(names: Iterable[str]) -> str | None:
    """Prefix of the last block among a denoiser's names, for example "transformer_blocks.6.1"."""
    found = [re.match(r"transformer_blocks\.(\d+)\.(\d+)\.", name) for name in names]
    blocks = [(int(match[1]), int(match[2])) for match in found if match]
    return "transformer_blocks.{}.{}".format(*max(blocks)) if blocks else None


def _renamed(name: str, rules: list[tuple[re.Pattern, str]]) -> str:
    for pattern, replacement in rules:
        match = pattern.fullmatch(name)
        if match:
            return replacement.format(*match.groups())
    return name


def _rules(templates: dict[str, str]) -> list[tuple[re.Pattern, str]]:
    return [
        (re.compile(re.escape(source).replace(r"\*", r"([^.]+)")), target.replace("*", "{}"))
        for source, target in templates.items()
    ]


_TO_MM = _rules(_MM_TEMPLATES)
_TO_OSP = _rules({theirs: ours for ours, theirs in {**_MM_TEMPLATES, **_WFVAE_TEMPLATES}.items()})
