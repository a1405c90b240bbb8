"""The denoiser of the tests in this folder: three stages, of which the middle one is sparse."""

from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig

CONFIG = SparseUMMDiTConfig(
    num_layers=(2, 2, 2),
    sparse_n=(1, 2, 1),
    sparse1d=True,
    double_ff=True,
    skip_connection=True,
    num_heads=2,
    head_dim=16,
    in_channels=4,
    caption_channels=12,
    pooled_projection_dim=6,
    timestep_embed_dim=16,
)
