"""The components that are classes of this package: where they stand, and the files that a folder carries of them."""

from mindspeed_mm.diffusers.bundle import bundle
from mindspeed_mm.diffusers.code import PIPELINE, Code

# component -> (class, its module in this package, its file in a folder)
PARTS = {
    "transformer": ("SparseUMMDiTTransformer3DModel", "diffusers.transformer", "transformer_sparse_ummdit"),
    "vae": ("AutoencoderKLWFVAE", "diffusers.autoencoder", "autoencoder_wfvae"),
    PIPELINE: ("OpenSoraPlanPipeline", "diffusers.pipeline", "pipeline_opensoraplan"),
}


def generated() -> Code:
    """The code of all three, made from the sources of this package."""
    return {component: (name, stem, bundle(module, name)) for component, (name, module, stem) in PARTS.items()}
