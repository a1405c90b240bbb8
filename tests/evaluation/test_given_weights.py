"""CLIP score and FVD with weights that a user gives: numbers of small random ones, and what is refused."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from made_videos import FPS, moving
from torch import nn

from mindspeed_mm.errors import CheckpointError, ConfigError, DataError
from mindspeed_mm.evaluation import fvd
from mindspeed_mm.evaluation.clip import Clip
from mindspeed_mm.evaluation.samples import Video

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "quickstart"))

from tiny_encoders import write_encoders

CPU = torch.device("cpu")
TEXTS = ["a red square", "a green dog"]


class Mean(nn.Module):
    def forward(self, video):
        return video.mean((2, 3, 4))


class LikeI3d(nn.Module):
    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        x = x / 255 if rescale and resize and return_features else x * float("nan")
        return x.mean((2, 3, 4))


class Wrong(nn.Module):
    def forward(self, video):
        return video


def scripted(module: nn.Module, path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def video():
    return Video(moving(1), FPS)


def test_an_extractor_sees_the_first_frames_in_its_range(video, tmp_path):
    plain = fvd.Extractor(scripted(Mean(), tmp_path / "mean.pt"), 5, None, CPU)
    means = torch.from_numpy(video.frames[:5]).double().mean((0, 1, 2))
    assert torch.allclose(plain(video, "clip"), means / 127.5 - 1, atol=1e-6)
    i3d = fvd.Extractor(scripted(LikeI3d(), tmp_path / "i3d.pt"), 5, 32, CPU)
    assert torch.allclose(i3d(video, "clip"), means / 255, atol=1e-2)
    with pytest.raises(DataError, match="clip: 9 frames; --fvd-frames 16"):
        fvd.Extractor(plain.path, 16, None, CPU)(video, "clip")


def test_what_is_no_extractor_is_named(video, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"weights\.pt: is no TorchScript"):
        fvd.Extractor(str(tmp_path / "weights.pt"), 5, None, CPU)
    with pytest.raises(DataError, match=r"gives \[1, 3, 5, 48, 48\]; need finite features"):
        fvd.Extractor(scripted(Wrong(), tmp_path / "wrong.pt"), 5, None, CPU)(video, "clip")


def test_fvd_says_of_how_many_videos_it_is(tmp_path):
    generator = torch.Generator().manual_seed(0)
    one = list(torch.randn(6, 3, generator=generator, dtype=torch.float64))
    found = fvd.distance(one, one[:4] + one[:1])
    assert found["FVD videos"] == 6 and found["FVD reference videos"] == 5 and found["FVD"] > 0
    with pytest.raises(DataError, match="1 videos and 6 of --reference"):
        fvd.distance(one[:1], one)


@pytest.fixture(scope="module")
def whole_clip(tmp_path_factory):
    """A random CLIP with both halves, and its text encoder alone."""
    import transformers

    folder = tmp_path_factory.mktemp("clip")
    write_encoders(folder, TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "clip")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = transformers.CLIPTextConfig(
        **sizes, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, max_position_embeddings=77
    )
    vision = transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    model = transformers.CLIPModel(config)
    model.save_pretrained(folder / "whole")
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.CLIPProcessor(pictures, tokenizer).save_pretrained(folder / "whole")
    return folder, model


def test_the_score_is_the_cosine_of_frames_and_prompt(whole_clip, video):
    import transformers

    folder, model = whole_clip
    found = Clip(str(folder / "whole"), CPU)(video, TEXTS[0])
    processor = transformers.CLIPProcessor.from_pretrained(folder / "whole")
    inputs = processor(text=TEXTS[:1], images=list(video.frames), return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model.eval()(**inputs)
    expected = (output.logits_per_image / model.logit_scale.exp()).mean().item()
    assert found["CLIP score"] == pytest.approx(100 * expected, rel=1e-4)
    cosines = (output.image_embeds[1:] * output.image_embeds[:-1]).sum(1)
    assert found["CLIP consistency"] == pytest.approx(cosines.mean().item(), rel=1e-5)
    assert "CLIP score" not in Clip(str(folder / "whole"), CPU)(video, None)


def test_a_text_encoder_alone_is_refused(whole_clip, video):
    folder, _ = whole_clip
    with pytest.raises(CheckpointError, match="--clip takes a Hugging Face folder of a whole CLIP"):
        Clip(str(folder / "clip"), CPU)
